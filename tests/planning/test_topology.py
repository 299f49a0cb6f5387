"""Names of machines, and what is said of those that there are not."""

import pytest

from mllm_jax.planning.topology import TopologyError, parse_topology


@pytest.mark.parametrize(
    ("name", "size", "hosts"),
    [
        ("v5e:16x16", 256, 64),
        ("v5e:1x1", 1, 1),
        ("v5p:4x4x4", 64, 16),
        ("V6e:4x2", 8, 2),
        ("h100:16", 16, 2),
        ("cpu", 1, 1),
    ],
)
def test_machines(name, size, hosts):
    topology = parse_topology(name)
    assert (topology.size, topology.hosts) == (size, hosts)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5x:4x4", "there is no 'v5x'. Did you mean 'v5p'?"),
        ("v5e:3x4", "there is no such slice of 12 chips; the nearest are v5e:4x4, v5e:2x4"),
        ("v5e:32x32", "the nearest are v5e:16x16, v5e:8x16"),
        ("v5e:256", "the nearest are v5e:16x16, v5e:8x16"),
        ("v5p", "expected a slice, one of v5p:2x2x1"),
        ("h100:many", "expected a number of devices, such as h100:8"),
    ],
)
def test_machines_that_there_are_not(name, says):
    with pytest.raises(TopologyError, match="--topology") as raised:
        parse_topology(name)
    assert says in str(raised.value)


def test_ends_are_linked_where_an_axis_is_whole():
    assert [parse_topology("v5e:8x16").wraps(axis) for axis in range(2)] == [False, True]
    assert [parse_topology("v5p:2x4x4").wraps(axis) for axis in range(3)] == [False, True, True]

"""Times of collectives on a torus, by hand."""

import numpy as np
import pytest

from mllm_jax.planning.links import Links
from mllm_jax.planning.topology import parse_topology

MEGABYTE = 1e6
LINK = 45e9


def links(name: str) -> Links:
    topology = parse_topology(name)
    return Links(topology, np.stack(np.unravel_index(np.arange(topology.size), topology.shape), axis=1))


def everyone(name: str) -> np.ndarray:
    return np.arange(parse_topology(name).size).reshape(1, -1)


def test_all_devices_of_a_whole_pod_use_four_links():
    found = links("v5e:16x16").seconds("all-gather", MEGABYTE, everyone("v5e:16x16"))
    assert found == pytest.approx(MEGABYTE * 255 / 256 / (4 * LINK))


def test_an_axis_shorter_than_the_pod_has_no_link_between_its_ends():
    whole = links("v5e:8x8").seconds("all-gather", MEGABYTE, everyone("v5e:8x8"))
    assert whole == pytest.approx(MEGABYTE * 63 / 64 / (2 * LINK))


def test_a_group_along_one_axis_uses_its_links_only_and_a_sum_goes_round_twice():
    row = np.arange(256).reshape(16, 16)
    assert links("v5e:16x16").seconds("all-gather", MEGABYTE, row) == pytest.approx(MEGABYTE * 15 / 16 / (2 * LINK))
    assert links("v5e:16x16").seconds("all-reduce", MEGABYTE, row) == pytest.approx(MEGABYTE * 30 / 16 / (2 * LINK))
    half_rows = np.arange(256).reshape(32, 8)
    assert links("v5e:16x16").seconds("all-gather", MEGABYTE, half_rows) == pytest.approx(MEGABYTE * 7 / 8 / LINK)


def test_every_device_to_every_other():
    # Each sends a 16th to each of a ring of 16, over 4 links on average, in both directions at once.
    row = np.arange(256).reshape(16, 16)
    assert links("v5e:16x16").seconds("all-to-all", MEGABYTE, row) == pytest.approx(MEGABYTE * 4 / (2 * LINK))


def test_pairs_take_as_long_as_the_pair_that_lies_farthest_apart():
    found = links("v5e:16x16")
    ring = np.array([[16 * row, 16 * ((row + 1) % 16)] for row in range(16)])
    assert found.seconds("collective-permute", MEGABYTE, ring) == pytest.approx(MEGABYTE / LINK)
    assert found.direction(ring) == "axis 0 +" and found.direction(ring[:, ::-1]) == "axis 0 -"
    short = links("v5e:8x8")
    across = np.array([[0, 7]])
    assert short.seconds("collective-permute", MEGABYTE, across) == pytest.approx(7 * MEGABYTE / LINK)

"""Groups of devices in every form that XLA writes them in, and the axes of a mesh that they lie along."""

import numpy as np
import pytest

from mllm_jax.planning.groups import axes_joined, replica_groups, source_target_pairs
from mllm_jax.planning.hlo_text import Instruction

MESH = {"data": 2, "fsdp": 4, "tensor": 2}


def collective(attributes: str) -> Instruction:
    return Instruction("all-gather.1", "all-gather", (), ("x",), "%x", f", {attributes}, dimensions={{0}}", False)


ALONG_TENSOR = [[2 * row, 2 * row + 1] for row in range(8)]
ALONG_FSDP = [[8 * data + tensor + 2 * step for step in range(4)] for data in range(2) for tensor in range(2)]


@pytest.mark.parametrize(
    ("written", "groups", "axes"),
    [
        ("{" + ",".join(f"{{{a},{b}}}" for a, b in ALONG_TENSOR) + "}", ALONG_TENSOR, "tensor"),
        ("[8,2]<=[16]", ALONG_TENSOR, "tensor"),
        ("[4,4]<=[2,4,2]T(0,2,1)", ALONG_FSDP, "fsdp"),
        ("mesh['a'=2,'b'=4,'c'=2] {'b'}", ALONG_FSDP, "fsdp"),
        ("mesh['axis_0'=16,'axis_1'=1] {'axis_0'}", [list(range(16))], "data+fsdp+tensor"),
        ("mesh['a'=16] {'a':(1)2}", [[each, each + 8] for each in range(8)], "data"),
        ("mesh['a'=16] {'a':(8)2}", ALONG_TENSOR, "tensor"),
        ("mesh['a'=2,'b'=8], device_ids=([4,4]<=[16]) {'b'}", [list(range(8)), list(range(8, 16))], "fsdp+tensor"),
        ("mesh['a'=4,'b'=4], device_ids=([2,4,2]T(1,0,2)) {'a'}", np.array(ALONG_FSDP), "fsdp"),
        ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [[0, 2], [1, 3]], "fsdp/2"),
        ("{{0,2},{4,6}}", [[0, 2], [4, 6]], "fsdp/2"),
    ],
)
def test_replica_groups(written, groups, axes):
    found = replica_groups(collective(f"channel_id=1, replica_groups={written}"), devices=16)
    np.testing.assert_array_equal(found, groups)
    assert axes_joined(found, MESH) == axes


def test_no_groups_are_all_devices():
    assert replica_groups(collective("replica_groups={}"), devices=16).tolist() == [list(range(16))]


def test_pairs():
    pairs = source_target_pairs(collective("source_target_pairs={{0,2},{2,4},{4,6},{6,0}}"))
    assert pairs.tolist() == [[0, 2], [2, 4], [4, 6], [6, 0]]
    assert axes_joined(pairs, MESH) == "fsdp/2"

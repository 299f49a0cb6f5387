"""Which devices a collective joins, and along which axes of the mesh they lie."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from mllm_jax.planning.hlo_text import Instruction

Groups = Int[np.ndarray, "groups devices"]
"""Places of devices in the mesh, counted along its last axis first."""

_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_OF_A_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, *device_ids=\(([^)]*(?:\([\d,]*\))?)\))? *\{([^}]*)\}")
_ARRANGEMENT = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]*)\))?")
_PAIRS = re.compile(r"source_target_pairs=\{([\d,{} ]*)\}")


def replica_groups(instruction: Instruction, devices: int) -> Groups:
    """The groups of a collective, in each of the forms that XLA writes them in.

    They are lists (`{{0,1},{2,3}}`), an arrangement of all numbers (`[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)`), or axes of a
    mesh of its own (`mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}`, of which `'b':(1)4` is a part of an axis).
    None written means all.
    """
    text = instruction.attributes
    if (listed := _LISTED.search(text)) is not None:
        members = re.findall(r"\{([\d, ]*)\}", listed.group(1))
        return np.array([[int(each) for each in group.split(",") if each.strip()] for group in members])
    if (iota := _IOTA.search(text)) is not None:
        return _arranged(iota.group(1))
    if (of_mesh := _OF_A_MESH.search(text)) is not None:
        return _along_axes(*of_mesh.groups())
    return np.arange(devices).reshape(1, devices)


def source_target_pairs(instruction: Instruction) -> Groups:
    """Of a collective-permute: [pairs, (from, to)]."""
    found = _PAIRS.search(instruction.attributes)
    pairs = re.findall(r"\{(\d+),\s*(\d+)\}", found.group(1)) if found else []
    return np.array([[int(source), int(target)] for source, target in pairs]).reshape(-1, 2)


def _numbers(text: str | None) -> list[int]:
    return [int(each) for each in (text or "").split(",") if each.strip()]


def _arranged(text: str) -> np.ndarray:
    found = _ARRANGEMENT.search(text)
    if found is None:
        return np.array(_numbers(text))
    shape, lengths, order = (_numbers(part) for part in found.groups())
    lengths = lengths or shape
    turned = np.arange(int(np.prod(lengths))).reshape(lengths).transpose(order or range(len(lengths)))
    return turned.reshape(shape) if found.group(2) else turned


def _along_axes(mesh: str, device_ids: str | None, chosen: str) -> Groups:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    ids = np.arange(int(np.prod(list(sizes.values()))))
    if device_ids:
        ids = _arranged(device_ids).reshape(-1)
    lengths: list[int] = []
    joined: list[int] = []
    parts = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)}
    for name, size in sizes.items():
        before, part = parts.get(name, ("1", "1"))
        inner = int(part) if part else size
        outer = int(before) if before else 1
        joined.append(len(lengths) + 1)
        lengths += [outer, inner, size // outer // inner]
    others = [axis for axis in range(len(lengths)) if axis not in joined]
    group = int(np.prod([lengths[axis] for axis in joined]))
    return ids.reshape(lengths).transpose(*others, *joined).reshape(-1, group)


def axes_joined(groups: Groups, mesh: Mapping[str, int]) -> str:
    """The axes of the mesh along which the members of groups differ, such as `fsdp` or `data+fsdp`.

    An axis of which no group has all places is marked as a part: `fsdp/4` where they have 4 of them. `-` where no
    group has two members.
    """
    sizes = [size for size in mesh.values()]
    places = np.unravel_index(groups, sizes)
    names: list[str] = []
    for name, size, along in zip(mesh, sizes, places, strict=True):
        differing = max(len(np.unique(row)) for row in along) if along.size else 1
        if differing > 1:
            names.append(name if differing == size else f"{name}/{differing}")
    return "+".join(names) or "-"


def coordinates_of(devices: Sequence[object]) -> np.ndarray | None:
    """Of the devices of a mesh on their torus, [devices, axes]; None where they lie on none."""
    found = [getattr(device, "coords", None) for device in devices]
    return None if any(each is None for each in found) else np.array(found)

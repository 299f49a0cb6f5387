"""Deterministic orders: a permutation evaluated one index at a time, and a shuffle of a short block.

Both depend on nothing but their arguments: no library's random stream may change the order of a run in its middle.
"""

import hashlib

import numpy as np

_MASK = (1 << 64) - 1
_ROUNDS = 4


def seed_of(*parts: int | str) -> int:
    """Returns a 64-bit seed that depends on every part, in order."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permuted(index: int, size: int, seed: int) -> int:
    """Returns the image of `index` under the permutation of range(size) that `seed` names, in constant time and memory.

    A four-round Feistel network over the next power of four, walked until it lands inside (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains").
    """
    if not 0 <= index < size:
        raise IndexError(f"index {index} is outside a permutation of {size}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(seed + turn * 0x9E3779B97F4A7C15 + right) & mask)
        index = left << half | right
        if index < size:
            return index


def shuffled(size: int, seed: int) -> np.ndarray:
    """Returns i64[size], range(size) in the order that `seed` names."""
    # Raw PCG64 output is covered by NumPy's stability promise; Generator.permutation is not.
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    value &= _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31

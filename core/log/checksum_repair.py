"""Finds wrong bytes by their checksum, and bytes that give one.

CRC32C is linear: what a changed byte does to it depends only on the change and on how many bytes
come behind.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

CRC_SIZE: Final = 4


def _effects() -> NDArray[np.uint32]:
    """Return what each change of the last byte does to a checksum (u32[256])."""
    return np.array([crc32c(bytes([v])) ^ crc32c(b"\0") for v in range(256)], np.uint32)


_LAST: Final = _effects()


def _moved(effect: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the effects of the same changes one byte earlier."""
    return (effect >> np.uint32(8)) ^ _LAST[effect & np.uint32(255)]


def corrections(message: bytes, stored: bytes) -> list[tuple[bytes, bytes]]:
    """Return all (message, checksum) that agree and differ from these in exactly one byte."""
    computed = int(crc32c(message)).to_bytes(CRC_SIZE, "little")
    syndrome = int.from_bytes(computed, "little") ^ int.from_bytes(stored, "little")
    found = []
    if sum(a != b for a, b in zip(computed, stored, strict=True)) == 1:
        found.append((message, computed))
    effect = _LAST
    for at in range(len(message) - 1, -1, -1):
        for change in np.flatnonzero(effect == syndrome).tolist():
            if change:
                other = bytearray(message)
                other[at] ^= change
                found.append((bytes(other), stored))
        effect = _moved(effect)
    return found


def forced(message: bytes, crc: int, at: int) -> bytes:
    """Return the message with the four bytes at `at` chosen so that it has this checksum."""
    effects: list[NDArray[np.uint32]] = []
    effect = _LAST
    for place in range(len(message) - 1, at - 1, -1):
        if place < at + CRC_SIZE:
            effects.insert(0, effect)
        effect = _moved(effect)
    first = (effects[0][:, None] ^ effects[1][None, :]).ravel()
    second = (effects[2][:, None] ^ effects[3][None, :]).ravel()
    wanted = first ^ np.uint32(int(crc32c(message)) ^ crc)
    order = np.argsort(second)
    places = np.searchsorted(second[order], wanted)
    places = np.minimum(places, len(order) - 1)
    hit = np.flatnonzero(second[order[places]] == wanted)[0]
    other = order[places[hit]]
    changes = bytes([int(hit) >> 8, int(hit) & 255, int(other) >> 8, int(other) & 255])
    changed = bytes(a ^ b for a, b in zip(message[at : at + CRC_SIZE], changes, strict=True))
    return message[:at] + changed + message[at + CRC_SIZE :]

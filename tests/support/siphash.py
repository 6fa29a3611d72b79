"""SipHash-1-3 with 128 bits of output in plain Python: the oracle of the kernel.

Over messages of whole 64-bit words, as docs/STORAGE.md has them: each word is absorbed with one
round, then a last word that is zero, because a message's length modulo 256 stands in its top byte
and messages here say their lengths themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

MASK = 2**64 - 1


def rotate(x: int, bits: int) -> int:
    return (x << bits | x >> (64 - bits)) & MASK


def one_round(v: list[int]) -> None:
    v[0] = (v[0] + v[1]) & MASK
    v[1] = rotate(v[1], 13) ^ v[0]
    v[0] = rotate(v[0], 32)
    v[2] = (v[2] + v[3]) & MASK
    v[3] = rotate(v[3], 16) ^ v[2]
    v[0] = (v[0] + v[3]) & MASK
    v[3] = rotate(v[3], 21) ^ v[0]
    v[2] = (v[2] + v[1]) & MASK
    v[1] = rotate(v[1], 17) ^ v[2]
    v[2] = rotate(v[2], 32)


def siphash_words(key: tuple[int, int], words: Sequence[int], rounds: int = 1) -> tuple[int, int]:
    """Hash words; `rounds` for each of them (2 makes it SipHash-2-x), and three at the end."""
    v = [
        key[0] ^ 0x736F6D6570736575,
        key[1] ^ 0x646F72616E646F6D ^ 0xEE,
        key[0] ^ 0x6C7967656E657261,
        key[1] ^ 0x7465646279746573,
    ]
    for word in [*words, 0]:
        v[3] ^= word
        for _ in range(rounds):
            one_round(v)
        v[0] ^= word
    halves = []
    for place, change in ((2, 0xEE), (1, 0xDD)):
        v[place] ^= change
        for _ in range(3):
            one_round(v)
        halves.append(v[0] ^ v[1] ^ v[2] ^ v[3])
    return halves[0], halves[1]


def words_of(data: bytes) -> list[int]:
    """Bytes as words, zero-extended."""
    padded = data + bytes(-len(data) % 8)
    return [int.from_bytes(padded[at : at + 8], "little") for at in range(0, len(padded), 8)]

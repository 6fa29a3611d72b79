"""Which partition an account belongs to, and which node leads it.

A partition is XXH64(root of the account, seed 0) mod 256, as docs/PROTOCOL.md says, so every
client and every node agrees without asking. The hash is plain Python: the client must not need a
compiler, and it hashes each root once.

Invariants:
  * two accounts of one root are always in one partition;
  * a route for a map of a single node is None: there is nothing to choose, so nothing is hashed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meterd.protocol import fields
from meterd.protocol.errors import BadRequest
from meterd.protocol.limits import ACCOUNT_SIZE_MAX, PARTITION_COUNT

# Roots whose partition is remembered; beyond it the memory is emptied and fills again.
ROOTS_COUNT_MAX = 100_000

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_PRIME_1 = 0x9E37_79B1_85EB_CA87
_PRIME_2 = 0xC2B2_AE3D_27D4_EB4F
_PRIME_3 = 0x1656_67B1_9E37_79F9
_PRIME_4 = 0x85EB_CA77_C2B2_AE63
_PRIME_5 = 0x27D4_EB2F_1656_67C5


def _rotate(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (64 - bits))) & _MASK


def _round(state: int, lane: int) -> int:
    return _rotate((state + lane * _PRIME_2) & _MASK, 31) * _PRIME_1 & _MASK


def _stripes(data: bytes) -> int:
    """Hash the whole 32-byte stripes at the front of `data`."""
    states = [(_PRIME_1 + _PRIME_2) & _MASK, _PRIME_2, 0, -_PRIME_1 & _MASK]
    for offset in range(0, len(data) - len(data) % 32, 8):
        lane = int.from_bytes(data[offset : offset + 8], "little")
        number = offset // 8 % 4
        states[number] = _round(states[number], lane)
    hashed = sum(_rotate(state, bits) for state, bits in zip(states, (1, 7, 12, 18), strict=True))
    for state in states:
        hashed = ((hashed ^ _round(0, state)) * _PRIME_1 + _PRIME_4) & _MASK
    return hashed


def xxh64(data: bytes) -> int:
    """Hash `data` with XXH64, seed 0."""
    hashed = _stripes(data) if len(data) >= 32 else _PRIME_5
    hashed = (hashed + len(data)) & _MASK
    offset = len(data) - len(data) % 32
    while offset + 8 <= len(data):
        lane = int.from_bytes(data[offset : offset + 8], "little")
        hashed = (_rotate(hashed ^ _round(0, lane), 27) * _PRIME_1 + _PRIME_4) & _MASK
        offset += 8
    if offset + 4 <= len(data):
        lane = int.from_bytes(data[offset : offset + 4], "little")
        hashed = (_rotate(hashed ^ (lane * _PRIME_1 & _MASK), 23) * _PRIME_2 + _PRIME_3) & _MASK
        offset += 4
    for byte in data[offset:]:
        hashed = _rotate(hashed ^ (byte * _PRIME_5 & _MASK), 11) * _PRIME_1 & _MASK
    hashed = (hashed ^ (hashed >> 33)) * _PRIME_2 & _MASK
    hashed = (hashed ^ (hashed >> 29)) * _PRIME_3 & _MASK
    return hashed ^ (hashed >> 32)


def root_of(account: str) -> str:
    """Give the part of `account` before the first slash."""
    return account.partition("/")[0]


def partition_of(account: str) -> int:
    """Give the partition of `account`: the same for every account of its root."""
    # Half a character has no bytes, and its account no partition: any will do.
    return xxh64(root_of(account).encode("utf-8", "surrogatepass")) % PARTITION_COUNT


def _is_address(address: object) -> bool:
    """Tell whether somebody can connect there."""
    try:
        fields.address(address, "nodes")
    except BadRequest:
        return False
    return True


class PartitionMap:
    """One version of who leads which partition; never changes."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.version = int(answer["version"])
        # A node whose address nobody can connect to is reached through the others.
        self.nodes: dict[int, str] = {
            int(node_id): address
            for node_id, address in answer["nodes"].items()
            if _is_address(address)
        }
        # By partition; None where the leader is not known at the moment.
        self.leaders = [self.nodes.get(int(node_id or 0)) for node_id in answer["leaders"]]
        if len(self.leaders) != PARTITION_COUNT:
            raise ValueError(f"a map of {len(self.leaders)} partitions, not {PARTITION_COUNT}")
        self._partitions: dict[str, int] = {}  # root → partition

    def leader_of(self, account: str) -> str | None:
        """Give the address of the node that leads `account`, or None when any node will do."""
        if len(self.nodes) < 2:
            return None
        if len(account) > ACCOUNT_SIZE_MAX:
            return None  # it is nobody's: any node rejects it
        root = root_of(account)
        partition = self._partitions.get(root)
        if partition is None:
            if len(self._partitions) >= ROOTS_COUNT_MAX:
                self._partitions.clear()
            partition = self._partitions[root] = partition_of(root)
        return self.leaders[partition]

"""Which accounts were erased, and up to where: a list that only grows, and holds no text.

An erasure is a command in the account's own partition, so it has a place in the order of the
account's events: what stands before that is gone, what comes after counts as ever.  An account is
known by its keyed hash, so the list can be kept for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import erased as kernels
from meterd.core.kernels.cells import POSITION_ROW_BITS
from meterd.core.kernels.entries import account_hash
from meterd.core.kernels.hashing import partition_of
from meterd.core.kernels.index import Index, insert, make_index

# One is 100 bytes in memory, in every checkpoint and in erased.bin.
ERASURES_MAX: Final = 100_000  # of each partition


@dataclass(frozen=True, slots=True)
class Erasure:
    """One erasure.  `account` and `root` are keyed hashes of 16 bytes."""

    id: bytes  # of 16 bytes: the same is applied once
    account: bytes
    root: bytes  # of what stands before the first "/"
    subtree: bool  # and everything below it
    partition: int
    floor: int  # positions in the log before it are erased
    time: int  # leader's, UTC ns

    def to_list(self) -> list[Any]:
        """Return the erasure as plain values."""
        return [
            self.id,
            self.account,
            self.root,
            self.subtree,
            self.partition,
            self.floor,
            self.time,
        ]

    @classmethod
    def from_list(cls, fields: Sequence[Any]) -> Erasure:
        """Read what `to_list` gave."""
        return cls(*fields)


def erasure_command(
    key: NDArray[np.uint64], account: str, subtree: bool, name: str
) -> tuple[dict[str, Any], int]:
    """Return the command of the log that erases an account, and the partition it belongs to.

    name: what the client calls the erasure, so that asking twice for the same erases once.
    """
    text = np.frombuffer(account.encode(), np.uint8)
    # A name may have a "/" as accounts have, so where it ends must be said then.
    both = f"/{len(name)}/{name}/{account}" if "/" in name else f"{name}/{account}"
    if subtree:  # it erases more than one without; nothing else begins so
        both = f"//{both}"
    root = np.frombuffer(account.split("/", 1)[0].encode(), np.uint8)
    command = {
        "op": "account_erase",
        "id": hash_of(key, np.frombuffer(both.encode(), np.uint8)),
        "account": hash_of(key, text),
        "root": hash_of(key, root),
        "subtree": subtree,
    }
    return command, int(partition_of(text, 0, len(text)))


def erasure_of(command: Mapping[str, Any], partition: int, index: int, time: int) -> Erasure:
    """Return the erasure that a command at this place of the log is."""
    return Erasure(
        command["id"],
        command["account"],
        command["root"],
        command["subtree"],
        partition,
        index << POSITION_ROW_BITS,
        time,
    )


class Erasures:
    """All erasures; immutable.

    In what order erasures of several partitions come is chance, and another one after each start.
    So what outlives the usage actor must not go by a place in the list, or by how long it is.
    """

    def __init__(self, erasures: Iterable[Erasure], key: NDArray[np.uint64]) -> None:
        self._list = tuple(erasures)
        self._key = key.copy()
        self._known = {erasure.id for erasure in self._list}
        self._counts = Counter(erasure.partition for erasure in self._list)
        self._latest: dict[int, int] | None = None
        self._table: kernels.Erased | None = None

    @property
    def key(self) -> NDArray[np.uint64]:
        """The key of all hashes."""
        return self._key

    def __len__(self) -> int:
        return len(self._list)

    def __iter__(self) -> Iterator[Erasure]:
        return iter(self._list)

    def knows(self, erasure_id: bytes) -> bool:
        return erasure_id in self._known

    def count_of(self, partition: int) -> int:
        """Return how many erasures a partition has."""
        return self._counts[partition]

    def with_erasure(self, erasure: Erasure) -> Erasures:
        """Return the list with one more."""
        return Erasures((*self._list, erasure), self._key)

    @property
    def latest(self) -> dict[int, int]:
        """The floor of the last erasure of each partition that has any: it says which these are.

        Within a partition floors rise in the order of its log, which is the same on every replica.
        """
        if self._latest is None:
            self._latest = {}
            for one in self._list:
                self._latest[one.partition] = max(one.floor, self._latest.get(one.partition, 0))
        return self._latest

    def since(self, latest: Mapping[int, int]) -> Erasures:
        """Return those that came after a list whose `latest` this is."""
        if not latest:
            return self
        grown = {at for at, floor in self.latest.items() if floor > latest.get(at, 0)}
        newer = (
            one
            for one in (self._list if grown else ())
            if one.partition in grown and one.floor > latest.get(one.partition, 0)
        )
        return Erasures(newer, self._key)

    def is_same(self, other: Iterable[Erasure]) -> bool:
        """Are the same accounts erased up to the same places, in whatever order?"""
        return set(self._list) == set(other)

    def is_erased(self, account: str, position: int) -> bool:
        """Is what an account has at a position in the log erased?"""
        return bool(self._list) and position < self.floor(account)

    def touches(self, account: str) -> bool:
        """Was an account erased at all?"""
        return self.floor(account) > 0

    def floor(self, account: str) -> int:
        """Return the position before which an account's events are erased; 0: none is."""
        if not self._list:
            return 0
        text = np.frombuffer(account.encode(errors="surrogateescape"), np.uint8)
        return int(kernels.floor_of(text, 0, len(text), self._key, self.table))

    def floors(
        self, text: NDArray[np.uint8], ends: NDArray[np.int64], first: int, last: int
    ) -> NDArray[np.int64]:
        """Return the floors of accounts number first to last - 1 of texts one after another."""
        found = np.zeros(last - first, np.int64)
        if self._list:
            kernels.floors_of(text, ends, first, self._key, self.table, found)
        return found

    @property
    def table(self) -> kernels.Erased:
        """The erasures as kernels read them."""
        if self._table is None:
            self._table = _table(self._list)
        return self._table

    def keep(self, data: NDArray[np.uint8], matches: NDArray[np.int64]) -> int:
        """Move matches (kernels/gather.py) that are not erased to the front; return how many."""
        if not self._list or not len(matches):
            return len(matches)
        return int(kernels.keep_matches(data, matches, self._key, self.table))

    def to_lists(self) -> list[list[Any]]:
        """Return all as plain values."""
        return [erasure.to_list() for erasure in self._list]


def none_erased(key: NDArray[np.uint64]) -> Erasures:
    """Return the list of no erasures."""
    return Erasures((), key)


def hash_of(key: NDArray[np.uint64], text: NDArray[np.uint8]) -> bytes:
    """Return the keyed hash of an account's text."""
    return np.array(account_hash(key[0], key[1], text, 0, len(text)), np.uint64).tobytes()


def _table(erasures: Sequence[Erasure]) -> kernels.Erased:
    floors: dict[bytes, list[int]] = {}
    for erasure in erasures:
        exact_and_below = floors.setdefault(erasure.account, [0, 0])
        exact_and_below[0] = max(exact_and_below[0], erasure.floor)
        if erasure.subtree:
            exact_and_below[1] = max(exact_and_below[1], erasure.floor)
    index: Index = make_index(max(len(floors), 1))
    for place, account in enumerate(floors):
        first, second = np.frombuffer(account, np.uint64)
        insert(index, first, second, np.uint64(place))
    return kernels.Erased(index, np.array(list(floors.values()) or [[0, 0]], np.int64))

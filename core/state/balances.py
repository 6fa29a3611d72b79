"""Opening balances: what accounts had used in the system that they were moved from.

A balance is a cell at one moment: it counts in every range that holds the moment, and no range can
cut through it.  It belongs to an account, metric version and dimension tuple, and may bring the
members that were seen (`members`) and those that were present from then on (`present`).  Balances
are state of the account's partition; they never expire, and go when the account is erased.

Limits are of a partition and count what its log has brought, so replicas decide alike whatever else
their nodes have.

An import has an id.  Each partition remembers it with a digest of the whole import, so the same one
again changes nothing, and another one under the same id is refused.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels.cells import CELL_WORDS, POSITION_ROW_BITS
from meterd.core.kernels.reduce import ADD
from meterd.core.questions import partition_sets
from meterd.core.questions.folded import (
    ACCOUNT,
    BUCKET,
    METRIC,
    OPERATION,
    POSITION,
    SEAT_WORDS,
    TIMESTAMP,
    Folded,
    merged,
    nothing,
)
from meterd.core.questions.folded_cells import Cuts, joined, partial_of
from meterd.core.questions.mixed_versions import check_balances
from meterd.core.questions.partial_cells import PartialCells
from meterd.core.questions.question import Question, answering
from meterd.core.state.registry import MetricEntry
from meterd.protocol.errors import ImportConflict, TooManyBalances
from meterd.protocol.limits import I64_MIN

# Of each partition, whatever was erased since.  About 400 bytes each in memory and in every
# checkpoint.
BALANCES_MAX: Final = 100_000
IMPORTS_MAX: Final = 100_000

ARRAYS: Final = ("keys", "cells", "member_cell", "members", "seats", "seat_members")


class Balances:
    """All balances.  Changed only through `take`, `erase`, `adopt` and `restore`."""

    def __init__(self) -> None:
        self._parts = [nothing()]  # each at least twice as large as the next, so merging is cheap
        # (partition, id): digest, rows
        self._imports: dict[tuple[int, str], tuple[bytes, int]] = {}
        self._taken: dict[int, list[int]] = {}  # by partition: imports, their rows

    @property
    def count(self) -> int:
        return sum(len(part.keys) for part in self._parts)

    def take(self, command: Mapping[str, Any], partition: int, index: int) -> str:
        """Take the balances of a command at this place of the log; return what became of it.

        Raises ImportConflict, TooManyBalances, and changes nothing then.
        """
        name = (partition, command["id"])
        known = self._imports.get(name)
        if known is not None:
            if known[0] != command["digest"]:
                raise ImportConflict(f"import {command['id']} has brought other balances before")
            return "unchanged"
        rows = command["rows"]
        imports, taken = self._taken.get(partition, (0, 0))
        if taken + len(rows) > BALANCES_MAX or imports >= IMPORTS_MAX:
            raise TooManyBalances(f"a partition has room for {BALANCES_MAX} balances")
        added = _folded(rows, index << POSITION_ROW_BITS)
        self._parts.append(added)
        while len(self._parts) > 1 and 2 * len(self._parts[-1].keys) > len(self._parts[-2].keys):
            self._parts[-2:] = [merged(self._parts[-2:])]
        self._remember(name, command["digest"], len(rows))
        return "imported"

    def _remember(self, name: tuple[int, str], digest: bytes, rows: int) -> None:
        self._imports[name] = digest, rows
        taken = self._taken.setdefault(name[0], [0, 0])
        taken[0] += 1
        taken[1] += rows

    def erase(self, is_gone: Callable[[str], bool]) -> None:
        """Forget the balances of some accounts; that they were imported stays known."""
        self._parts = [part.without(is_gone) for part in self._parts]

    def adopt(self, other: Balances, partitions: NDArray[np.bool_]) -> None:
        """Have what another node has of some partitions (bool[256]), instead of what is here."""

        def is_theirs(account: str) -> bool:
            return bool(partitions[partition_sets.partition(account)])

        kept = [part.without(is_theirs) for part in self._parts]
        taken = [part.without(lambda account: not is_theirs(account)) for part in other._parts]
        self._parts = [merged([*kept, *taken])]
        imports = {name: one for name, one in self._imports.items() if not partitions[name[0]]}
        imports |= {name: one for name, one in other._imports.items() if partitions[name[0]]}
        self._imports, self._taken = {}, {}
        for name, (digest, rows) in imports.items():
            self._remember(name, digest, rows)

    def partial(self, question: Question, entries: Sequence[MetricEntry]) -> PartialCells | None:
        """Return the cells that a question of kind usage or accounts is about, or None.

        Raises MetricVersionsDiffer.
        """
        numbers = [entry.number for entry in entries]
        partials = []
        for part in self._parts:
            asked = _asked(part, question)
            if asked is not None:
                partials.append(partial_of(asked, question, numbers, I64_MIN, Cuts()))
        if not partials:
            return None
        found = joined(partials)
        check_balances(found, entries, answering(list(entries), question.end))
        return found

    def save(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return everything as state and arrays of a checkpoint; neither changes any more."""
        self._parts = [merged(self._parts)]
        held = self._parts[0]
        state = {
            "accounts": held.accounts,
            "dims": held.dims,
            "imports": [[*name, *known] for name, known in self._imports.items()],
        }
        return state, {f"balance_{name}": getattr(held, name) for name in ARRAYS}

    def restore(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `save` gave."""
        held = [arrays[f"balance_{name}"].copy() for name in ARRAYS]
        self._parts = [Folded(state["accounts"], state["dims"], *held)]
        self._imports, self._taken = {}, {}
        for partition, name, digest, *rows in state["imports"]:
            # Earlier versions did not say how many rows there were.
            self._remember((partition, name), digest, rows[0] if rows else 0)


def _asked(part: Folded, question: Question) -> Folded | None:
    """Return what belongs to the accounts that a question is about, or None."""
    names, account = part.accounts, question.account
    if not account:
        return part if names else None
    places = []
    at = bisect_left(names, account)
    if at < len(names) and names[at] == account:
        places.append(at)
    if question.subtree:  # "0" follows "/"
        places += range(bisect_left(names, account + "/"), bisect_left(names, account + "0"))
    if not places:
        return None
    return part.chosen(
        np.isin(part.keys[:, ACCOUNT], places), np.isin(part.seats[:, ACCOUNT], places)
    )


def _folded(rows: Sequence[Sequence[Any]], position: int) -> Folded:
    """Return the rows of a command (core/state/balance_rows.py) as cells."""
    parts = []
    for place, row in enumerate(rows):
        account, number, dims, at, counted, members, present = row
        cells = np.zeros((1, CELL_WORDS), np.int64)
        cells[0, cell_rows.COUNT] = counted[0]
        cells[0, [cell_rows.SUM_LO, cell_rows.SUM_HI]] = np.frombuffer(counted[1], np.int64)
        cells[0, [cell_rows.MIN, cell_rows.MAX]] = counted[2:4]
        cells[0, [cell_rows.LATEST_VALUE, cell_rows.FIRST_VALUE]] = counted[4:6]
        cells[0, [cell_rows.LATEST_TS, cell_rows.FIRST_TS]] = at
        cells[0, [cell_rows.LATEST_POS, cell_rows.FIRST_POS]] = position + place
        keys = np.zeros((1, 4), np.int64)
        keys[0, [METRIC, BUCKET]] = number, at
        seats = np.zeros((len(present) // 16, SEAT_WORDS), np.int64)
        seats[:, METRIC], seats[:, TIMESTAMP] = number, at
        seats[:, POSITION], seats[:, OPERATION] = position + place, ADD
        seen = np.frombuffer(members, np.uint64).reshape(-1, 2)
        there = np.frombuffer(present, np.uint64).reshape(-1, 2)
        owner = np.zeros(len(seen), np.int64)
        parts.append(Folded([account], [dims], keys, cells, owner, seen, seats, there))
    return merged([nothing(), *parts])

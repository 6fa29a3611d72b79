"""The state machine: what every committed record does, the same on every replica.

Identities, totals, the metric registry and the horizon change here and nowhere else, in log order.
Nothing outside the log decides anything: a record brings its leader's time, the number of each
event's metric version, and the time zone transitions of a definition.

Changed only through `apply_events`, `apply_command`, `judge`, `adopt`, `restore`, `evict` and what
moves identities from memory to runs (`begin_flush`, `use_runs`, `end_flush`, `use_filter`).
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from meterd.core.cluster.members import OPS as MEMBER_OPS
from meterd.core.cluster.members import Members
from meterd.core.frozen import frozen
from meterd.core.kernels import adopt as adopting
from meterd.core.kernels import apply as kernels
from meterd.core.kernels import erased as erased_kernels
from meterd.core.kernels import runs as run_kernels
from meterd.core.kernels import tables as table_kernels
from meterd.core.kernels.bloom import HAS_FLUSHING, Filter
from meterd.core.kernels.index import ENTRIES, Index
from meterd.core.kernels.memory import handle_of, reserve
from meterd.core.kernels.tables import Capacity, Tables, make_tables
from meterd.core.log.record_cut import cut, rows_of
from meterd.core.staging import Refusals, code_hash
from meterd.core.state.balances import Balances
from meterd.core.state.erasures import ERASURES_MAX, Erasure, Erasures, erasure_of, none_erased
from meterd.core.state.horizons import BEGINNING, Horizons
from meterd.core.state.identity_runs import Entries, Run, handle_of_runs
from meterd.core.state.metric_table import MetricBook, make_book
from meterd.core.state.registry import Registry
from meterd.core.state.snapshot import CELLS, Snapshot
from meterd.protocol import log_format
from meterd.protocol.errors import (
    UNKNOWN,
    InvariantViolation,
    MeterdError,
    StorageError,
    TooManyErasures,
    error_body,
)
from meterd.protocol.limits import ACCOUNT_SIZE_MAX
from meterd.protocol.log_format import META_GROUP, Record
from meterd.protocol.metric import MetricDefinition

# The largest record: a full one and one request more (core/staging.py).
ROWS_MAX = table_kernels.RECORD_ROWS_MAX
DAY_NS = table_kernels.DAY_NS
# A counter that is always 0.
NONE_FREE = table_kernels.COUNTERS - 1
# Commands of an account: nothing about metrics changes.
ACCOUNT_OPS = ("account_erase", "balance_import")
# How many cells one turn of an eviction looks at: about a millisecond when it frees none, and the
# worst, when it frees all, is bounded by EVICT_FREED_MAX.
EVICT_ROWS = 65_536
EVICT_ROWS_AT_ONCE = 256
EVICT_FREED_MAX = 512


class StateMachine:
    """See the module."""

    def __init__(
        self, identity_key: tuple[int, int], capacity: Capacity, members: Members | None = None
    ) -> None:
        """`members` are those of the cluster's beginning."""
        self._key_pair = identity_key
        self._use(make_tables(capacity, identity_key))
        self._capacity = capacity
        text = capacity.accounts * table_kernels.ACCOUNT_TEXT_BYTES
        dims = capacity.series * table_kernels.SERIES_DIMS_BYTES
        # What each counter, less that of free rows, may reach, the setting that says so, and how
        # much of it an event takes at the most.
        self._fills = (
            (table_kernels.ACCOUNTS, NONE_FREE, capacity.accounts, "accounts", 1),
            (table_kernels.TEXT_USED, NONE_FREE, text, "accounts", ACCOUNT_SIZE_MAX),
            (table_kernels.SERIES_COUNT, NONE_FREE, capacity.series, "series", 1),
            (table_kernels.DIMS_USED, NONE_FREE, dims, "series", kernels.DIMS_SIZE_MAX),
            (table_kernels.CELLS, table_kernels.FREE_CELLS, capacity.cells, "cells", 1),
            (table_kernels.MEMBERS, table_kernels.FREE_MEMBERS, capacity.members, "cells", 1),
        )
        self._room = -1  # events for which there is room in any case; below 0 it is not known
        # What takes the place of `recent` and its journal while they are flushed.
        self._spare_journal = reserve(self.tables.journal.shape, np.uint64)
        self._runs: list[Run] = []
        self.registry = Registry()
        self.horizons = Horizons()
        self.members = members or Members()
        self.erasures = none_erased(self.tables.key)
        self.balances = Balances()
        self.retention_days: int | None = None  # None: nobody has set it, the option counts
        self.leader_time = 0
        self.stored = 0  # events counted, ever
        self.newest_event = BEGINNING
        self._snapshot: Snapshot | None = None
        # Before the periods of this book there is no cell; and of an eviction that is under way,
        # the next row and the book when it began.
        self._evicted: MetricBook | None = None
        self._eviction: tuple[int, MetricBook] | None = None
        self._scratch = kernels.make_scratch(ROWS_MAX)
        self._scratch_handle = handle_of(self._scratch)
        self._book = make_book(self.registry, 0, self.future_ns, identity_key)

    def _use(self, tables: Tables) -> None:
        """Take tables; kernels get their handle, which is good for as long as these are kept."""
        self.tables = tables
        self.handle = handle_of(tables)

    # Applying

    @property
    def horizon(self) -> int:
        """The horizon of all partitions together: what is before it may be dropped."""
        return self.horizons.events

    @property
    def totals_horizon(self) -> int:
        """The same of totals, which are an opening state before it."""
        return self.horizons.totals

    @property
    def future_ns(self) -> int:
        """How far ahead an event may lie in any partition."""
        return self.horizons.future_ns

    def apply_events(
        self, record: Record, chosen: NDArray[np.bool_] | None = None
    ) -> NDArray[np.uint8]:
        """Apply some slices of a record of events, or all of them.

        Returns each row's status | reason << 4, until the next call: UNKNOWN for rows of others.
        """
        self._advance(record)
        self._check_room(record.row_count)
        if chosen is None and self.horizons.alike:
            return self._apply_rows(record, self.horizons.times)
        if chosen is None:
            chosen = np.ones(len(record.slices), np.bool_)
        outcome = np.full(record.row_count, UNKNOWN, np.uint8)
        partitions = record.slices["partition"].astype(np.intp)
        for mask, times in self.horizons.parts(partitions, chosen):
            part = record if mask.all() else cut(record, np.flatnonzero(mask).tolist())
            outcome[rows_of(record, mask)] = self._apply_rows(part, times)
        return outcome

    def _apply_rows(self, record: Record, times: tuple[int, int]) -> NDArray[np.uint8]:
        """Apply all rows of a record; times: horizon and future limit of all its partitions."""
        stored, newest = kernels.apply(
            # Read only, whoever made it: kernels are compiled for that.
            frozen(np.frombuffer(record.payload, np.uint8)),
            record.row_count,
            frozen(np.frombuffer(record.slices, np.uint8)),
            self.handle,
            self._book.handle,
            self._scratch_handle,
            (times[0], record.leader_time + times[1]),
        )
        if stored == kernels.UNKNOWN_METRIC:
            raise InvariantViolation("a record names a metric number that was never given")
        self.stored += stored
        self.newest_event = max(self.newest_event, newest)
        return self._scratch.outcome[: record.row_count]

    def _check_room(self, rows: int) -> None:
        """Raise when a table is over its capacity: another record might not fit behind it."""
        if self._room < 0:
            counters, room = self.tables.counters, []
            for used, free, capacity, key, most in self._fills:
                left = capacity - int(counters[used] - counters[free])
                if left < 0:
                    raise InvariantViolation(f"the tables are full; raise limits.{key}")
                room.append(left // most)
            self._room = min(room)
        self._room -= rows

    def apply_command(
        self, record: Record, chosen: NDArray[np.bool_] | None = None
    ) -> dict[str, Any]:
        """Apply a command of the log, in all its groups or some.

        Returns its result, or an error body under "error".
        """
        self._advance(record)
        command = msgpack.unpackb(record.body, strict_map_key=False)
        groups = record.slices["partition"]
        try:
            result = self._command(command, record, groups if chosen is None else groups[chosen])
        except MeterdError as error:
            return {"error": error_body(error)}
        if command["op"] not in (*ACCOUNT_OPS, *MEMBER_OPS):
            self._renew_book()
        return result

    def _command(
        self, command: dict[str, Any], record: Record, groups: NDArray[np.uint16]
    ) -> dict[str, Any]:
        op, leader_time = command["op"], record.leader_time
        if op == "metric_put":
            definition = MetricDefinition.from_map(command["definition"])
            transitions = tuple((at, offset) for at, offset in command["transitions"])
            outcome = self.registry.put(definition, transitions, command["replace"], leader_time)
            entry = self.registry.find(definition.code)
            assert entry is not None, "it has just been put"
            return {"metric": entry.definition.to_map(), "outcome": outcome}
        if op == "metric_delete":
            self.registry.delete(command["code"])
            return {"code": command["code"]}
        if op == "expire":
            self.horizons.move(groups, command)
            return {"horizon": self.horizon, "totals_horizon": self.totals_horizon}
        if op == "retention_set":
            self.retention_days = command["days"]
            if "horizon" in command:  # of a version whose command moved the horizons as well
                self.horizons.move(groups, command)
            return {"days": self.retention_days, "horizon": self.horizon}
        if op == "account_erase":
            return self._erase(command, record)
        if op == "balance_import":
            taken = self.balances.take(command, *_place(record))
            return {"id": command["id"], "balances": command["count"], "outcome": taken}
        if op in MEMBER_OPS:
            return self.members.apply(command)
        raise InvariantViolation(f"the log holds an unknown command {op!r}")

    def _erase(self, command: dict[str, Any], record: Record) -> dict[str, Any]:
        """Forget what an account has, but for its identities.  Raises TooManyErasures."""
        if not self.erasures.knows(command["id"]):
            if self._snapshot is not None:
                self._snapshot.spoiled = True
            partition, index = _place(record)
            if self.erasures.count_of(partition) >= ERASURES_MAX:
                raise TooManyErasures(f"a partition has room for {ERASURES_MAX} erased accounts")
            erasure = erasure_of(command, partition, index, record.leader_time)
            self.erasures = self.erasures.with_erasure(erasure)
            only = Erasures((erasure,), self.tables.key)
            for number in self._accounts_of_root(erasure.root):
                if only.touches(self.account_text(number)):
                    erased_kernels.erase_account(self.handle, number)
            self.balances.erase(only.touches)
        return {"erased": True, "erasures": len(self.erasures)}

    def _accounts_of_root(self, root: bytes) -> list[int]:
        """Return the numbers of all accounts of a root, given by its hash."""
        words, out = np.frombuffer(root, np.uint64), np.empty(0, np.int64)
        count = erased_kernels.accounts_of_root(self.handle, words, out)
        out = np.empty(count, np.int64)
        erased_kernels.accounts_of_root(self.handle, words, out)
        found: list[int] = out.tolist()
        return found

    def judge(self, refusals: Refusals) -> NDArray[np.uint8]:
        """Say what refused rows are, each as status | reason << 4."""
        outcome = np.empty(len(refusals.rows), np.uint8)
        hashes = np.array([code_hash(self._key_pair, c) for c in refusals.codes], np.uint64)
        handles = (self.handle, self._scratch_handle)
        kernels.judge(refusals.rows, refusals.heap, hashes, handles, self.horizon, outcome)
        return outcome

    def _advance(self, record: Record) -> None:
        if record.machine_version != log_format.MACHINE_VERSION:
            raise InvariantViolation(f"machine version {record.machine_version} in the log")
        if record.registry_version > self.registry.version:
            raise InvariantViolation("a record is made under a registry that is not yet applied")
        # In each group time rises; the latest there was decides what memory keeps, and no outcome.
        self.leader_time = max(self.leader_time, record.leader_time)
        if self.leader_time >= self._book.until:
            self._renew_book()

    def _renew_book(self) -> None:
        self._book = make_book(self.registry, self.leader_time, self.future_ns, self._key_pair)

    def adopt(self, other: StateMachine, groups: NDArray[np.bool_]) -> None:
        """Have what another node's has of some groups (bool[257]) instead of what is here.

        Identities are not among it.  Both go by the same keys; no snapshot may be under way.
        Raises StorageError when there is no room; nothing has changed then.
        """
        chosen, partitions = groups.view(np.uint8), groups[:META_GROUP]
        mine, theirs = self._accounts_in(chosen), other._accounts_in(chosen)
        self._check_room_for(other, chosen, theirs)
        for number in mine:
            erased_kernels.erase_account(self.handle, number)
        adopting.adopt(self.handle, other.handle, chosen)
        self.horizons.adopt(other.horizons, partitions)
        self.balances.adopt(other.balances, partitions)
        for erasure in other.erasures:
            if groups[erasure.partition] and not self.erasures.knows(erasure.id):
                self.erasures = self.erasures.with_erasure(erasure)
        if groups[META_GROUP]:
            self.registry, self.members = other.registry, other.members
            self.retention_days = other.retention_days
        self.leader_time = max(self.leader_time, other.leader_time)
        self.newest_event = max(self.newest_event, other.newest_event)
        self._room, self._evicted = -1, None
        self._renew_book()

    def _accounts_in(self, groups: NDArray[np.uint8]) -> list[int]:
        """Return the numbers of all accounts of some groups."""
        marks = np.zeros(int(self.tables.counters[table_kernels.ACCOUNTS]), np.uint8)
        adopting.mark_accounts(self.handle, groups, marks)
        found: list[int] = np.flatnonzero(marks).tolist()
        return found

    def _check_room_for(
        self, other: StateMachine, groups: NDArray[np.uint8], accounts: list[int]
    ) -> None:
        text = int(other.tables.accounts[accounts, table_kernels.TEXT_SIZE].sum())
        more = np.zeros(4, np.int64)
        adopting.measure(other.handle, groups, more)
        counters = self.tables.counters
        added = (len(accounts), text, *more.tolist())
        for (used, free, capacity, key, _), count in zip(self._fills, added, strict=True):
            if int(counters[used] - counters[free]) + count > capacity:
                raise StorageError(f"the tables have no room for more; raise limits.{key}")

    # Housekeeping

    def evict(self) -> int | None:
        """Free cells of periods that memory no longer keeps: one turn of it, about a millisecond.

        Returns how many, None when there is nothing (more) to do.  Not while a snapshot is taken.
        """
        if self._eviction is None:
            if self._evicted is self._book:
                return None
            self._eviction = (0, self._book)
        (first, begun), before = self._eviction, self._first_kept()
        end, freed = min(self._cells_used, first + EVICT_ROWS), 0
        while first < end and freed < EVICT_FREED_MAX:
            last = min(end, first + EVICT_ROWS_AT_ONCE)
            freed += int(table_kernels.evict_cells(self.handle, before, first, last))
            first = last
        self._eviction = (first, begun)
        if first == self._cells_used:
            self._eviction, self._evicted = None, begun
        return freed

    def _first_kept(self) -> NDArray[np.int64]:
        """Return the beginning of the oldest period that memory keeps, by metric number."""
        first_kept = np.full(len(self.registry.entries) + 1, BEGINNING, np.int64)
        for number, edges in self._book.bounds.items():
            first_kept[number] = edges[0]
        return first_kept

    @property
    def _cells_used(self) -> int:
        """How many rows of cells there are, free ones counted."""
        return int(self.tables.counters[table_kernels.CELLS])

    def fill(self) -> float:
        """Return how full the fullest table is, 0 to 1."""
        counters = self.tables.counters
        return max(
            int(counters[used] - counters[free]) / capacity
            for used, free, capacity, *_ in self._fills
        )

    @property
    def recent(self) -> int:
        """How many identities are in no run yet, nor in one that is being made."""
        return int(self.tables.counters[table_kernels.RECENT])

    @property
    def runs(self) -> list[Run]:
        """The runs that are in use."""
        return self._runs

    @property
    def in_runs(self) -> int:
        """How many identities are in runs, expired ones counted."""
        return sum(int(run.facts[run_kernels.COUNT]) for run in self._runs)

    def begin_flush(self) -> Entries:
        """Make room for new identities; return those there were, of which to make a run.

        They stay known.  Not again before `end_flush`.
        """
        tables = self.tables
        entries: Entries = tables.journal[: self.recent]
        tables.filter.facts[HAS_FLUSHING] = 0
        journal, self._spare_journal = self._spare_journal, tables.journal
        tables.counters[table_kernels.RECENT] = 0
        self._use(tables._replace(recent=tables.flushing, flushing=tables.recent, journal=journal))
        return entries

    def use_runs(self, runs: list[Run]) -> None:
        """Look for identities in these runs from now on."""
        self._runs = list(runs)  # the handle keeps nothing alive
        handle, facts = handle_of_runs(runs)
        self._use(self.tables._replace(runs=handle, run_facts=facts))

    def use_filter(self, fresh: Filter) -> None:
        """Ask a filter, which holds the identities of all runs, before looking into them."""
        fresh.facts[HAS_FLUSHING] = self.tables.filter.facts[HAS_FLUSHING]
        self._use(self.tables._replace(filter=fresh))

    def filter_has_flushing(self) -> None:
        """The filter holds what is being flushed, too."""
        self.tables.filter.facts[HAS_FLUSHING] = 1

    def end_flush(self) -> Index:
        """Forget what was flushed: a run in use, and the filter, have it.

        Returns what somebody must `clear`.
        """
        words, older, facts = self.tables.filter
        if len(words) + len(older) and not facts[HAS_FLUSHING]:
            raise InvariantViolation("the filter would forget what was flushed")
        flushed: Index = self.tables.flushing
        flushed.head[ENTRIES] = 0
        return flushed

    def counts(self) -> dict[str, int]:
        """Return how many of everything there are."""
        counters = self.tables.counters
        return {
            "accounts": int(counters[table_kernels.ACCOUNTS]),
            "series": int(counters[table_kernels.SERIES_COUNT]),
            "cells": int(counters[table_kernels.CELLS] - counters[table_kernels.FREE_CELLS]),
            "members": int(counters[table_kernels.MEMBERS] - counters[table_kernels.FREE_MEMBERS]),
            "identities": self.recent + self.in_runs,
            "events": self.stored,
        }

    # Reading

    def keeps(self, metric_number: int, period_start: int) -> bool:
        """Does memory hold every cell of a metric version in the period that begins here?"""
        edges = self._book.bounds.get(metric_number)
        if edges is None:
            return False
        place = int(np.searchsorted(edges, period_start))
        return place < len(edges) - 1 and int(edges[place]) == period_start

    def account_text(self, number: int) -> str:
        """Return the text of an account."""
        row = self.tables.accounts[number]
        start = int(row[table_kernels.TEXT_START])
        text = self.tables.text[start : start + int(row[table_kernels.TEXT_SIZE])]
        return text.tobytes().decode()

    # Saving

    def save(self) -> Snapshot:
        """Return everything but what runs hold, as it is now; apply may go on.

        Not again before `end_save`.
        """
        if self._snapshot is not None:
            raise InvariantViolation("two snapshots at once")
        tables, counters = self.tables, self.tables.counters
        identities = tables.journal[: self.recent]
        growing = {name: rows[: int(counters[used])] for name, rows, used in self._growing()}
        fixed = {"counters": counters.copy()}
        balances, balance_arrays = self.balances.save()
        fixed |= balance_arrays
        state = {
            "registry": self.registry.to_bytes(),
            "members": self.members.to_bytes(),
            "horizon": self.horizon,
            "totals_horizon": self.totals_horizon,
            "erasures": self.erasures.to_lists(),
            "balances": balances,
            "future_ns": self.future_ns,
            "horizons": self.horizons.packed(),
            "retention_days": self.retention_days,
            "leader_time": self.leader_time,
            "stored": self.stored,
            "newest_event": self.newest_event,
        }
        self._snapshot = Snapshot(state, growing, fixed, identities, tables, self._cells_used)
        return self._snapshot

    def end_save(self) -> None:
        """The snapshot is not used any more."""
        if self._snapshot is not None:
            self._snapshot.end()
            self._snapshot = None

    def restore(self, state: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        """Take over what a snapshot gave (but the identities); only on a new state machine."""
        tables, saved = self.tables, arrays["counters"]
        tables.counters[: len(saved)] = saved  # there were fewer in older files
        tables.counters[table_kernels.RECENT] = 0
        for name, rows, used in [*self._growing(), (CELLS, tables.cells, table_kernels.CELLS)]:
            rows[: int(tables.counters[used])] = arrays[name]
        members = int(tables.counters[table_kernels.MEMBERS])
        table_kernels.rebuild(self.handle, np.zeros(members, np.uint8))
        self.registry = Registry.from_bytes(state["registry"])
        if "members" in state:  # absent in older files: what it was made with
            self.members = Members.from_bytes(state["members"])
        self.horizons.restore(state)
        self.erasures = Erasures(map(Erasure.from_list, state.get("erasures", ())), tables.key)
        if "balances" in state:
            self.balances.restore(state["balances"], arrays)
        self.retention_days = state.get("retention_days")
        self.leader_time, self.stored = state["leader_time"], state["stored"]
        self.newest_event = state["newest_event"]
        self._room = -1
        self._renew_book()

    def restore_identities(self, entries: Entries) -> None:
        """Enter identities that are in no run, oldest first."""
        tables, first = self.tables, self.recent
        tables.journal[first : first + len(entries)] = entries
        kernels.load_identities(
            tables.recent, tables.journal[first : first + len(entries)], self.horizon
        )
        tables.counters[table_kernels.RECENT] = first + len(entries)

    def _growing(self) -> list[tuple[str, NDArray[Any], int]]:
        """Return the tables whose rows stay what they are, but for chains, and their counters."""
        tables = self.tables
        return [
            ("accounts", tables.accounts, table_kernels.ACCOUNTS),
            ("text", tables.text, table_kernels.TEXT_USED),
            ("series", tables.series, table_kernels.SERIES_COUNT),
            ("dims", tables.dims, table_kernels.DIMS_USED),
            ("members", tables.members, table_kernels.MEMBERS),
        ]


def _place(record: Record) -> tuple[int, int]:
    """Return the partition of a command's slice, and its index there."""
    return int(record.slices["partition"][0]), int(record.slices["index"][0])

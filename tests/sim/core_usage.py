"""The state of one simulated node: the product's commit queue, applier and state machine.

Messages of replication and of the log come by two ways, each in its order, as between processes.
A checkpoint is the product's snapshot, kept in memory as the values that its file would hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import numpy as np

from meterd.actors.log.replay import BEGINNING, LoggedBlock, LogReader, Position
from meterd.actors.requests.outcomes import Origin, in_order
from meterd.core.cluster.group_facts import GroupFacts
from meterd.core.kernels.tables import Capacity
from meterd.core.log import commit_queue
from meterd.core.log.commit_queue import CommitQueue, Ready, everything
from meterd.core.log.refused_rows import RefusedRows
from meterd.core.log.scan import Groups
from meterd.core.questions.memory_cells import collect
from meterd.core.questions.question import Question
from meterd.core.state.applier import Applier
from meterd.core.state.machine import StateMachine
from meterd.protocol import log_format
from meterd.protocol.errors import REASONS, STATUSES, UNKNOWN, Corrupt
from meterd.protocol.log_format import (
    ACTIVE_NAME,
    EVENTS,
    NOT_HERE,
    REPAIR,
    Record,
    full_name,
)
from meterd.protocol.raft_messages import Configuration
from tests.sim.checks import require
from tests.sim.core_history import CODE, KEPT_DAY, TODAY, History
from tests.support.crash_disk import CrashDisk
from tests.support.periods import DAY

if TYPE_CHECKING:
    from tests.sim.checks import Checks

# Seeds hold few records: what is done when many wait must happen with them, too.
commit_queue.FEW = 2
KEY = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
CAPACITY = Capacity(30_000, 100, 400, 1_600, 400)
DIRECTORY = "/log"
DAYS = (KEPT_DAY, TODAY, TODAY + DAY)


class Asked(NamedTuple):
    """Who waits for a record: a client's cause, and of events where the rows came from."""

    cause: Any
    origin: Origin | None


class Saved(NamedTuple):
    """A checkpoint."""

    log: dict[str, Any]
    position: Position
    refused: Any
    state: dict[str, Any]
    arrays: dict[str, Any]
    identities: Any


class SimulatedReader(LogReader):
    """The log on a simulated disk."""

    def __init__(self, files: CrashDisk, position: Position, last: int) -> None:
        super().__init__(Path(DIRECTORY), position, last)
        self._files = files

    def _open(self, number: int) -> tuple[Path, memoryview, bool]:
        full = full_name(number) in self._files.names(DIRECTORY)
        path = Path(DIRECTORY, full_name(number) if full else ACTIVE_NAME)
        view = memoryview(bytes(self._files.content(str(path))))
        found = log_format.parse_file_header(view)[0].file_number
        if found != number:
            raise Corrupt(str(path), 0, f"log file {found} where {number} belongs")
        return path, view, not full


class Usage:
    """See the module.  `told` hears of what is resolved, `checks` knows what is committed."""

    def __init__(
        self,
        saved: Saved | None,
        told: Callable[[Ready[Any], Any, Any], None],
        checks: Checks,
        history: History,
        first: Sequence[Configuration],
    ) -> None:
        """`first`: each group's members where its log begins."""
        self.state = StateMachine(KEY, CAPACITY)
        self.applier = Applier(self.state)
        groups, position = Groups(), BEGINNING
        if saved is not None:
            self.state.restore(saved.state, saved.arrays)
            self.state.restore_identities(saved.identities)
            self.applier.refused = RefusedRows.from_map(saved.refused)
            self.applier.facts = GroupFacts.unpacked(saved.log)
            groups, position = Groups.unpacked(saved.log), saved.position
        self.applier.facts.begin(first)
        self.base = groups.index.copy()
        self.queue: CommitQueue[Any] = CommitQueue(
            groups, position, lambda: self.state.registry.version
        )
        self.inbox: tuple[deque[Any], deque[Any]] = (deque(), deque())  # of replication, of the log
        self._told, self._checks, self._history = told, checks, history
        self._blocks: Iterator[LoggedBlock] = iter(())
        self._reading = True
        self._start = 0  # the last record that was in the log
        self._before: dict[int, Any] = {}
        self._replaced: list[tuple[int, int, int]] = []  # in the log of the start: as `find_cuts`

    @property
    def reading(self) -> bool:
        """Is the log of the start still read?"""
        return self._reading

    def applied(self, group: int) -> int:
        return int(self.queue.groups.index[group])

    def begin_replay(self, files: CrashDisk, last: int) -> None:
        """Read the log behind the checkpoint, a block at a time."""
        last_index, cuts = np.zeros(log_format.GROUP_COUNT, np.uint64), []
        if self.queue.groups.sequence < last:
            reader = SimulatedReader(files, Position(*self.queue.position), last)
            last_index, cuts = reader.survey()
            self._blocks = reader.blocks()
        self._start, self.last_index = last, last_index
        self._replaced = cuts
        self.queue.replay(last, last_index, cuts)

    def replay_some(self, count: int) -> None:
        """Take some blocks of the log of the start."""
        for _ in range(count):
            block = next(self._blocks, None)
            if block is None:
                self.queue.end_replay()
                self._reading = False
                break
            self.queue.add_logged(block.records, block.end, None)
        self.apply()

    def turn(self, random: Random) -> None:
        """Take what has come, the two ways mixed as it happens, and apply what may be."""
        while any(self.inbox):
            way = random.choice([way for way in self.inbox if way])
            kind, *fields = way.popleft()
            getattr(self.queue, kind)(*fields)
            if random.random() < 0.5:
                self.apply()
        self.apply()

    def apply(self) -> None:
        for ready in self.queue.ready():
            self._apply(ready)

    def _apply(self, ready: Ready[Any]) -> None:
        record, asked = ready.record, ready.asked
        if record.kind != EVENTS:
            result = self.applier.other(ready)
            if ready.done and asked is not None:
                self._told(ready, result, None)
            return
        refusals = None if asked is None else asked.origin.refusals
        if refusals is not None and record.sequence not in self._before:
            self._before[record.sequence] = self.state.judge(refusals)
        outcome = self.applier.events(ready)
        if outcome is None:
            return
        self._check(record, outcome)
        if asked is None:
            return
        judged = None
        if refusals is not None:
            before, after = self._before.pop(record.sequence), self.state.judge(refusals)
            judged = in_order(asked.origin, record, outcome, before, after)
        self._told(ready, outcome.copy(), judged)

    def _check(self, record: Record, outcome: Any) -> None:
        """I5, I11: what is applied is what is committed, and becomes what the model says."""
        first = 0
        for one in record.slices:
            last = first + int(one["count"])
            rows, first = outcome[first:last].tolist(), last
            group, index = int(one["partition"]), int(one["index"])
            canonical = self._checks.canonical.get(group, [])
            low, high = one["digest"].tolist()
            mine = (int(one["term"]), int(low | high << 64))
            counts = (
                not int(one["flags"]) & NOT_HERE
                and index <= len(canonical)
                and canonical[index - 1] == mine
            )
            unknown = [row & 15 == UNKNOWN for row in rows]
            passed = record.sequence <= self._start and index <= int(self.base[group])
            if not counts or passed:
                require(all(unknown), "I5 applied and not committed", group, index)
                continue
            if int(one["flags"]) & REPAIR and all(unknown):
                continue  # what it repairs was not lost, and was applied where it stood
            if all(unknown) and any(
                at == group and record.sequence < later and gone <= index
                for at, later, gone in self._replaced
            ):
                continue  # it was replaced, then written again, and is applied where it stands now
            told = [(STATUSES[row & 15], REASONS[row >> 4]) for row in rows]
            expected = self._history.groups[group].outcomes[index]
            require(told == expected, "I11 outcomes", group, index, told, expected)

    # Looking.

    def totals(self, account: str = "") -> dict[str, tuple[int, int]]:
        """Return events and sum of accounts, of the days that memory keeps."""
        found: dict[str, tuple[int, int]] = {}
        if not self.state.registry.versions(CODE):
            return found
        for start in DAYS:
            question = Question(
                "usage" if account else "accounts",
                account=account,
                metric=CODE,
                start=start,
                end=start + DAY,
                whole_period=True,
            )
            partial = collect(self.state, question)
            if partial is None:
                continue
            for cell, number in zip(partial.cells, partial.account.tolist(), strict=True):
                name = partial.accounts[number]
                count, total = found.get(name, (0, 0))
                amount = (int(cell[4]) << 64) + (int(cell[3]) & 0xFFFFFFFFFFFFFFFF)
                found[name] = (count + int(cell[2]), total + amount)
        return found

    def check_state(self) -> None:
        """I11, I13, I17: totals are those of the committed history up to what is applied."""
        applied = {group: self.applied(group) for group in self._history.groups}
        expected, found = self._history.totals_at(applied), self.totals()
        require(found == expected, "I11 totals", found, expected)
        stored = self._history.stored_to(applied)
        require(self.state.stored == stored, "I11 events stored", self.state.stored, stored)
        for number, group in self._history.groups.items():
            changes = group.view_changes_to(applied[number])
            mine = int(self.applier.facts.view_changes[number])
            require(mine == changes, "I18 view changes", number, mine, changes)

    # Checkpoints.

    def save(self) -> Saved:
        """Return a checkpoint of this moment."""
        for ready in self.queue.waiting():
            self.applier.wait(ready)
        position = Position(*self.queue.position)
        log = {
            "file_number": position.file_number,
            **self.queue.groups.packed(),
            **self.applier.facts.packed(),
        }
        snapshot = self.state.save()
        try:
            state = msgpack.unpackb(msgpack.packb(snapshot.state), strict_map_key=False)
            arrays, identities = snapshot.arrays(), snapshot.identities.copy()
        finally:
            self.state.end_save()
        log = msgpack.unpackb(msgpack.packb(log), strict_map_key=False)
        refused = msgpack.unpackb(
            msgpack.packb(self.applier.refused.to_map()), strict_map_key=False
        )
        return Saved(log, position, refused, state, arrays, identities)


def read_again(
    saved: Saved | None,
    files: CrashDisk,
    last: int,
    checks: Checks,
    history: History,
    first: Sequence[Configuration],
) -> Usage:
    """Return the state that a checkpoint and the log behind it give; all of it is committed."""
    usage = Usage(saved, lambda *_: None, checks, history, first)
    usage.begin_replay(files, last)
    usage.queue.add_committed(*everything(usage.last_index))
    while usage.reading:
        usage.replay_some(100)
    return usage

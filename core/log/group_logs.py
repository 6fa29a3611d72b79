"""Follows the records of a log and says what each group's log is: mark, ops behind it, term, vote.

Sans-I/O.  Records come in the order of the log, from the position of a checkpoint on.  A slice that
is here replaces whatever its group has from its index on, so not every slice counts at the end:

  * *before the mark*: the checkpoint has it
  * *replaced*: a later slice begins at its index or before
  * *in doubt*: it follows an op that is not known, because reading began behind that.  Then it is
    of a branch that was replaced later; when nothing replaces it the log is damaged.

Everything else must continue its group's log: the next index, no older term, the chained digest.

Content may be lost (core/log/mending.py).  When it is known of which ops, they are *holes*.  When
not, any group may lack an op from there on: its log ends before the first slice that does not
follow, and unless the next one follows it is *uncertain* until the engine says, behind that, that
it is no more.

A group whose only voter is this member keeps no ops: nobody else can lead it, so what its log
holds is committed as soon as it leads itself.  Of the others the ops behind the mark are kept as
columns, about 40 bytes each; a checkpoint bounds how many there are.

Invariants:
  * `groups` is where each group's log ends now; the mark is not behind that
  * ops that are kept lie in chunks, one a record, in the order of the log
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import sectors
from meterd.core.log.scan import SLICE_FAULTS, Groups, first_broken
from meterd.protocol import log_facts, raft_records
from meterd.protocol.errors import RemoteProtocolError
from meterd.protocol.log_facts import UNCERTAIN, LogMark
from meterd.protocol.log_format import (
    CONFIG,
    EVENTS,
    FACTS,
    GROUP_COUNT,
    MARK,
    NOT_HERE,
    REPAIR,
    TERM_ROW,
    Damaged,
    Record,
)
from meterd.protocol.raft_messages import Configuration

OP: Final = np.dtype(
    [
        ("group", "<u2"),
        ("kind", "u1"),
        ("damaged", "u1"),
        ("term", "<u4"),
        ("index", "<u8"),
        ("digest", "<u8", (2,)),
        ("size", "<u4"),
        ("file", "<u4"),
        ("offset", "<u8"),
    ]
)
# Since a record of which nothing is known: nothing of this group was seen; it may lack ops.
GAP, CUT = 1, 2
ROW_SIZE: Final = 27  # bytes a row of events takes in its columns, without its heap

Ops = NDArray[np.void]


class Doubt(NamedTuple):
    """A slice that follows nothing known."""

    file_number: int
    offset: int
    reason: str


class GroupLogs:
    """Change it only through `follow`."""

    def __init__(
        self,
        member: int,
        groups: Groups | None = None,
        first: Sequence[Configuration] = (),
    ) -> None:
        """`groups`: where a checkpoint stands, which is the mark of each group.

        `first`: who was a member of each group in the beginning; by default this node alone.
        """
        self.member = member
        self.groups = Groups() if groups is None else groups
        self.mark_index = self.groups.index.copy()
        self.mark_term = self.groups.term.copy()
        self.mark_digest = self.groups.digest.copy()
        self.term: NDArray[np.uint32] = np.zeros(GROUP_COUNT, np.uint32)
        self.vote: NDArray[np.uint64] = np.zeros(GROUP_COUNT, np.uint64)
        self.uncertain: NDArray[np.bool_] = np.zeros(GROUP_COUNT, np.bool_)
        known = first or [Configuration((member,))] * GROUP_COUNT
        # The mark's configuration, and those of ops behind it, by index.
        self._configurations: list[list[tuple[int, Configuration]]] = [
            [(int(index), one)] for index, one in zip(self.mark_index, known, strict=True)
        ]
        self._alone = np.array([one.voters == (member,) for one in known], np.bool_)
        self._seen = np.zeros(GROUP_COUNT, np.bool_)  # has an op that continues the mark
        self._doubts: dict[int, Doubt] = {}
        self._gaps: NDArray[np.uint8] = np.zeros(GROUP_COUNT, np.uint8)
        self._chunks: list[Ops] = []
        self._repairs: dict[tuple[int, int], Ops] = {}

    @classmethod
    def at(cls, member: int, log: Mapping[str, Any], first: Sequence[Configuration] = ()) -> Self:
        """Return where a checkpoint stands, by its `log`; older ones say only what groups are."""
        logs = cls(member, Groups.unpacked(log), first)
        for group, (voters, learners) in log.get("configurations", {}).items():
            logs.configure(group, Configuration(tuple(voters), tuple(learners)))
        for group, (term, vote, flags) in log.get("terms", {}).items():
            logs.promise(np.array([(group, flags, term, vote)], TERM_ROW))
        return logs

    # What a checkpoint says besides `Groups`.

    def configure(self, group: int, configuration: Configuration) -> None:
        """Say who the members of a group are at its mark; nothing was followed yet."""
        self._configurations[group] = [(int(self.mark_index[group]), configuration)]
        self._alone[group] = configuration.voters == (self.member,)

    def promise(self, rows: NDArray[np.void]) -> None:
        """Take rows of term and vote; the last that says something holds."""
        groups = rows["group"]
        self.term[groups], self.vote[groups] = rows["term"], rows["vote"]
        said = rows["flags"] & UNCERTAIN != 0
        # That it is certain says something only behind word that it was not: rows from before the
        # damage stand there, too.
        self._gaps[groups[self.uncertain[groups] & ~said]] = 0
        self.uncertain[groups] = said
        for group in groups[said].tolist():
            if self._doubts.pop(group, None) is not None:
                self._gaps[group] = CUT

    # Following.

    def follow(self, record: Record, file_number: int) -> None:
        """Move on by one record.  Raises Damaged when it does not follow what was before."""
        self.groups.count(record)
        if record.kind in FACTS:
            if record.kind == MARK:
                self._begin_at(log_facts.parse_mark(record))
            else:
                self.promise(log_facts.parse_terms(record))
            return
        slices, groups = record.slices, self.groups
        absent = slices["flags"] == NOT_HERE
        if (absent & ((slices["index"] | slices["term"]) != 0)).any():
            self._lose(record, file_number)
            return
        configuration = _configuration_of(record) if record.kind == CONFIG else None
        partitions = slices["partition"]
        straight = not slices["flags"].any() and bool(
            (slices["index"] == groups.index[partitions] + np.uint64(1)).all()
            and (slices["term"] >= groups.term[partitions]).all()
        )
        everything = np.ones(len(slices), np.bool_)
        straight = straight and first_broken(record, everything, groups.digest[partitions]) < 0
        if straight:
            self._extend(record, file_number, configuration)
            return
        for row in range(len(slices)):
            flags = int(slices["flags"][row])
            if flags == REPAIR:
                self._repair(record, row, file_number)
            elif flags & NOT_HERE == 0:
                self._take(record, row, file_number, configuration)

    def _extend(
        self, record: Record, file_number: int, configuration: Configuration | None
    ) -> None:
        """All slices of a record continue their groups: the usual case."""
        slices, groups = record.slices, self.groups
        partitions = slices["partition"]
        terms, digests = groups.term[partitions], groups.digest[partitions]
        groups.take_time(record, partitions)
        fault = sectors.follow_slices(slices, groups.term, groups.index, groups.digest)
        if fault:
            raise Damaged(record.offset, SLICE_FAULTS[fault])
        self._seen[partitions] = True
        self._gaps[partitions[self._gaps[partitions] == GAP]] = 0
        for group in [g for g in self._doubts if g in partitions]:
            del self._doubts[group]
        if configuration is not None:
            for row in range(len(slices)):
                self._reconfigure(slices[row], (int(terms[row]), digests[row]), configuration)
        kept = np.flatnonzero(~self._alone[partitions])
        if len(kept):
            self._keep(record, kept, file_number)

    def _lose(self, record: Record, file_number: int) -> None:
        """Take a record whose content is lost.  Raises Damaged where nobody else has it."""
        for row, op in enumerate(record.slices):
            if op["index"]:
                if self._alone[op["partition"]]:
                    raise Damaged(record.offset, "the content of an op is lost, and no peer has it")
                self._take(record, row, file_number, None, lost=True)
            elif op["term"]:
                self._lose_unknown(record)

    def _lose_unknown(self, record: Record) -> None:
        """From here on any group may lack an op."""
        if self._alone.any():
            raise Damaged(record.offset, "a record is lost, and of some groups no peer has it")
        self._gaps[self._gaps == 0] = GAP
        self._gaps[self.uncertain] = CUT
        self.uncertain[:] = False

    def _take(
        self,
        record: Record,
        row: int,
        file_number: int,
        configuration: Configuration | None,
        lost: bool = False,
    ) -> None:
        """Take one slice that is here, whatever it continues; `lost`: its content is not known."""
        op, groups = record.slices[row], self.groups
        group, index = int(op["partition"]), int(op["index"])
        if index <= self.mark_index[group]:
            self._take_old(group, record)
            return
        before = self._before(group, index)
        reason = self._reason_against(record, row, before, lost)
        assert before is not None or reason
        if reason and (self._gaps[group] or self.uncertain[group]):
            self._gaps[group] = CUT
            return
        if reason and self._seen[group]:
            raise Damaged(record.offset, reason)
        if reason:
            self._doubts.setdefault(group, Doubt(file_number, record.offset, reason))
            return
        self._doubts.pop(group, None)
        self._seen[group] = True
        if self._gaps[group] == GAP:
            self._gaps[group] = 0
        if index <= groups.index[group]:
            self._truncate(group, index - 1)
        groups.take_time(record, op["partition"].reshape(1))
        groups.term[group], groups.index[group] = op["term"], index
        groups.digest[group] = op["digest"]
        if configuration is not None and before is not None:
            self._reconfigure(op, before, configuration)
        if not self._alone[group]:
            self._keep(record, np.array([row]), file_number)
            self._chunks[-1]["damaged"] = lost

    def _take_old(self, group: int, record: Record) -> None:
        """A slice before the mark: whatever follows nothing known was replaced by it."""
        if self._seen[group]:
            raise Damaged(record.offset, "a slice replaces what the checkpoint has applied")
        self._doubts.pop(group, None)

    def _reason_against(
        self, record: Record, row: int, before: tuple[int, NDArray[np.uint64]] | None, lost: bool
    ) -> str:
        """Return why a slice does not continue its group's log, or nothing."""
        if before is None:
            return SLICE_FAULTS[sectors.BAD_INDEX]
        term, digest = before
        if record.slices["term"][row] < term:
            return SLICE_FAULTS[sectors.BAD_TERM]
        if lost:
            return ""  # its digest cannot be made again; the next op's is
        look = np.zeros(len(record.slices), np.bool_)
        look[row] = True
        digests = np.repeat(digest.reshape(1, 2), len(record.slices), 0)
        if first_broken(record, look, digests) >= 0:
            return f"the hash chain of partition {record.slices['partition'][row]} is broken"
        return ""

    def _before(self, group: int, index: int) -> tuple[int, NDArray[np.uint64]] | None:
        """Return term and digest of the op before `index`, None when it is not in the log."""
        groups = self.groups
        if index == groups.index[group] + 1:
            return int(groups.term[group]), groups.digest[group].copy()
        if index == self.mark_index[group] + 1:
            return int(self.mark_term[group]), self.mark_digest[group].copy()
        if index > groups.index[group] or self._alone[group]:
            return None
        found = self._find(group, index - 1)
        return None if found is None else (int(found["term"]), found["digest"].copy())

    def _find(self, group: int, index: int) -> Any:
        """Return the op that is kept under an index <= the last; the newest of that index is it."""
        for chunk in reversed(self._chunks):
            row = int(np.searchsorted(chunk["group"], group))
            if row < len(chunk) and chunk["group"][row] == group and chunk["index"][row] == index:
                return chunk[row]
        return None

    def _truncate(self, group: int, last: int) -> None:
        """Forget the configurations and the time behind `last`; ops are sorted out at the end."""
        self._configurations[group] = [c for c in self._configurations[group] if c[0] <= last]
        self.groups.time[group] = 0  # of the op at `last` it is not kept
        self._alone[group] = self._configurations[group][-1][1].voters == (self.member,)

    def _reconfigure(
        self, op: Any, before: tuple[int, NDArray[np.uint64]], configuration: Configuration
    ) -> None:
        """An op that was just taken changes its group's members."""
        group, index = int(op["partition"]), int(op["index"])
        if self._alone[group]:  # all before it is committed, and was not kept
            self._move_mark(group, index - 1, *before)
        self._configurations[group].append((index, configuration))
        self._alone[group] = configuration.voters == (self.member,)

    def _move_mark(self, group: int, index: int, term: int, digest: NDArray[np.uint64]) -> None:
        """What is kept of a group begins behind `index` now."""
        self.mark_index[group], self.mark_term[group] = index, term
        self.mark_digest[group] = digest
        known = self._configurations[group]
        base = [c for c in known if c[0] <= index][-1][1]
        self._configurations[group] = [(index, base), *(c for c in known if c[0] > index)]

    def _begin_at(self, found: LogMark) -> None:
        """A group's log begins at a snapshot's mark now.

        A log that holds the mark's op goes on behind it; any other is replaced.
        """
        group, mark, groups = found.group, found.mark, self.groups
        self._doubts.pop(group, None)
        if mark.index <= self.mark_index[group]:
            return  # the checkpoint is newer
        digest = np.frombuffer(mark.digest.to_bytes(16, "little"), np.uint64)
        if not self.holds(group, mark.index, digest):
            self._truncate(group, int(self.mark_index[group]))
            groups.index[group], groups.term[group] = mark.index, mark.term
            groups.digest[group] = digest
            self._seen[group] = False
        self._move_mark(group, mark.index, mark.term, digest)
        self._configurations[group][0] = (mark.index, mark.configuration)
        self._alone[group] = self._configurations[group][-1][1].voters == (self.member,)

    def holds(self, group: int, index: int, digest: NDArray[np.uint64]) -> bool:
        """Whether the log holds this op at its mark or behind it."""
        last = int(self.groups.index[group])
        if index >= last:
            return index == last and bool((self.groups.digest[group] == digest).all())
        if self._alone[group]:
            return True  # its own snapshot, of what nobody else can have replaced
        op = self._find(group, index)
        return op is not None and bool((op["digest"] == digest).all())

    def contradicts(self, group: int, index: int, digest: NDArray[np.uint64]) -> bool:
        """Whether the log holds another op than this one, at its mark or behind it."""
        if not self.mark_index[group] <= index <= self.groups.index[group]:
            return False  # what is kept behind the last was replaced
        op = self._find(group, index)
        known = None if op is None else op["digest"]
        if index == self.mark_index[group]:
            known = self.mark_digest[group]
        elif index == self.groups.index[group]:
            known = self.groups.digest[group]
        return known is not None and bool((known != digest).any())

    def _repair(self, record: Record, row: int, file_number: int) -> None:
        """The content of a damaged op lies here now, too."""
        op = _ops(record, np.array([row]), file_number)
        group, index = int(op["group"][0]), int(op["index"][0])
        self._repairs[group, index] = op
        if record.kind == CONFIG and self.holds(group, index, op["digest"][0]):
            known = self._configurations[group]
            if index > known[0][0] and all(at != index for at, _ in known):
                insort(known, (index, _configuration_of(record)), key=lambda found: found[0])
                self._alone[group] = known[-1][1].voters == (self.member,)

    def _keep(self, record: Record, rows: NDArray[np.int64], file_number: int) -> None:
        self._chunks.append(_ops(record, rows, file_number))

    # What was found.

    @property
    def is_alone(self) -> bool:
        """Is this member the only voter of every group?"""
        return bool(self._alone.all())

    def may_lose(self, slices: NDArray[np.void]) -> bool:
        """Whether the content of these slices, none: of any, may come from peers again."""
        if not len(slices):
            return not self._alone.any()
        groups = slices["partition"]
        behind = slices["index"] > self.mark_index[groups]
        return bool(behind.all()) and not self._alone[groups].any()

    @property
    def doubt(self) -> Doubt | None:
        """The first slice that follows nothing and was not replaced: damage."""
        return min(self._doubts.values(), default=None)

    def ops(self) -> Ops:
        """Return the ops behind the marks, by group and index; none of a group that is alone."""
        if not self._chunks:
            return np.zeros(0, OP)
        found = np.concatenate(self._chunks)
        found = found[np.argsort(found["group"], kind="stable")]
        group = found["group"].astype(np.int64)
        key = group << 48 | found["index"].astype(np.int64)
        # Replaced is what has an op of the same index or a lower one behind it in its group.
        later = np.minimum.accumulate(key[::-1])[::-1]
        live = np.ones(len(key), np.bool_)
        live[:-1] = key[:-1] < later[1:]
        live &= (found["index"] > self.mark_index[group]) & ~self._alone[group]
        live &= found["index"] <= self.groups.index[group]
        kept: Ops = found[live]
        for (number, index), op in self._repairs.items():
            place = np.flatnonzero((kept["group"] == number) & (kept["index"] == index))
            if len(place) and (kept["digest"][place[0]] == op["digest"][0]).all():
                kept["file"][place[0]], kept["offset"][place[0]] = op["file"][0], op["offset"][0]
                kept["damaged"][place[0]] = 0
        return kept

    def packed(self) -> dict[str, Any]:
        """Return everything as plain values, for a message; `unpack` takes them."""
        return {
            "promises": self.promised().tobytes(),
            "marks": [
                self.mark_index.tobytes(),
                self.mark_term.tobytes(),
                self.mark_digest.tobytes(),
            ],
            "configurations": {
                group: [[index, list(c.voters), list(c.learners)] for index, c in known]
                for group, known in enumerate(self._configurations)
            },
            "ops": self.ops().tobytes(),
        }

    def promised(self) -> NDArray[np.void]:
        """Return term, vote and doubt of all groups as rows of a TERMS record."""
        self._settle()
        return promises(self.term, self.vote, self.uncertain | (self._gaps > 0))

    def _settle(self) -> None:
        """Of a group that is alone the mark is the end; a term is at least that of the last op."""
        groups = self.groups
        for group in np.flatnonzero(self._alone & (self.mark_index < groups.index)).tolist():
            last = int(groups.index[group])
            self._move_mark(group, last, int(groups.term[group]), groups.digest[group])
        # Logs of older versions have no terms.  Who votes for itself has voted for nobody else.
        older = self.term < groups.term
        self.term[older] = groups.term[older]
        self.vote[older] = self.member


class GroupStart(NamedTuple):
    """One group as recovery has found it."""

    term: int
    vote: int
    uncertain: bool
    index: int  # type: ignore[assignment]  # of the mark, which is followed by `ops`
    mark_term: int
    digest: int
    configurations: list[tuple[int, Configuration]]  # the first is the mark's
    ops: Ops


def unpack(packed: Mapping[str, Any]) -> list[GroupStart]:
    """Return the groups that `GroupLogs.packed` described, by number."""
    index, term, digest = packed["marks"]
    marks = (
        np.frombuffer(index, np.uint64).tolist(),
        np.frombuffer(term, np.uint32).tolist(),
        np.frombuffer(digest, np.uint64).reshape(-1, 2).tolist(),
    )
    ops = np.frombuffer(packed["ops"], OP)
    bounds = np.searchsorted(ops["group"], np.arange(GROUP_COUNT + 1))
    found = []
    for group, (row, known) in enumerate(
        zip(
            np.frombuffer(packed["promises"], TERM_ROW),
            packed["configurations"].values(),
            strict=True,
        )
    ):
        low, high = marks[2][group]
        found.append(
            GroupStart(
                int(row["term"]),
                int(row["vote"]),
                bool(row["flags"] & UNCERTAIN),
                marks[0][group],
                marks[1][group],
                low | high << 64,
                [(at, Configuration(tuple(some), tuple(more))) for at, some, more in known],
                ops[bounds[group] : bounds[group + 1]],
            )
        )
    return found


def promises(
    term: NDArray[np.uint32], vote: NDArray[np.uint64], uncertain: NDArray[np.bool_]
) -> NDArray[np.void]:
    """Return term and vote of all groups as rows of a TERMS record."""
    rows = np.zeros(GROUP_COUNT, TERM_ROW)
    rows["group"], rows["term"], rows["vote"] = np.arange(GROUP_COUNT), term, vote
    rows["flags"] = uncertain * UNCERTAIN
    return rows


def _ops(record: Record, rows: NDArray[np.int64], file_number: int) -> Ops:
    """Return some slices of a record as ops."""
    slices = record.slices[rows]
    found = np.zeros(len(rows), OP)
    found["group"], found["kind"] = slices["partition"], record.kind
    for name in ("term", "index", "digest"):
        found[name] = slices[name]
    found["size"] = sizes_of(record)[rows]
    found["file"], found["offset"] = file_number, record.offset
    return found


def sizes_of(record: Record) -> NDArray[np.int64]:
    """Return how much of a payload each slice is, in bytes, for limits."""
    slices = record.slices
    if record.kind != EVENTS:
        return np.full(len(slices), len(record.payload), np.int64)
    return ROW_SIZE * slices["count"].astype(np.int64) + slices["heap_size"]


def _configuration_of(record: Record) -> Configuration:
    try:
        found = raft_records.engine_body(record)
    except RemoteProtocolError as error:
        raise Damaged(record.offset, f"a configuration that cannot be read: {error}") from None
    assert isinstance(found, Configuration)
    return found

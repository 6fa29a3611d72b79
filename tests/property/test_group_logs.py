"""What recovery makes of a log of several groups, against a model in plain Python.

A history is drawn: leaders come and go, logs are cut and continued, slices are refused, snapshots
are installed, checkpoints taken.  The model writes down what every group's log is after each
record; recovery must find the same from the beginning, and from every checkpoint on.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.cluster.proposals import slices_of
from meterd.core.cluster.raft_log import chain_one
from meterd.core.log.group_logs import GroupLogs, GroupStart, unpack
from meterd.core.log.scan import Groups
from meterd.protocol import log_facts, log_format, raft_records
from meterd.protocol.log_facts import LogMark
from meterd.protocol.log_format import (
    CONFIG,
    MARK,
    META,
    NOOP,
    NOT_HERE,
    SLICE,
    TERM_ROW,
    Damaged,
    Record,
    RecordFields,
)
from meterd.protocol.raft_messages import Configuration, Mark
from meterd.protocol.raft_records import RecordSlice

ME = 1
ALONE, THREE = Configuration((1,)), Configuration((1, 2, 3))
GROUPS = (0, 3, 256)

Entry = tuple[int, int, int, int]  # index, term, digest, kind


@dataclass
class GroupModel:
    """One group's log as this node has it."""

    entries: list[Entry] = field(default_factory=list)
    configurations: list[tuple[int, Configuration]] = field(default_factory=lambda: [(0, THREE)])
    committed: int = 0
    applied: int = 0
    base: Entry = (0, 0, 0, 0)
    term: int = 0
    vote: int = 0

    @property
    def last(self) -> Entry:
        return self.entries[-1] if self.entries else self.base

    def at(self, index: int) -> Entry:
        return self.base if index == self.base[0] else self.entries[index - self.base[0] - 1]

    def members(self, index: int) -> Configuration:
        return [c for at, c in self.configurations if at <= index][-1]


class History:
    """A log and what it means."""

    def __init__(self, seed: int, first: Configuration) -> None:
        self.random = Random(seed)
        self.first = first
        self.groups = {g: GroupModel(configurations=[(0, first)]) for g in GROUPS}
        self.records: list[bytes] = []
        self.time = 0

    # Steps

    def events(self) -> None:
        """A proposal that some groups take; in others other leaders have been."""
        taken = [g for g in GROUPS if self.random.random() < 0.7]
        refused = [g for g in GROUPS if g not in taken and self.random.random() < 0.5]
        if not taken:
            return
        self.time += 1
        body = msgpack.packb({"n": self.random.randrange(1000)})
        self._record(META, body, taken, refused, self.time)

    def noop(self) -> None:
        """A leader opens its term in some groups: their terms rise first."""
        taken = [g for g in GROUPS if self.random.random() < 0.5]
        if taken:
            self.terms(taken)
            self._record(NOOP, msgpack.packb({"why": 1}), taken, [], 0)

    def configure(self) -> None:
        group = self.random.choice(GROUPS)
        new = self.random.choice((ALONE, THREE, Configuration((1, 2), (3,))))
        body = {"voters": list(new.voters), "learners": list(new.learners)}
        index = self._record(CONFIG, msgpack.packb(body), [group], [], 0)[group]
        self.groups[group].configurations.append((index, new))
        if new.voters == (ME,):
            self.groups[group].committed = index

    def terms(self, some: list[int] | None = None) -> None:
        some = some or [self.random.choice(GROUPS)]
        rows = np.zeros(len(some), TERM_ROW)
        for row, g in enumerate(some):
            model = self.groups[g]
            model.term = max(model.term, model.last[1]) + 1
            model.vote = self.random.choice((0, 1, 2))
            rows[row] = (g, 0, model.term, model.vote)
        head, payload = log_facts.encode_terms(rows, len(self.records) + 1)
        self.records.append(head + payload)

    def truncate(self) -> None:
        """A new leader's log is shorter: the next record replaces what is behind it."""
        group = self.random.choice(GROUPS)
        model = self.groups[group]
        if model.members(model.last[0]).voters == (ME,):
            return
        keep = self.random.randint(model.committed, model.last[0])
        if keep == model.last[0]:
            return
        self.terms([group])
        del model.entries[keep - model.base[0] :]
        model.configurations = [c for c in model.configurations if c[0] <= keep]
        self._record(NOOP, msgpack.packb({"why": 1}), [group], [], 0)

    def commit(self) -> None:
        for model in self.groups.values():
            model.committed = self.random.randint(model.committed, model.last[0])
            if model.members(model.last[0]).voters == (ME,):
                model.committed = model.last[0]
            model.applied = self.random.randint(model.applied, model.committed)

    def snapshot(self) -> None:
        """A leader's snapshot replaces a log that does not reach so far."""
        group = self.random.choice(GROUPS)
        model = self.groups[group]
        if model.members(model.last[0]).voters == (ME,):
            return
        self.terms([group])
        index, term = model.last[0] + self.random.randint(1, 5), model.term
        digest = self.random.getrandbits(128)
        mark = Mark(index, term, digest, THREE)
        head, payload = log_facts.encode_mark(LogMark(group, mark, "s"), len(self.records) + 1)
        self.records.append(head + payload)
        model.base, model.entries = (index, term, digest, 0), []
        model.configurations = [(index, THREE)]
        model.committed = model.applied = index

    def compact(self) -> None:
        """A snapshot of its own: the log begins later and goes on."""
        group = self.random.choice(GROUPS)
        model = self.groups[group]
        if not model.base[0] < model.applied:
            return
        index, term, digest, _ = model.at(model.applied)
        mark = Mark(index, term, digest, model.members(index))
        head, payload = log_facts.encode_mark(LogMark(group, mark, ""), len(self.records) + 1)
        self.records.append(head + payload)

    def step(self) -> None:
        steps = [self.events] * 4 + [self.noop, self.configure, self.terms, self.truncate]
        steps += [self.truncate, self.commit, self.commit, self.snapshot, self.compact]
        self.random.choice(steps)()

    def _record(
        self, kind: int, body: bytes, taken: list[int], refused: list[int], time: int
    ) -> dict[int, int]:
        payload = body.ljust(log_format.padded(len(body)), b"\0")
        groups = sorted(taken + refused)
        table = np.zeros(len(groups), SLICE)
        table["partition"], table["count"] = groups, 1
        version = 1 if time else 0
        fields = RecordFields(kind, 0, len(body), version, time, len(self.records) + 1)
        found = {}
        for row, group in enumerate(groups):
            if group in refused:
                table["flags"][row] = NOT_HERE
                continue
            model = self.groups[group]
            model.term = max(model.term, model.last[1], 1)
            index, term = model.last[0] + 1, max(model.term, 1)
            digest = chain(model.last[2], term, index, fields, body, payload)
            table["index"][row], table["term"][row] = index, term
            table["digest"][row] = (digest & (1 << 64) - 1, digest >> 64)
            model.entries.append((index, term, digest, kind))
            found[group] = index
            if model.members(index).voters == (ME,):
                model.committed = index
        self.records.append(log_format.encode_record_head(fields, table, payload) + payload)
        return found

    # What a start must find

    def checkpoint(self) -> dict[str, Any]:
        """What usage would save now: all that is applied, whatever waits."""
        groups = Groups()
        for g, model in self.groups.items():
            index, term, digest, _ = model.at(model.applied)
            groups.index[g], groups.term[g] = index, term
            groups.digest[g] = (digest & (1 << 64) - 1, digest >> 64)
        return {
            **groups.packed(),
            "groups": {
                g: [int(groups.term[g]), int(groups.index[g]), groups.digest[g].tobytes()]
                for g in GROUPS
            },
            "configurations": {
                g: [list(part) for part in model.members(model.applied)]
                for g, model in self.groups.items()
            },
        }


def chain(
    before: int, term: int, index: int, fields: RecordFields, body: bytes, payload: bytes
) -> int:
    if fields.kind != META:
        table = np.zeros(1, SLICE)
        record = Record(0, 0, fields.kind, 1, 0, len(body), 0, 0, 0, table, memoryview(payload))
        return chain_one(before, term, index, fields.kind, raft_records.engine_body(record))
    slices = np.frombuffer(slices_of([0], payload), SLICE)
    view = memoryview(payload)
    record = Record(
        0, 0, META, 1, 0, len(body), fields.registry_version, fields.leader_time, 0, slices, view
    )
    return chain_one(before, term, index, META, RecordSlice(record, 0))


def parsed(raw: bytes) -> Record:
    return log_format.parse_record(memoryview(raw))


def followed(records: list[bytes], logs: GroupLogs) -> GroupLogs:
    for number, raw in enumerate(records):
        logs.follow(parsed(raw)._replace(offset=number), 1)
    return logs


def begun(first: Configuration) -> GroupLogs:
    logs = GroupLogs(ME)
    for group in GROUPS:
        logs.configure(group, first)
    return logs


def check(logs: GroupLogs, groups: dict[int, GroupModel]) -> None:
    assert logs.doubt is None
    starts = unpack(msgpack.unpackb(msgpack.packb(logs.packed()), strict_map_key=False))
    for g, model in groups.items():
        found = starts[g]
        expected = model.last
        assert (found.term, found.vote) == (model.term, model.vote) or not model.term
        assert end_of(found) == expected[:3]
        ops = {int(op["index"]): op for op in found.ops}
        assert sorted(ops) == list(range(found.index + 1, expected[0] + 1))
        for index, op in ops.items():
            low, high = op["digest"].tolist()
            found_op = (index, int(op["term"]), low | high << 64, int(op["kind"]))
            assert found_op == model.at(index)
        known = [c for c in model.configurations if c[0] > found.index]
        assert found.configurations[1:] == known
        assert found.configurations[0][1] == model.members(max(found.index, model.base[0]))
        if model.members(expected[0]).voters == (ME,):
            assert not len(found.ops)


def end_of(found: GroupStart) -> tuple[int, int, int]:
    if not len(found.ops):
        return found.index, found.mark_term, found.digest
    last = found.ops[-1]
    low, high = last["digest"].tolist()
    return int(last["index"]), int(last["term"]), low | high << 64


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from((ALONE, THREE)))
def test_every_prefix_of_a_log_gives_what_it_says(
    seed: int, steps: int, first: Configuration
) -> None:
    history, logs = History(seed, first), begun(first)
    done = 0
    for _ in range(steps):
        history.step()
        for raw in history.records[done:]:
            logs.follow(parsed(raw), 1)
        done = len(history.records)
    fix_votes(logs, history)
    check(logs, history.groups)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_start_from_a_checkpoint_finds_the_same(
    seed: int, steps: int, at: int, back: int
) -> None:
    """Its position is anywhere before what it has applied; what was stale before is no damage."""
    history = History(seed, THREE)
    state: dict[str, Any] | None = None
    position = 0
    for step in range(steps):
        history.step()
        if step == min(at, steps - 1):
            state = copy.deepcopy(history.checkpoint())
            applied = {g: model.applied for g, model in history.groups.items()}
            position = history_position(history, applied, back)
    assert state is not None
    state["sequence"] = position
    promised = promises_before(history.records[:position])
    state["terms"] = {g: [term, vote, 0] for g, (term, vote) in promised.items()}
    logs = GroupLogs.at(ME, msgpack.unpackb(msgpack.packb(state), strict_map_key=False))
    followed(history.records[position:], logs)
    fix_votes(logs, history)
    check(logs, history.groups)


def history_position(history: History, applied: dict[int, int], back: int) -> int:
    """A number of records such that all behind it includes all that is not applied."""
    last: dict[int, int] = {}
    for number, raw in enumerate(history.records):
        record = parsed(raw)
        if record.kind == log_format.MARK:
            found = log_facts.parse_mark(record)
            if found.mark.index > applied[found.group]:
                last.setdefault(found.group, number)
        for piece in record.slices:
            g = int(piece["partition"])
            model = history.groups[g]
            index = int(piece["index"])
            live = piece["flags"] == 0 and model.base[0] < index <= model.last[0]
            live = live and model.at(index)[2] == digest_of(piece)
            if live and index > applied[g]:
                last.setdefault(g, number)
    oldest = min(last.values(), default=len(history.records))
    return max(0, oldest - back)


def digest_of(piece: Any) -> int:
    low, high = piece["digest"].tolist()
    return int(low | high << 64)


def promises_before(records: list[bytes]) -> dict[int, tuple[int, int]]:
    found = {}
    for raw in records:
        record = parsed(raw)
        if record.kind == log_format.TERMS:
            for g, _, term, vote in log_facts.parse_terms(record).tolist():
                found[g] = (term, vote)
    return found


def fix_votes(logs: GroupLogs, history: History) -> None:
    """Ops of a term that no record of terms has named: the vote is this node's own."""
    for g, model in history.groups.items():
        if logs.term[g] < model.term:
            model.vote = ME


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(5, 30), st.data())
def test_a_lost_record_is_damage_or_says_nothing_more(
    seed: int, steps: int, data: st.DataObject
) -> None:
    """Whatever is left out in the middle shows, unless all of it was replaced."""
    history = History(seed, THREE)
    for _ in range(steps):
        history.step()
    if not history.records:
        return
    lost = data.draw(st.integers(0, len(history.records) - 1))
    record = parsed(history.records[lost])
    rest = history.records[:lost] + history.records[lost + 1 :]
    logs = begun(THREE)
    try:
        followed(rest, logs)
    except Damaged:
        return
    if logs.doubt is not None:
        return
    marked = {log_facts.parse_mark(r).group for r in map(parsed, rest) if r.kind == MARK}
    for piece in record.slices:
        g, index = int(piece["partition"]), int(piece["index"])
        model = history.groups[g]
        if g in marked:
            continue  # what a snapshot's mark begins anew needs nothing before it
        if piece["flags"] or not model.base[0] < index <= model.last[0]:
            continue
        # Only the last op of a group can be lost without a trace: nothing follows it.
        assert model.at(index)[2] != digest_of(piece) or index == model.last[0]


def test_a_changed_content_is_damage() -> None:
    history = History(3, THREE)
    history.events()
    history.events()
    raw = bytearray(history.records[-1])
    record = parsed(bytes(raw))
    body = bytes([record.payload[0] ^ 1]) + bytes(record.payload[1:])
    logs = begun(THREE)
    followed(history.records[:-1], logs)
    with pytest.raises(Damaged, match="chain"):
        logs.follow(record._replace(payload=memoryview(body)), 1)

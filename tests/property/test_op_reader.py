"""What a follower is sent from the log files is what the group's log holds, or nothing."""

from __future__ import annotations

import os
import select
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.replicating import op_reader
from meterd.actors.replicating.op_reader import Answer, Asked, OpReader
from meterd.core.log.op_places import OpPlace, OpPlaces
from meterd.core.log.record_cut import cut
from meterd.core.raft.events import Damaged, OpsRead, ReadOps
from meterd.protocol.log_format import ACTIVE_NAME, full_name
from meterd.protocol.raft_messages import UNKNOWN
from meterd.protocol.raft_records import head_of
from tests.support.op_history import GROUPS, Known, OpHistory

seeds = st.integers(0, 2**32)


@contextmanager
def history(seed: int, blocks: int) -> Iterator[tuple[OpHistory, OpReader, str]]:
    with tempfile.TemporaryDirectory() as directory:
        log = OpHistory(directory, Random(seed))
        reader = OpReader(directory, answer_size_max=4_000)
        for _ in range(blocks):
            log.block()
            if log.random.random() < 0.1:
                log.replace_some()
            if log.random.random() < 0.1 and any(log.ops.values()):
                log.repair_one()
        try:
            yield log, reader, directory
        finally:
            reader.close()
            log.close()


def asked(log: OpHistory, group: int, first: int, last: int, to: int = 2) -> Asked:
    end = OpPlace(log.log.file_number, log.log.place.offset)
    return Asked(ReadOps(group, to, 9, first, last), end)


def check(found: OpsRead, ops: list[Known], first: int) -> None:
    """What was found is what the log holds from `first` on.

    What came before is said if that needs no look into an older file.
    """
    before = ops[first - 2] if first > 1 else None
    if before is None or before.file_number < ops[first - 1].file_number:
        assert (found.prev_term, found.prev_digest) == (UNKNOWN, 0)
    else:
        assert (found.prev_term, found.prev_digest) == (before.term, words(before.digest))
    assert found.ops
    for at, op in enumerate(found.ops):
        known = ops[first - 1 + at]
        assert op[:3] == (first + at, known.term, words(known.digest))
        alone = cut(op.body.record, [op.body.number])
        assert (head_of(alone), bytes(alone.payload)) == (known.head, known.payload)
    assert len(found.ops) == 1 or sum(op.size for op in found.ops) <= 4_000


def words(digest: tuple[int, int]) -> int:
    return digest[0] | digest[1] << 64


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 60), st.data())
def test_ops_come_back_as_they_are_in_the_log(seed: int, blocks: int, data: st.DataObject) -> None:
    with history(seed, blocks) as (log, reader, _):
        for _ in range(6):
            group = data.draw(st.sampled_from(GROUPS))
            ops = log.ops[group]
            if ops:
                first = data.draw(st.integers(1, len(ops)))
                last = data.draw(st.integers(first, len(ops)))
                found = reader.read(asked(log, group, first, last))
                assert isinstance(found, OpsRead)
                check(found, ops, first)
            log.block()


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(0, 2**32))
def test_a_damaged_op_is_reported_and_never_sent(seed: int, where: int) -> None:
    with history(seed, 20) as (log, reader, directory):
        group = Random(where).choice([g for g in GROUPS if log.ops[g]])
        ops = log.ops[group]
        index = Random(where).randint(1, len(ops))
        known = ops[index - 1]
        active = known.file_number == log.log.file_number
        path = f"{directory}/{ACTIVE_NAME if active else full_name(known.file_number)}"
        with open(path, "r+b") as file:
            file.seek(known.offset + known.record_size - 16)
            byte = file.read(1)[0]
            file.seek(known.offset + known.record_size - 16)
            file.write(bytes([byte ^ 4]))
        found = reader.read(asked(log, group, index, len(ops)))
        assert found == Damaged(index)
        first = max(1, index - 3)
        while first < index:
            found = reader.read(asked(log, group, first, len(ops)))
            if found is not None and isinstance(found, Damaged):
                assert ops[found.index - 1].offset == known.offset
                break
            assert isinstance(found, OpsRead)
            check(found, ops, first)
            first = found.ops[-1].index + 1
            assert first <= index


def test_what_no_file_holds_any_more_is_said() -> None:
    with history(5, 150) as (log, reader, directory):
        group = GROUPS[0]
        ops = log.ops[group]
        assert log.log.file_number > 3
        assert isinstance(reader.read(asked(log, group, 1, 5)), OpsRead)
        os.unlink(f"{directory}/{full_name(1)}")
        gone = [n for n, op in enumerate(ops, 1) if op.file_number == 1]
        assert reader.read(asked(log, group, gone[-1], len(ops))) is None
        found = reader.read(asked(log, group, gone[-1] + 1, len(ops)))
        assert isinstance(found, OpsRead)
        check(found, ops, gone[-1] + 1)
        assert isinstance(reader.read(asked(log, group, gone[-1] + 2, len(ops))), OpsRead)


def test_damage_among_the_headers_ends_what_can_be_read() -> None:
    with history(6, 150) as (log, reader, directory):
        with open(f"{directory}/{full_name(2)}", "r+b") as file:
            file.seek(4096)
            file.write(b"damage")
        for group in GROUPS:
            ops = log.ops[group]
            found = reader.read(asked(log, group, 1, 3))
            assert found is None
            last = next(n for n in range(len(ops), 1, -1) if ops[n - 2].file_number > 2)
            assert isinstance(reader.read(asked(log, group, last, len(ops))), OpsRead)


def test_memory_is_bounded_and_old_files_are_indexed_again() -> None:
    with history(7, 200) as (log, reader, _):
        reader._places = OpPlaces(entries_max=50)
        for group in GROUPS:
            ops = log.ops[group]
            for first in (len(ops), len(ops) // 2, 1, len(ops) // 3, len(ops)):
                found = reader.read(asked(log, group, first, len(ops)))
                assert isinstance(found, OpsRead)
                check(found, ops, first)
        held = [index.size for index in reader._places._indexes.values()]
        assert len(held) == 1 or sum(held) <= 50


def test_answers_come_through_the_descriptor_and_the_newest_request_counts() -> None:
    with history(8, 100) as (log, reader, _):
        wanted = {}
        for round_ in range(2):
            for group in GROUPS:
                for to in (2, 3):
                    first = 1 + round_ + to
                    wanted[group, to] = first
                    reader.ask(asked(log, group, first, len(log.ops[group]), to))
            reader.go()
        seen: dict[tuple[int, int], int] = {}
        while seen != wanted:
            assert select.select([reader.descriptor], [], [], 30)[0], "no answer"
            for answer in reader.take():
                assert isinstance(answer.asked, Asked)
                assert isinstance(answer.found, OpsRead)
                group = answer.asked.wanted.group
                check(answer.found, log.ops[group], answer.asked.wanted.first)
                seen[group, answer.found.to] = answer.asked.wanted.first
        assert reader.take() == []


def test_what_came_before_is_not_looked_for_where_nothing_can_be_read() -> None:
    """The file before is damaged: what is asked for is whole, and goes."""
    with history(6, 150) as (log, reader, directory):
        with open(f"{directory}/{full_name(2)}", "r+b") as file:
            file.seek(4096)
            file.write(b"damage")
        seen = 0
        for group in GROUPS:
            ops = log.ops[group]
            for first in range(2, len(ops) + 1):
                if ops[first - 2].file_number == 2 < ops[first - 1].file_number:
                    found = reader.read(asked(log, group, first, len(ops)))
                    assert isinstance(found, OpsRead)
                    check(found, ops, first)
                    seen += 1
        assert seen


def test_an_op_that_was_repaired_does_not_hide_what_follows_it() -> None:
    with history(9, 30) as (log, reader, _):
        for _ in range(40):
            log.repair_one()
            log.block()
        for group in GROUPS:
            ops = log.ops[group]
            for first in range(1, len(ops) + 1):
                found = reader.read(asked(log, group, first, len(ops)))
                assert isinstance(found, OpsRead)
                check(found, ops, first)


def test_what_is_asked_again_while_it_is_read_is_read_once() -> None:
    with history(8, 20) as (log, reader, _):
        group = GROUPS[0]
        wanted = asked(log, group, 1, 3)
        for _ in range(50):
            reader.ask(wanted)
            reader.go()
            select.select([reader.descriptor], [], [], 0.01)
        answers = reader.take()
        assert [answer.asked for answer in answers] == [wanted]
        assert not reader._under_way and not reader._answers
        reader.ask(wanted)
        reader.go()
        assert select.select([reader.descriptor], [], [], 30)[0], "no answer"
        assert len(reader.take()) == 1


def answers_of(reader: OpReader, count: int) -> list[Answer]:
    found: list[Answer] = []
    while len(found) < count:
        assert select.select([reader.descriptor], [], [], 30)[0], "no answer"
        found += reader.take()
    return found


def test_many_groups_are_answered_from_one_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that begin further on are answered after the others, and all with what is right."""
    monkeypatch.setattr(op_reader, "FEW", 2)
    monkeypatch.setattr(op_reader, "STRETCH_GROUPS", 1)
    monkeypatch.setattr(op_reader, "STRETCH_SIZE", 8 * 1024)
    with history(8, 120) as (log, reader, _):
        firsts = dict.fromkeys(GROUPS[:-1], 1) | {GROUPS[-1]: len(log.ops[GROUPS[-1]])}
        for group, first in firsts.items():
            reader.ask(asked(log, group, first, len(log.ops[group])))
        reader.go()
        together = answers_of(reader, len(GROUPS) - 1)
        late = answers_of(reader, 1)
        places = []
        for answer in together + late:
            assert isinstance(answer.asked, Asked)
            assert isinstance(answer.found, OpsRead)
            group = answer.asked.wanted.group
            check(answer.found, log.ops[group], firsts[group])
            known = [log.ops[group][op.index - 1] for op in answer.found.ops]
            places += [(one.file_number, one.offset) for one in known]
        assert [answer.asked.wanted.group for answer in late] == [GROUPS[-1]]  # type: ignore[union-attr]
        begin = min(places)
        limit = (begin[0], begin[1] + 8 * 1024)
        assert all(place < limit for place in places[:-1]) and len(places) > len(GROUPS)

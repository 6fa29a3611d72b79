"""Ops of many groups, record by record, say what was said group by group."""

from __future__ import annotations

from collections import defaultdict
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meterd.core.cluster.weaving import weave
from meterd.core.cluster.wire_check import check_envelope
from meterd.core.cluster.wire_envelopes import ready_to_send
from meterd.protocol.log_format import NOOP
from meterd.protocol.raft_messages import UNKNOWN, Append, Op, TimeoutNow
from meterd.protocol.raft_records import RecordSlice
from meterd.protocol.raft_slices import AppendSlices
from meterd.protocol.raft_wire import decode, encode
from tests.support.peer_messages import TERM, Histories, envelope, event, events_record

# Of each record the groups that have a slice; None: the engine of group 1 wrote something.
logs = st.lists(st.none() | st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=12)
Said = dict[int, list[tuple[Any, ...]]]


def history(log: list[set[int] | None]) -> tuple[Histories, dict[int, list[Op]], dict[int, int]]:
    """Return the past, what each group has appended since, and the digest it begins with."""
    past = Histories(3)
    begin = {group: past.digest_at(group) for group in range(10)}
    ops: dict[int, list[Op]] = defaultdict(list)
    for number, groups in enumerate(log):
        if groups is None:
            ops[1].append(past.op(1, NOOP, 1))
            continue
        rows = {group: [event(number * 10 + group)] * (1 + group % 3) for group in sorted(groups)}
        record = events_record(rows)._replace(sequence=number)
        for message in past.slices(record).expanded():
            ops[message.group] += message.ops
    return past, ops, begin


def appends(ops: dict[int, list[Op]], begin: dict[int, int], unknown: set[int]) -> list[Append]:
    found = []
    for group, some in ops.items():
        before = (UNKNOWN, 0) if group in unknown else (TERM, begin[group])
        prev = some[0].index - 1
        found.append(Append(group, TERM + group, prev, *before, tuple(some), prev + 1))
    return found


def said(messages: list[Any]) -> Said:
    """What is appended to each group, op by op, with what is said of the one before."""
    found: Said = defaultdict(list)
    for message in messages:
        for one in message.expanded() if isinstance(message, AppendSlices) else [message]:
            if not isinstance(one, Append):
                continue
            before = (one.prev_index, one.prev_term, one.prev_digest)
            for op in one.ops:
                content = op.body if op.kind == NOOP else slice_of(op.body)
                fields = (op.index, op.term, op.digest, op.kind, op.size, content)
                found[one.group].append((one.term, one.commit, *before, fields))
                before = (op.index, op.term, op.digest)
    return found


def slice_of(body: RecordSlice) -> tuple[int, ...]:
    row = body.record.slices[body.number]
    return int(row["partition"]), int(row["index"]), int(row["count"])


@given(logs, st.sets(st.integers(0, 9)), st.integers(0, 99))
def test_they_say_the_same(log: list[set[int] | None], unknown: set[int], seed: int) -> None:
    _, ops, begin = history(log)
    messages: list[Any] = [*appends(ops, begin, unknown), TimeoutNow(1, 2, 3)]
    Random(seed).shuffle(messages)
    woven = list(weave(tuple(messages)))
    assert said(woven) == said(messages)
    assert sum(type(one) is TimeoutNow for one in woven) == 1


@given(logs, st.sets(st.integers(0, 9)))
def test_they_arrive_and_are_found_right(log: list[set[int] | None], unknown: set[int]) -> None:
    _, ops, begin = history(log)
    messages = appends(ops, begin, unknown)
    sent = envelope(*messages)
    arrived: list[Any] = []
    for ready in ready_to_send(sent):
        whole = decode(encode(ready.envelope))
        arrived += check_envelope(whole, lambda group, _: begin[group]).messages
    known = [
        one._replace(prev_digest=begin[one.group]) if one.prev_term == UNKNOWN else one
        for one in messages
    ]
    assert said(arrived) == said(known)


def test_a_record_goes_once() -> None:
    _, ops, begin = history([set(range(10))] * 20)
    woven = list(weave(tuple(appends(ops, begin, set()))))
    assert [type(one) for one in woven] == [AppendSlices] * 20
    assert all(len(one.ops.groups) == 10 for one in woven)


def test_what_is_not_in_order_is_left_as_it_is() -> None:
    """An op that was repaired lies behind what follows it; and the same may be sent again."""
    _, ops, begin = history([set(range(10))] * 3)
    late = ops[4][1].body.record._replace(sequence=99)
    ops[4][1] = ops[4][1]._replace(body=RecordSlice(late, ops[4][1].body.number))
    messages = tuple(appends(ops, begin, set()))
    assert tuple(weave(messages)) == messages
    _, ops, begin = history([set(range(10))] * 3)
    twice = tuple(appends(ops, begin, set()))
    assert tuple(weave(twice + twice)) == twice + twice

"""Everything that events and questions may ask of a node's kernels, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import msgpack
import numpy as np

from meterd.actors.keeping.checkpoints import Checkpoints
from meterd.actors.keeping.identity_store import RUNS_PER_LEVEL, IdentityStore
from meterd.core.questions.answers import AnswerContext, answer_accounts, answer_usage
from meterd.core.questions.memory_cells import collect
from meterd.core.questions.question import Question
from meterd.core.state.balance_rows import import_commands
from meterd.core.state.erasures import erasure_command
from meterd.core.state.identity_runs import Entries
from meterd.core.state.machine import StateMachine
from meterd.protocol import log_format
from tests.support.log_directory import finish
from tests.support.periods import DAY
from tests.support.pipeline import Pipeline

NOW = 20_000 * DAY
AGGREGATIONS = ("count", "sum", "min", "max", "avg", "latest", "first", "unique")


def every_request(directory: str) -> None:
    """Send every shape of request, ask every kind of question, save, load and replay."""
    pipeline = Pipeline()
    for name in AGGREGATIONS:
        pipeline.put(NOW, {"code": name, "aggregation": name, "dimensions": ["region"]})
    seats = {"code": "seats", "aggregation": "unique", "unique_on": "user"}
    pipeline.put(NOW, seats)
    pipeline.events(NOW, *_plain())
    pipeline.ingest(NOW, _columns(True), _columns(False))
    pipeline.events(NOW, *_plain())
    pipeline.events(NOW, [{"account": "a", "id": "x", "metric": "none", "timestamp": NOW}])
    _ask(pipeline.state)
    pipeline.command(NOW, op="metric_delete", code="sum")
    pipeline.command(NOW, op="expire", horizon=NOW - DAY, future_ns=DAY)
    pipeline.command(NOW, op="retention_set", days=90, horizon=NOW - DAY)
    balance = {"account": "a/b", "metric": "seats", "at": NOW, "count": 1, "members": ["x"]}
    value = {"account": "a/b", "metric": "unique", "at": NOW, "count": 1, "members": [5]}
    key = pipeline.state.tables.key
    commands = import_commands("1", [balance, value], pipeline.state.registry, key)
    for partition, command in commands.items():
        pipeline.account_command(NOW, partition, command)
    _ask(pipeline.state)
    command, partition = erasure_command(key, "a", True, "1")
    pipeline.account_command(NOW, partition, command)
    _ask(_restored(pipeline, Path(directory)))
    _ask(_replayed(pipeline))


def _plain() -> list[list[dict[str, Any]]]:
    base = {"account": "a/b", "timestamp": NOW, "properties": {"region": "eu", "user": "u"}}
    good = [base | {"metric": name, "id": f"{name}-1", "value": "2"} for name in AGGREGATIONS]
    seat = base | {"metric": "seats", "id": "s", "operation": "add"}
    odd = [
        base | {"metric": "none", "id": "1"},
        base | {"metric": "sum", "id": "", "value": 1},
        base | {"metric": "sum", "id": "2", "value": "0.0000001"},
        base | {"metric": "sum", "id": "3", "timestamp": NOW + 9 * DAY},
        base | {"metric": "sum", "id": "4", "account": "ü" * 60},
        base | {"metric": "sum", "id": str(UUID(int=5)), "properties": {}},
    ]
    return [good, [seat], odd, odd[:1]]


def _columns(as_uuid: bool) -> bytes:
    ids = {"uuid": bytes(16)}
    if not as_uuid:
        ids = {"offsets": bytes(4) + b"\1\0\0\0", "text": b"i"}
    fields = {
        "n": 1,
        "timestamp": NOW.to_bytes(8, "little"),
        "value": (5).to_bytes(8, "little"),
        "exponent": 2,
        "metric": {"values": ["sum"]},
        "account": {"values": ["a"], "index": bytes(4)},
        "id": ids,
        "properties": [{"key": "region", "values": ["eu"], "index": bytes(4)}],
    }
    return bytes(msgpack.packb(fields))


def _ask(state: StateMachine) -> None:
    for code in (*AGGREGATIONS, "seats"):
        (start, *_), end = state._book.bounds[1][1:], state._book.bounds[1][2]
        for account, subtree in (("a", True), ("a/b", False), ("none", False), ("none", True)):
            question = Question("usage", account, subtree, code, int(start), int(end))
            partial = collect(state, question)
            state.balances.partial(question, state.registry.versions(code))
            if partial is not None:
                entries = state.registry.versions(code)
                answer_usage(question, entries, partial, AnswerContext("", 0))
        question = Question("accounts", metric=code, start=int(start), end=int(end))
        partial = collect(state, question)
        if partial is not None:
            finish(answer_accounts(question, state.registry.versions(code), partial))


def _restored(pipeline: Pipeline, directory: Path) -> StateMachine:
    """What a start makes of what was saved; the identities went through files twice."""
    state = pipeline.state
    store = IdentityStore(str(directory), state, flush_at=1)
    checkpoints = Checkpoints(str(directory), store)
    checkpoints.save(state, {"position": []})
    checkpoints.step(wait=True)
    fresh = StateMachine(pipeline.key, pipeline.capacity)
    opened = IdentityStore(str(directory), fresh, flush_at=1)
    assert Checkpoints(str(directory), opened).load(fresh.restore)
    for _ in range(RUNS_PER_LEVEL):
        opened.step(0.0, may_flush=True)
        opened.finish()
        opened.finish()
        fresh.restore_identities(saved_identities(state))
    return fresh


def saved_identities(state: StateMachine) -> Entries:
    """Other identities each time, so that runs are not empty."""
    entries = state.tables.journal[: state.recent].copy()
    entries[:, 0] += np.uint64(1)
    return entries


def _replayed(pipeline: Pipeline) -> StateMachine:
    """Records as they are read from a block of a log file, which is mapped and read-only."""
    fresh = StateMachine(pipeline.key, pipeline.capacity)
    data = b"".join(append.head + bytes(append.payload) for append in pipeline.appended)
    at = 0
    while at < len(data):
        record = log_format.parse_record(memoryview(data), at)
        at += record.size
        if record.kind == log_format.EVENTS:
            fresh.apply_events(record)
        else:
            fresh.apply_command(record)
    return fresh

"""Opens a data directory in this process as a node does, and asks it: no sockets, nothing saved.

The files are checked and replayed by the code of the actors, in the order of a start; questions are
answered from memory or from segments and log files, whichever a node would use.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack
import numpy as np

from meterd.actors.actor import Lifeline
from meterd.actors.files.disk import LocalDisk
from meterd.actors.log.replay import replay
from meterd.actors.log.wal_recovery import Owner, Recovery
from meterd.actors.options import Options
from meterd.actors.questions import reading
from meterd.actors.questions.log_files import LogFiles, View
from meterd.actors.questions.zone_files import transitions
from meterd.actors.starting import identity, start_checks, storage_versions
from meterd.actors.usage import Usage
from meterd.core.questions.answers import AnswerContext, answer_usage
from meterd.core.questions.memory_cells import collect
from meterd.core.questions.question import Question, resolve_question
from meterd.core.staging import Stage
from meterd.protocol import log_format
from meterd.protocol.columns import decode_events
from meterd.protocol.errors import Corrupt
from meterd.protocol.messages import check_request
from tests.support.log_directory import finish
from tests.support.pipeline import proposal_of
from tests.support.replica import Replica
from tests.support.stored_directory import ACCOUNTS, BASE, SPAN, event_of


class Quiet(Usage):
    """Tells nobody and saves nothing."""

    def send(self, actor: str, frames: list[bytes]) -> None:
        pass

    def maybe_save(self) -> None:
        pass


class OfflineNode:
    """One start.  Raises Corrupt, BootFailed, as a node ends with."""

    def __init__(self, directory: Path, now: int) -> None:
        """`now`: the moment of the questions (UTC ns)."""
        self._now = now
        node_id = identity.read(str(directory)).node_id
        limits = dict.fromkeys(("accounts", "series", "cells"), 10_000)
        sections = {"node": {"data_dir": str(directory), "id": node_id}, "limits": limits}
        self._pipe = os.pipe()
        try:
            sequence = self._check(directory)
            self.usage = Quiet(
                Options.from_mapping(sections), str(directory), Lifeline(self._pipe[1])
            )
            self.usage.open()
            replay(self.usage, sequence)
        except BaseException:
            self.close()
            raise
        self._files = LogFiles(str(directory), self.usage.who.identity_key)

    def _check(self, directory: Path) -> int:
        who = identity.read(str(directory))
        storage_versions.refuse_newer(str(directory))
        disk, path = LocalDisk(), str(directory)
        owner = Owner(who.node_id, who.cluster_id, who.identity_key)
        start = start_checks.check_checkpoints(disk, path)
        end = Recovery(disk, path, owner, start, lambda _: None).run()
        start_checks.check_segments(disk, path, owner, start)
        if end is None:
            raise Corrupt(path, 0, "there is no log")
        return end.groups.sequence

    def close(self) -> None:
        for descriptor in self._pipe:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Questions

    def _ask(self, kind: str, **fields: Any) -> Any:
        state, usage = self.usage.state, self.usage
        asked = check_request(kind, msgpack.packb(fields), None)
        question = resolve_question(kind, asked, state.registry, self._now, transitions)
        if question.from_totals:
            partial = collect(state, question)
            if partial is not None:
                return self._answer(question, partial)
        refused = {number: usage.refused.packed(number) for number in usage.refused.files()}
        end = (usage.position.file_number, usage.position.offset)
        view = View(self._files, end, refused)
        if kind == "events":
            return finish(reading.read_events(view, question, state.registry, state.horizon))
        partial = finish(reading.read_cells(view, question, state.registry))
        return self._answer(question, partial)

    def _answer(self, question: Question, partial: Any) -> dict[str, Any]:
        entries = self.usage.state.registry.versions(question.metric)
        return answer_usage(question, entries, partial, AnswerContext("0", 0))

    def answers(self, listed: int) -> dict[str, Any]:
        """What `stored_directory.answers` gives of a running node.  Raises Corrupt, Internal.

        `listed`: number of the account whose events are listed; others are only counted.
        """
        span = {"start": BASE, "end": BASE + SPAN}
        found: dict[str, Any] = {"bytes": {}, "counts": {}, "seats": {}, "current": {}}
        for number in range(ACCOUNTS):
            name = f"acme/{number}"
            total = self._ask("usage", account=name, metric="bytes", **span)
            seats = self._ask("usage", account=name, metric="seats", **span)
            current = self._ask("usage", account=name, metric="bytes")
            found["bytes"][name] = int(total["value"] or 0)
            found["seats"][name] = int(seats["value"] or 0)
            found["current"][name] = int(current["value"] or 0)
            found["counts"][name] = total["count"] + seats["count"]
            if number == listed % ACCOUNTS:
                found["counts"][name] = self._count_listed(name)
        found["events"] = sum(found["counts"].values())
        return found

    def _count_listed(self, account: str) -> int:
        listed: list[str] = []
        after: dict[str, Any] = {}
        while True:
            fields = {"account": account, "start": BASE, "end": BASE + SPAN, "limit": 10_000}
            page = self._ask("events", **fields, **after)
            listed += [event["id"] for event in page["events"]]
            if page["next"] is None:
                assert len(listed) == len(set(listed))
                return len(listed)
            after = {"after": page["next"]}

    def send_again(self, numbers: list[int]) -> set[int]:
        """Send events that were stored; return what became of them (`protocol/errors.py`)."""
        key = self.usage.who.identity_key
        words = (int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))
        stage = Stage(4_096, words)
        stage.use(self.usage.state.registry)
        events = [_as_map(number) for number in numbers]
        assert stage.add(decode_events(msgpack.packb({"events": events}), None), 0) == []
        append = Replica(self.usage.groups).propose(proposal_of(stage.pack(), stage), self._now)
        record = log_format.parse_frames(append.head, bytes(append.payload))
        return set(np.unique(self.usage.state.apply_events(record)).tolist())


def _as_map(number: int) -> dict[str, Any]:
    event = event_of(number)
    names = ("account", "metric", "value", "timestamp", "id", "operation", "properties")
    return {name: getattr(event, name) for name in names} | {"value": str(event.value)}

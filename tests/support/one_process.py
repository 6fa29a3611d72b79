"""A node without processes and sockets: its actors in this process, their messages in queues.

Everything else is the real thing: the actors, the bytes between them, files, threads.  The router
is missing: requests are put into the inboxes, answers are taken from where they are sent.  Limits
are so small that a few hundred events make log files, runs, segments.

It is for a process of its own (`apart`): it changes constants and the clock, and when it ends by a
fault it leaves threads and descriptors behind.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import msgpack

from meterd.actors import usage
from meterd.actors.actor import Actor, Lifeline
from meterd.actors.frames.bundle import bundle, unbundle
from meterd.actors.housekeeping import compaction, log_retention, segments
from meterd.actors.ingest import Ingest
from meterd.actors.keeping import identity_store
from meterd.actors.machine.notify import Notifier
from meterd.actors.node import claim_directory
from meterd.actors.options import Options, Wal
from meterd.actors.query import Query
from meterd.actors.replication import Replication
from meterd.actors.retention_sweeper import RetentionSweeper
from meterd.actors.usage import Usage
from meterd.actors.wal_writer import WalWriter
from meterd.protocol.body import unpack_answer
from meterd.protocol.envelope import RequestHeader, decode_answer, encode_request
from meterd.protocol.messages import kind_of

ACTORS = (WalWriter, Replication, Usage, Ingest, Query, RetentionSweeper)
LOG_FILE_SIZE = 64 * 1024
# Of processor time: on a busy machine a process may get none for long, and that is no fault.
DEADLINE_SECONDS = 60.0
PAUSE_SECONDS, AHEAD_SECONDS = 0.0005, 0.1
# While no thread works: what found no room is tried again after ten seconds, a hundred times.
AHEAD_ALONE_SECONDS = 2.0
SECTIONS: dict[str, dict[str, Any]] = {
    "wal": {"retention_days": 0, "min_segments": 1},
    "limits": dict.fromkeys(("accounts", "series", "cells"), 2_000),
    "storage": {"copy_grace": "0s", "checkpoint_events": 1_000_000, "checkpoint_interval": "1h"},
    "retention": {"days": 3_000, "totals_days": 3_650},
    "compaction": {"enabled": False, "io_limit": "64GiB"},
    "backup": {"io_limit": "1TiB"},
    "disk": {"warn_free": 0, "warn_free_ratio": 0, "stop_free": 0, "hard_free": 0, "ballast": 0}
    | {"inode_warn": 0, "inode_warn_ratio": 0, "inode_stop": 0, "inode_resume": 0}
    | {"resume_margin": 0, "resume_hold": 0},
}

T = TypeVar("T")


class Refusal(Exception):
    """A request was answered with an error: code and message."""


class OneProcessNode:
    """One start of a node.  Every method raises what an actor ends by."""

    def __init__(
        self, data_dir: Path, random: Random, now: int | None = None, **sections: dict[str, Any]
    ) -> None:
        """`now`: the moment of the start (UTC ns) instead of the clock's."""
        merged = {
            name: SECTIONS.get(name, {}) | sections.get(name, {})
            for name in SECTIONS.keys() | sections.keys()
        }
        merged["node"] = merged.get("node", {}) | {"data_dir": str(data_dir)}
        options = Options.from_mapping(merged)
        wal = dataclasses.asdict(options.wal) | {"segment_size": LOG_FILE_SIZE}
        self.options = dataclasses.replace(options, wal=Wal(**wal))
        self.admission: dict[str, str | None] = {}
        self.on_answer: Callable[[bytes, str, Any], None] = lambda rid, status, body: None
        self._random = random
        self._numbers = itertools.count(1)
        self._answers: dict[bytes, tuple[str, Any]] = {}
        self._queues: dict[str, deque[list[bytes]]] = {cls.name: deque() for cls in ACTORS}
        self.actors: dict[str, Any] = {}
        _set_limits()
        self._clock = Clock(now)
        self._clock.install()

    def start(self) -> OneProcessNode:
        """Come up and replay the log."""
        claim_directory(self.options, Notifier({}))
        for cls in ACTORS:
            self.actors[cls.name] = self._made(cls)
        for actor in self.actors.values():
            actor.open()
        serves, asked = self.actors["ingest"], self.actors["usage"]
        self.until(lambda: serves._serving and asked.answers_questions, "the node serves")
        return self

    def _made(self, cls: type[Actor]) -> Any:
        node = self

        class Here(cls):  # type: ignore[misc, valid-type]
            def send(self, actor: str, frames: list[Any]) -> None:
                node._post(actor, [memoryview(one).tobytes() for one in frames])

        Here.__name__ = cls.__name__
        _, writing = os.pipe()
        return Here(self.options, self.options.node.data_dir, Lifeline(writing))

    def _post(self, actor: str, frames: list[bytes]) -> None:
        if actor in self._queues:
            self._queues[actor].append(frames)
        elif actor == "router" and frames[0] == b"answers":
            for rid, *answer in unbundle(frames[1:]):
                header, body = decode_answer(answer)
                self._answers[rid] = (header.status, unpack_answer(body))
                self.on_answer(rid, *self._answers[rid])
        elif actor == "router" and frames[0] == b"admission":
            said = msgpack.unpackb(frames[1])
            self.admission[said["source"]] = said["code"]

    # The loop

    def turn(self) -> bool:
        """Let every actor take what waits for it; return whether anything did."""
        taken = False
        for name in self._random.sample(list(self.actors), len(self.actors)):
            actor, queue = self.actors[name], self._queues[name]
            moved = False
            while queue:
                actor.handle(queue.popleft())
                moved = True
                if actor.enough():
                    break
            if moved:
                actor.flush()
                taken = True
        return taken

    def tick(self) -> None:
        """Let every actor do what is due."""
        for actor in self.actors.values():
            actor.tick(time.monotonic())

    def later(self, seconds: float) -> None:
        """Let time pass, at once."""
        self._clock.ahead += seconds
        self.tick()
        self.settle()

    def settle(self) -> None:
        """Deliver all messages there are."""
        while self.turn():
            pass

    def until(self, condition: Callable[[], T], what: str) -> T:
        """Go on until something is true, and return it."""
        give_up = time.process_time() + DEADLINE_SECONDS
        while True:
            self.settle()
            found = condition()
            if found:
                return found
            self.tick()
            if time.process_time() > give_up:
                raise AssertionError(f"not within {DEADLINE_SECONDS} s of processor time: {what}")
            time.sleep(PAUSE_SECONDS)
            # What is tried again is tried soon.
            is_alone = threading.active_count() == 1
            self._clock.ahead += AHEAD_ALONE_SECONDS if is_alone else AHEAD_SECONDS

    # Requests

    def send(self, kind: str, **fields: Any) -> bytes:
        """Put a request into the inbox of who answers it; `answer` waits for the answer."""
        number = next(self._numbers)
        rid = b"request %d" % number
        header = RequestHeader(number, kind, int(DEADLINE_SECONDS * 1000))
        request = encode_request(header, msgpack.packb(fields))
        self._queues[kind_of(kind).actor].append([b"requests", *bundle([rid, *request])])
        return rid

    def answered(self, rid: bytes) -> bool:
        return rid in self._answers

    def answer(self, rid: bytes) -> Any:
        """Raises Refusal."""
        status, body = self.until(lambda: self._answers.get(rid), "there is an answer")
        if status == "error":
            raise Refusal(body["code"], body["message"])
        return body

    def ask(self, kind: str, **fields: Any) -> Any:
        """Ask and wait, again while a part of the node still starts.  Raises Refusal."""
        while True:
            try:
                return self.answer(self.send(kind, **fields))
            except Refusal as refusal:
                if refusal.args[0] != "starting":
                    raise
            self.tick()

    def job(self, kind: str, **fields: Any) -> Any:
        """Begin a job and wait until it has ended; return its result.  Raises Refusal."""
        return self.ended(self.ask(kind, **fields)["job"]["id"])

    def ended(self, number: int) -> Any:
        jobs = self.actors["retention_sweeper"].jobs
        job = jobs._jobs[number]
        self.until(lambda: job.finished, f"{job.kind} has ended")
        if job.state != "done":
            raise Refusal(*(job.error or {"code": job.state, "message": ""}).values())
        return job.result

    def quiet(self) -> None:
        """Wait until no work goes on beside the loops."""
        sweeper = self.actors["retention_sweeper"]
        segments = next(one for one in sweeper._services if hasattr(one, "_waiting"))
        self.until(
            lambda: (
                not any(sweeper.jobs._lanes.values())
                and (self.admission.get("disk") or not segments._waiting)
                and not self.actors["usage"]._checkpoints.busy
            ),
            "nothing goes on",
        )

    def stop(self) -> None:
        """End in order."""
        for actor in self.actors.values():
            actor.stopping = True
        self.until(lambda: all(actor.drained() for actor in self.actors.values()), "all is done")
        for actor in self.actors.values():
            actor.close()
            self.settle()


class Clock:
    """The monotonic clock, which can be put ahead, and the time of day."""

    def __init__(self, now: int | None) -> None:
        self.ahead = 0.0
        self.real = time.monotonic
        self._time_ns, self._time = time.time_ns, time.time
        self._offset = 0 if now is None else now - time.time_ns()

    def install(self) -> None:
        time.monotonic = lambda: self.real() + self.ahead
        if self._offset:
            time.time_ns = lambda: self._time_ns() + self._offset
            time.time = lambda: self._time() + self._offset / 1e9


def _set_limits() -> None:
    usage.RECENT_MAX, usage.RECENT_WAIT, usage.RECENT_FLUSH = 20_000, 15_000, 150
    identity_store.RUNS_PER_LEVEL, identity_store.PARTS_MAX = 3, 3
    identity_store.FILTER_LINES_MIN = 2
    log_retention.QUESTION_SECONDS = 0.0
    # Else its jobs wait for all others of the machine while its loop runs on.
    segments.take_idle_time_only = lambda: None
    compaction.LOWEST_PRIORITY = os.getpriority(os.PRIO_PROCESS, 0)


def apart(work: Callable[[], T]) -> T:
    """Run something in a child of this process; return what it returns, raise what it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            try:
                found: tuple[bool, Any] = (True, work())
            except BaseException as error:
                error.add_note("".join(traceback.format_exception(error)))
                found = (False, error)
            try:
                packed = pickle.dumps(found)
            except Exception:
                packed = pickle.dumps((False, AssertionError(repr(found[1]))))
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(packed)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)  # threads may wait for ever
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        packed = pipe.read()
    os.waitpid(child, 0)
    good, result = pickle.loads(packed)
    if not good:
        raise result
    return result

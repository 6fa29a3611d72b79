"""Lives of a node for the simulated disk: everything that storage does, in an order from a seed.

`Life` drives a `OneProcessNode` through all kinds of work while a `DiskTrace` notes what happens to
files: events, refused ones among them, checkpoints, runs of identities, segments, compaction, an
erasure, expiry, backups, a restore.  What was sent and what was acknowledged is noted between the
calls, so for every place in the trace a `Book` says what must be there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from meterd.actors.backups import restoring
from meterd.actors.backups.shelf import Shelf
from tests.support.disk_trace import DiskTrace
from tests.support.fault_book import (
    BATCH,
    ERASED,
    KEPT_DAYS,
    OLD,
    RECENT,
    Book,
    put_metrics,
    today,
)
from tests.support.one_process import OneProcessNode, Refusal

DATA, BACKUPS, NEW = "data", "backups", "restored"
# So many requests may wait for an answer.
WAITING_MAX = 3


class Restoring(NamedTuple):
    """A restore under way."""

    target: str  # the directory, below the home
    name: str  # of the backup
    book: Book  # of what it holds


@dataclass
class Recorded:
    """A life that was lived: its trace, and the book of all of it."""

    trace: DiskTrace
    book: Book
    at: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # work: places in the trace

    def book_at(self, end: int) -> tuple[Book, Restoring | None]:
        """What was sent and said before a place, and what was being restored there."""
        book, backups, restored = deepcopy(self.book), {}, None
        book.sent, book.acknowledged = set(), set()
        book.is_erasing = book.is_erased = book.expires = False
        for call in self.trace.calls[:end]:
            if call.kind != "mark":
                continue
            kind, *said = call.said
            if kind == "sent":
                book.sent |= set(said[0])
            elif kind == "acknowledged":
                book.acknowledged |= set(said[0])
            elif kind == "set":
                setattr(book, said[0], True)
            elif kind == "backup begins":
                begun = set(book.acknowledged), deepcopy(book)
            elif kind == "backup":
                made = deepcopy(book)
                made.acknowledged = begun[0]
                made.is_erased, made.expires = begun[1].is_erased, book.expires
                backups[said[0]] = made
            elif kind == "restore":
                restored = Restoring(*said, backups[said[1]])
        return book, restored


class Life:
    """One life; every method raises what an actor ends by."""

    def __init__(self, home: Path, random: Random) -> None:
        self.home, self.random = home, random
        self.data_dir, self.backups = home / DATA, home / BACKUPS
        home.mkdir(exist_ok=True)
        self.data_dir.mkdir()
        self.backups.mkdir()
        self.trace = DiskTrace(home)
        self.trace.install()
        self.recorded = Recorded(self.trace, Book(today()))
        self.book = self.recorded.book
        self._waiting: dict[bytes, list[str]] = {}  # requests: their events
        self._names: list[str] = []  # of backups
        self.restoring = False

    def live(self, restores: bool = True) -> Recorded:
        """All of it."""
        self.start()
        for step in self.steps():
            step()
        self.finish()
        if restores:
            self.node.stop()
            self.restore()
        return self.recorded

    def start(self) -> None:
        self.node = OneProcessNode(self.data_dir, self.random)
        self.node.on_answer = self._on_answer
        self.node.start()

    def steps(self) -> list[Callable[[], None]]:
        """What is done, in order."""
        random, steps = self.random, [self.put_metrics]
        old = [lambda: self.send(OLD)] * 9 + [self.checkpoint, self.refuse]
        random.shuffle(old)
        recent = [lambda: self.send(RECENT)] * 9 + [self.checkpoint, self.compact, self.refuse]
        recent += [lambda: self.backup("full"), self.pause]
        random.shuffle(recent)
        last = [lambda: self.send(RECENT)] * 7 + [self.pause, self.compact]
        last += [lambda: self.backup("incr"), self.checkpoint, self.hold]
        random.shuffle(last)
        return [*steps, *old, self.finish, self.erase, *recent, self.finish, self.expire, *last]

    # What is done

    def put_metrics(self) -> None:
        put_metrics(self.node, self.book.today)

    def send(self, days: tuple[int, int]) -> None:
        """Send events; not all answers are waited for."""
        events = [self.book.make(self.random, days) for _ in range(BATCH)]
        names = [event["id"] for event in events]
        self.trace.mark(("sent", names))
        self.book.sent |= set(names)
        self._waiting[self.node.send("ingest", events=events)] = names
        if self.random.random() < 0.5:
            self.node.turn()
        while len(self._waiting) > WAITING_MAX:
            self._collect()

    def _collect(self) -> None:
        before = len(self._waiting)
        self.node.until(lambda: len(self._waiting) < before, "an answer comes")

    def _on_answer(self, rid: bytes, status: str, body: Any) -> None:
        names = self._waiting.pop(rid, None)
        if names is None or status == "error":
            return
        assert body["stored"] == len(names), body
        self.trace.mark(("acknowledged", names))
        self.book.acknowledged |= set(names)

    def refuse(self) -> None:
        """Rows that are logged and not stored: the same event again, and one that contradicts."""
        known = sorted(self.book.acknowledged)
        if not known:
            return
        event = self.book.events[self.random.choice(known)]
        other = {**event, "properties": {}}
        unknown = {**event, "id": "unknown", "metric": "unknown"}
        self.node.ask("ingest", events=[event, other, unknown])

    def checkpoint(self) -> None:
        self._work("checkpoint", lambda: self.node.ask("checkpoint"))

    def compact(self) -> None:
        self._work("compact", lambda: self.node.job("compact", aggressive=True))

    def hold(self) -> None:
        with contextlib.suppress(Refusal):
            self.node.ask("backup_hold", seconds=60)
            self.node.ask("backup_release")

    def pause(self) -> None:
        """Nothing comes for some minutes."""
        self.node.later(self.random.choice((2.0, 70.0, 4_000.0)))

    def erase(self) -> None:
        self._set("is_erasing")
        self._work("erase", lambda: self.node.ask("account_erase", account=ERASED))
        self._set("is_erased")

    def expire(self) -> None:
        """Old events go; checkpoints must have left them behind before."""
        self._set("expires")

        def work() -> None:
            self.node.ask("retention_set", days=KEPT_DAYS)
            for _ in range(3):
                self.node.quiet()
                self.node.ask("checkpoint")
                self.node.ask("retention_run")
                self.node.quiet()
                self.node.later(4_000.0)

        self._work("expire", work)

    def backup(self, backup_type: str) -> None:
        def work() -> None:
            self.trace.mark(("backup begins",))
            made = self.node.job("backup_create", to=str(self.backups), type=backup_type)
            self.trace.mark(("backup", made["name"]))
            self._names.append(made["name"])

        self._work("backup", work)

    def finish(self) -> None:
        """Wait for all answers, and for what goes on beside."""
        while self._waiting:
            self._collect()
        self.node.quiet()

    def restore(self) -> None:
        """Bring a backup back in the place of the directory."""
        name, target = self.random.choice(self._names), self.random.choice((DATA, NEW))

        self.restoring = True

        def work() -> None:
            self.trace.mark(("restore", target, name))
            restore(self.home / target, self.backups, name)

        self._work("restore", work)

    def forget_requests(self) -> None:
        """The node is gone; what it has not answered is undecided for good."""
        self._waiting.clear()

    def _set(self, name: str) -> None:
        self.trace.mark(("set", name))
        setattr(self.book, name, True)

    def _work(self, what: str, work: Callable[[], Any]) -> None:
        first = len(self.trace.calls)
        with contextlib.suppress(Refusal):  # a full disk, or nothing to do
            work()
        self.recorded.at.setdefault(what, []).append((first, len(self.trace.calls)))


def restore(data_dir: Path, backups: Path, name: str | None) -> None:
    """What `meterctl restore node --yes` does."""
    shelf = Shelf.at(str(backups))
    manifest = restoring.choose(shelf.contents(), name)
    todo = restoring.plan(shelf, manifest, str(data_dir), "node")
    findings = restoring.carry_out(shelf, todo, "checksum", lambda _: None)
    assert not findings, findings


def record(home: Path, seed: int) -> Recorded:
    """Live a life; call it `apart`."""
    recorded = Life(home, Random(seed)).live()
    recorded.trace.forget_functions()
    return recorded

"""What a faulty life of a node must answer for: every event that was sent, counted in plain Python.

A `Book` says which events were sent and which were acknowledged; `judge` starts a node on what a
fault has left, asks for everything, sends again what is undecided, and asks once more.  The totals
come from `model.py`, which shares nothing with the product.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from meterd.protocol.errors import BootFailed, Corrupt, DiskFull, MeterdError
from tests.support.fault_campaign import NAMED
from tests.support.model import Metric, Model, Question
from tests.support.one_process import OneProcessNode, Refusal
from tests.support.periods import DAY, Period

ACCOUNTS = ("a/0", "a/1", "b", "c", "d")
ERASED = "gone"
BATCH = 30
NOTES = {f"note{number}": "x" * 220 for number in range(3)}
# The days of the old events, which expire, and of the recent ones, before the day of the life.
OLD, RECENT = (69, 50), (20, 1)
KEPT_DAYS = 30
METRICS = {
    "bytes": {"aggregation": "sum", "dimensions": ["region"]},
    "calls": {"aggregation": "count"},
    "seats": {"aggregation": "unique", "unique_on": "user"},
}
SAMPLE_EVERY = 17


class Violation(AssertionError):
    """An answer is wrong, or something ends other than it may."""


@dataclass
class Book:
    """All that was sent in a life, and what was said about it."""

    today: int  # UTC ns, the beginning of a day
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    is_erasing: bool = False  # the account ERASED
    is_erased: bool = False
    expires: bool = False  # old events may be gone, but for their totals

    @property
    def span(self) -> dict[str, int]:
        return {"start": self.today - OLD[0] * DAY, "end": self.today + DAY}

    @property
    def recent(self) -> dict[str, int]:
        return {"start": self.today - RECENT[0] * DAY, "end": self.today + DAY}

    def make(self, random: Random, days: tuple[int, int]) -> dict[str, Any]:
        """A new event, at a time that no other has."""
        number = len(self.events)
        at = self.today - days[0] * DAY + random.randrange((days[0] - days[1]) * DAY // 1000) * 1000
        event: dict[str, Any] = {
            "account": random.choice((*ACCOUNTS, ERASED) if days is OLD else ACCOUNTS),
            "metric": random.choice(tuple(METRICS)),
            "id": f"00000000-0000-7000-8000-{number:012x}" if number % 3 else f"event {number}",
            "timestamp": at + number % 1000,
            "value": "1",
            "properties": dict(NOTES),
        }
        if event["metric"] == "bytes":
            event["value"] = str(random.randrange(-50, 1000))
            event["properties"]["region"] = random.choice(("eu", "us"))
        elif event["metric"] == "seats":
            event["properties"]["user"] = f"u{random.randrange(20)}"
            event["operation"] = random.choice(("none", "add", "add", "remove"))
        self.events[event["id"]] = event
        return event

    def is_old(self, identifier: str) -> bool:
        return bool(self.events[identifier]["timestamp"] < self.recent["start"])


class Count:
    """What the events that are stored add up to."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._counted: set[str] = set()
        self._models = {account: Model(retention_days=100_000) for account in (*ACCOUNTS, ERASED)}
        for code, definition in METRICS.items():
            dimensions = tuple(definition.get("dimensions", ()))
            unique_on = definition.get("unique_on")
            metric = Metric(code, definition["aggregation"], 6, dimensions, unique_on, Period())
            for model in self._models.values():
                model.put_metric(metric)

    def of(self, stored: set[str]) -> dict[tuple[str, str, bool], tuple[int, int]]:
        """Value and count by account, metric and whether only recent events are asked for."""
        book = self._book
        assert self._counted <= stored, "an event is gone that was there"
        for identifier in sorted(stored - self._counted):
            event = book.events[identifier]
            status = self._models[event["account"]].ingest(event, book.today)
            assert status[0] == "stored", (status, event)
        self._counted = set(stored)
        found = {}
        for account, model in self._models.items():
            for code in METRICS:
                for is_recent, span in ((False, book.span), (True, book.recent)):
                    answer = model.usage(account, Question(code, span["start"], span["end"]))
                    found[account, code, is_recent] = int(answer.value or 0), answer.count
        return found


def put_metrics(node: OneProcessNode, today: int) -> None:
    # One period holds all events, so their totals are in memory and in checkpoints.
    seconds = 400 * 86_400
    period = {"kind": "fixed", "duration": seconds, "epoch": today - 200 * DAY}
    for code, definition in METRICS.items():
        node.ask("metric_put", code=code, period=period, **definition)


class Judge:
    """Asks a node for everything and compares."""

    def __init__(self, node: OneProcessNode, book: Book, random: Random) -> None:
        self._node, self._book, self._random = node, book, random
        self._count = Count(book)
        self._turns = itertools.cycle(random.sample((*ACCOUNTS, ERASED), len(ACCOUNTS) + 1))

    def everything(self) -> None:
        """Raises Violation, Refusal and what an actor ends by."""
        book = self._book
        stored = self.unchanged()
        undecided = [one for one in book.events if one in book.sent - book.acknowledged]
        for first in range(0, len(undecided), BATCH):
            self._send_again(undecided[first : first + BATCH], stored)
        stored |= set(undecided)
        if undecided:
            self._compare(stored)
        known = [one for one in book.acknowledged if not (book.expires and book.is_old(one))]
        self._send_again(
            sorted(known)[self._random.randrange(SAMPLE_EVERY) :: SAMPLE_EVERY], stored
        )
        self._go_on(stored)
        self._compare(stored)
        book.acknowledged |= stored

    def unchanged(self) -> set[str]:
        """Ask only; return which events are there.  Raises Violation."""
        stored = self._stored()
        self._compare(stored)
        return stored

    def _go_on(self, stored: set[str]) -> None:
        """Take new events, and do a part of what a node does with time."""
        new = [self._book.make(self._random, RECENT) for _ in range(BATCH)]
        self._book.sent |= {event["id"] for event in new}
        result = self._node.ask("ingest", events=new)
        if result["stored"] != len(new):
            raise Violation(f"new events were not stored: {result}")
        stored |= {event["id"] for event in new}
        work = self._random.choice(("checkpoint", "compact", "retention_run", ""))
        if work == "compact":
            self._node.job("compact", aggressive=True)
        elif work:
            self._node.ask(work)
        self._node.later(70.0)
        self._node.quiet()

    def _stored(self) -> set[str]:
        """Which events are there.  Of those that expire only their totals may be."""
        book = self._book
        span = book.recent if book.expires else book.span
        listed = set()
        for account in (*ACCOUNTS, ERASED):
            found = self._listed(account, span)
            if len(found) != len(set(found)) or listed & set(found):
                raise Violation("an event is listed twice")
            listed |= set(found)
        if not listed <= book.sent:
            raise Violation(f"events that nobody sent: {sorted(listed - book.sent)[:3]}")
        if book.expires:
            listed |= {one for one in book.acknowledged if book.is_old(one)}
        erased = {one for one in book.sent if book.events[one]["account"] == ERASED}
        missing = book.acknowledged - listed - (erased if book.is_erasing else set())
        if missing:
            raise Violation(
                f"{len(missing)} acknowledged events are missing: {sorted(missing)[:3]}"
            )
        return listed

    def _listed(self, account: str, span: dict[str, int]) -> list[str]:
        found: list[str] = []
        after: dict[str, Any] = {}
        while True:
            page = self._node.ask("events", account=account, limit=100, **span, **after)
            found += [event["id"] for event in page["events"]]
            if page["next"] is None:
                return found
            after = {"after": page["next"]}

    def _send_again(self, identifiers: list[str], stored: set[str]) -> None:
        events = [self._book.events[one] for one in identifiers]
        if not events:
            return
        result = self._node.ask("ingest", events=events)
        # The ids of an erased account stay used.
        known = sum(1 for one in identifiers if one in stored or one in self._book.acknowledged)
        if (result["duplicate"], result["stored"]) != (known, len(events) - known):
            raise Violation(f"{known} of {len(events)} events are stored, and sent again: {result}")

    def _compare(self, stored: set[str]) -> None:
        """Every total against the model: of all accounts at once, from files and from memory.

        Of one account, in turns, also by questions of its own: these take most of the time.
        """
        book, alone = self._book, next(self._turns)
        spans: tuple[dict[str, int], ...] = (book.span, book.recent, {})  # {}: from memory
        rows = {code: [self._rows(code, span) for span in spans] for code in METRICS}
        for (account, code, is_recent), wanted in self._count.of(stored).items():
            if account == ERASED and book.is_erased:
                wanted = (0, 0)
            asked = (1,) if is_recent else (0, 2)
            found = [rows[code][one].get(account, (0, 0)) for one in asked]
            if account == alone:
                found += [self._usage(account, code, spans[one]) for one in asked]
            # An erasure under way has happened as a whole or not at all.
            right = {wanted, (0, 0)} if account == ERASED and book.is_erasing else {wanted}
            if not right.issuperset(found):
                what = f"{account} {code} {'recent' if is_recent else 'in all'}"
                raise Violation(f"{what}: {found}, not {wanted}")

    def _rows(self, code: str, span: dict[str, int]) -> dict[str, tuple[int, int]]:
        """Value and count of every account that has any."""
        rows = self._node.ask("accounts", metric=code, **span)["rows"]
        return {row["account"]: (int(row["value"] or 0), row["count"]) for row in rows}

    def _usage(self, account: str, code: str, span: dict[str, int]) -> tuple[int, int]:
        answer = self._node.ask("usage", account=account, metric=code, **span)
        return int(answer["value"] or 0), answer["count"]


class Named(logging.Handler):
    """Remembers whether what was logged as an error names a file and an offset."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def judge(data_dir: Path, book: Book, seed: int, may_refuse: bool = False) -> str:
    """Start a node on a directory, ask for everything, and again behind a stop; say what came out.

    `may_refuse`: bytes were damaged, so a refusal that names file and offset is right, too.
    Raises Violation.  Call it `apart`.
    """
    random = Random(seed)
    heard = Named()
    logging.disable(logging.NOTSET)
    logging.getLogger().handlers = [heard]
    logging.getLogger().propagate = False
    try:
        node = OneProcessNode(data_dir, random).start()
        put_metrics(node, book.today)  # nothing happens when they are there
        Judge(node, book, random).everything()
        node.stop()
        node = OneProcessNode(data_dir, random).start()
        Judge(node, book, random).unchanged()
        return "right"
    except Corrupt as corrupt:
        refusal = str(corrupt)
    except BootFailed as failure:
        refusal = failure.reason
    except Refusal as answer:
        refusal = " | ".join(heard.lines) or str(answer)
    except DiskFull as full:
        raise Violation(f"ended: {full!r}") from full
    except MeterdError as error:
        raise Violation(f"ended: {error!r}") from error
    if not may_refuse:
        raise Violation(f"refused: {refusal}")
    if not NAMED.search(refusal):
        raise Violation(f"refused without file and offset: {refusal}")
    return "refused, file and offset named"


def today() -> int:
    return time.time_ns() // DAY * DAY

"""Turns rows of log files into events as clients see them, and pages of them into cursors.

A listing is ordered by (timestamp, position in the log), a feed by where rows lie in the log.  A
cursor is text that says where to go on; whoever changes one by hand gets other events or an error,
never harm.  A page ends early when its events are large; only a missing cursor means the end.
"""

from __future__ import annotations

import uuid
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import gather as kernels
from meterd.core.kernels.gather import POSITION, TIMESTAMP, Wanted
from meterd.core.questions.question import Question
from meterd.core.state.registry import MetricEntry, Registry
from meterd.protocol.decimal_text import format_decimal
from meterd.protocol.errors import BadRequest
from meterd.protocol.event_columns import OPERATIONS
from meterd.protocol.limits import I64_MAX, I64_MIN

# Bytes of events in one page, well below the largest answer.
PAGE_BYTES_MAX: Final = 4 * 1024 * 1024
# What an event takes beside its texts.
EVENT_OVERHEAD: Final = 128

Matches = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class FeedPlace(NamedTuple):
    """A place in a feed: the next row to look at."""

    file_number: int
    row: int


def wanted_events(question: Question, registry: Registry, start: int) -> Wanted:
    """Return what rows of a listing or feed are compared with; events before `start` are gone."""
    local = np.full(len(registry.entries) + 1, -1, np.int32)
    if question.metric:
        local[[entry.number for entry in registry.versions(question.metric)]] = 0
    else:
        local[1:] = 0
    modes = (kernels.SUBTREE if question.subtree else kernels.ONE_ACCOUNT, kernels.ANY_ACCOUNT)
    return Wanted(
        np.frombuffer(question.account.encode(), np.uint8),
        modes[not question.account],
        False,
        local,
        np.zeros((1, 6), np.int64),
        np.frombuffer(b"", np.uint8),
        np.array([(0, 0)], np.int64),
        np.array([0], np.uint8),
        np.array([start, question.end], np.int64),
    )


class Page:
    """The first events after a cursor, by (timestamp, position); fed with matches in any order."""

    def __init__(self, limit: int, after: str | None) -> None:
        self._limit = limit
        self._after = (I64_MIN, -1) if after is None else parse_page_cursor(after)
        self._matches = np.empty((0, kernels.MATCH_WORDS), np.int64)
        self._files = np.empty(0, np.int64)

    @property
    def start(self) -> int:
        """Timestamp below which nothing is left to list."""
        return self._after[0]

    @property
    def last_timestamp(self) -> int:
        """Timestamp beyond which nothing can enter the page any more."""
        full = len(self._matches) > self._limit
        return int(self._matches[-1, TIMESTAMP]) if full else I64_MAX

    def add(self, file_number: int, matches: Matches) -> None:
        """Take matching rows of a file."""
        at, position = matches[:, TIMESTAMP], matches[:, POSITION]
        later = (at > self._after[0]) | ((at == self._after[0]) & (position > self._after[1]))
        rows = np.concatenate([self._matches, matches[later]])
        files = np.concatenate([self._files, np.full(int(later.sum()), file_number, np.int64)])
        # One more than the page holds says whether there is another page.
        order = np.lexsort((rows[:, POSITION], rows[:, TIMESTAMP]))[: self._limit + 1]
        self._matches, self._files = rows[order], files[order]

    def rows(self) -> list[tuple[int, list[int]]]:
        """Return (file number, match) of the page's rows, in order."""
        pairs = zip(self._files.tolist(), self._matches.tolist(), strict=True)
        return list(pairs)[: self._limit]

    def next_cursor(self, shown: int) -> str | None:
        """Return the cursor behind the first `shown` rows, or None when there are no more."""
        if shown >= len(self._matches):
            return None
        match = self._matches[shown - 1].tolist()
        return f"e.{match[TIMESTAMP]}.{match[POSITION]}"


def parse_page_cursor(text: str) -> tuple[int, int]:
    """Return (timestamp, position) of a listing's cursor.  Raises BadRequest."""
    timestamp, position = _numbers(text, "e")
    return timestamp, position


def parse_feed_cursor(text: str) -> FeedPlace:
    """Return the place of a feed's cursor.  Raises BadRequest."""
    file_number, row = _numbers(text, "f")
    if file_number < 0 or row < 0:
        raise BadRequest("after: not a cursor of a feed")
    return FeedPlace(file_number, row)


def feed_cursor(place: FeedPlace) -> str:
    return f"f.{place.file_number}.{place.row}"


def _numbers(text: str, letter: str) -> tuple[int, int]:
    kind, *parts = text.split(".")
    try:
        first, second = (int(part) for part in parts)
    except ValueError:
        kind = ""
    if kind != letter or not (I64_MIN <= first <= I64_MAX and I64_MIN <= second <= I64_MAX):
        raise BadRequest("after: not a cursor that this kind of question gave")
    return first, second


def event_of(data: Bytes, match: list[int], entry: MetricEntry) -> tuple[dict[str, Any], int]:
    """Return an event as a map, and about how many bytes it takes in an answer."""
    account, identifier, properties, size = _heap_entry(data, match[kernels.ENTRY])
    event = {
        "account": account,
        "metric": entry.code,
        "value": format_decimal(match[kernels.VALUE], entry.definition.decimals),
        "timestamp": match[TIMESTAMP],
        "id": identifier,
        "operation": OPERATIONS[match[kernels.OPERATION]],
        "properties": properties,
    }
    return event, size + EVENT_OVERHEAD


def _heap_entry(data: Bytes, at: int) -> tuple[str, str, dict[str, str], int]:
    """Return account, id, properties and size of a heap entry (docs/STORAGE.md)."""
    begin = at
    account_size, id_size = int(data[at]), int(data[at + 1])
    at += 2
    account = data[at : at + account_size].tobytes().decode()
    at += account_size
    raw = data[at : at + (id_size or 16)].tobytes()
    at += len(raw)
    identifier = raw.decode() if id_size else str(uuid.UUID(bytes=raw))
    properties = {}
    count = int(data[at])
    at += 1
    for _ in range(count):
        key, at = _text(data, at)
        properties[key], at = _text(data, at)
    return account, identifier, properties, at - begin


def _text(data: Bytes, at: int) -> tuple[str, int]:
    end = at + 1 + int(data[at])
    return data[at + 1 : end].tobytes().decode(), end

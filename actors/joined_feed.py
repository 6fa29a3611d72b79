"""Reads one page of a feed that needs several nodes, for the query actor.

Each node gives the events of some partitions in the order of its own log.  The cursor names them
all: the nodes, their partitions, and how far each was read.  A page is read from one after the
other until it is full; the next one begins with the node behind the last that gave something, so
none is kept waiting by the others.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Final

from meterd.actors.other_nodes import OtherNodes, Part, chosen, consistency, note_age
from meterd.core.listing import PAGE_BYTES_MAX
from meterd.core.questions import Question
from meterd.protocol.body import pack
from meterd.protocol.errors import BadRequest, RangeExpired
from meterd.protocol.limits import PARTITION_COUNT

# What a cursor of this kind begins with, behind the node that gave it.
MARK: Final = "m"
SEPARATOR, BETWEEN = ";", ":"
NODES_MAX: Final = 16
SET_SIZE: Final = PARTITION_COUNT // 8

# Reads this node's own part: (question) -> a page.
Read = Callable[[Question], Generator[Any, None, dict[str, Any]]]


def read_feed(
    others: OtherNodes,
    read: Read,
    question: Question,
    parts: Sequence[Part],
    context: dict[str, Any],
) -> Generator[Any, None, dict[str, Any]]:
    """Return a page.  A part without an address is this node's own.

    context: `until` (monotonic seconds) and what is `added` to the result.  Raises MeterdError.
    """
    events: list[dict[str, Any]] = []
    size, last = 0, -1
    for place, part in enumerate(parts):
        if len(events) >= question.limit or size >= PAGE_BYTES_MAX:
            break
        limit = question.limit - len(events)
        if part.address:
            fields = _fields(part, limit) | {"consistency": consistency(context)}
            page = yield from others.feed_page(part, fields, context["until"])
            note_age(context["added"], page)
            part.cursor = page["next"].partition("@")[2]
        else:
            asked = replace(question, after=part.cursor, limit=limit, partitions=chosen(part))
            page = yield from _own(read, asked)
            part.cursor = page["next"]
        events += page["events"]
        size += len(pack(page["events"]))
        last = place
    full = len(events) >= question.limit or size >= PAGE_BYTES_MAX
    turned = [*parts[last + 1 :], *parts[: last + 1]] if full else list(parts)
    return {"events": events, "next": cursor_of(turned)}


def _own(read: Read, question: Question) -> Generator[Any, None, dict[str, Any]]:
    try:
        return (yield from read(question))
    except RangeExpired:
        raise RangeExpired(
            "events behind this cursor have expired; begin again without a cursor"
        ) from None


def _fields(part: Part, limit: int) -> dict[str, Any]:
    cursor = part.cursor
    if cursor not in (None, "end"):
        cursor = f"{part.node}@{cursor}"
    return {"after": cursor, "limit": limit, "partitions": part.partitions}


def cursor_of(parts: Sequence[Part]) -> str:
    """Return the cursor that names these parts."""
    return SEPARATOR.join([MARK, *map(_text, parts)])


def _text(part: Part) -> str:
    partitions = urlsafe_b64encode(part.partitions).decode().rstrip("=")
    return BETWEEN.join([str(part.node), partitions, part.cursor or ""])


def is_joined(cursor: str | None) -> bool:
    """Does a cursor name several nodes?"""
    return cursor is not None and cursor.startswith(MARK + SEPARATOR)


def parse_cursor(cursor: str) -> list[tuple[int, bytes, str | None]]:
    """Return node, partitions and cursor of each part.  Raises BadRequest."""
    found = []
    try:
        for text in cursor.split(SEPARATOR)[1:]:
            node, partitions, place = text.split(BETWEEN)
            packed = urlsafe_b64decode(partitions + "=")
            found.append((int(node), packed, place or None))
            if len(packed) != SET_SIZE:
                raise ValueError(partitions)
    except ValueError:
        found = []
    if not 1 <= len(found) <= NODES_MAX:
        raise BadRequest("after: not a cursor of a feed")
    return found

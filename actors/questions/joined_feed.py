"""Reads one page of a feed that needs several nodes, for the query actor.

Each node gives the events of some partitions in the order of its own log.  The cursor says how far
each partition was read (`core/questions/feed_cursor.py`), so it does not matter which node has it
next.  A page is read from one node after the other until it is full; the next one begins with the
node behind the last that gave something, so none is kept waiting by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

from meterd.actors.questions.other_nodes import OtherNodes, Part, chosen, consistency, note_age
from meterd.core.questions.feed_cursor import FeedCursor, parse
from meterd.core.questions.listing import PAGE_BYTES_MAX
from meterd.core.questions.question import Question
from meterd.protocol.body import pack

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
    from_end = question.after == "end"
    cursor = FeedCursor() if question.after is None or from_end else parse(question.after)
    events: list[dict[str, Any]] = []
    size, last = 0, 0
    for part in parts:
        if len(events) >= question.limit or size >= PAGE_BYTES_MAX:
            break
        after, limit = "end" if from_end else str(cursor), question.limit - len(events)
        if part.address:
            fields = {"after": after, "limit": limit, "partitions": part.partitions}
            fields["consistency"] = consistency(context)
            page = yield from others.feed_page(part, fields, context["until"])
            note_age(context["added"], page)
        else:
            asked = replace(question, after=after, limit=limit, partitions=chosen(part))
            page = yield from read(asked)
        cursor.advance(chosen(part), parse(page["next"]))
        events += page["events"]
        size += len(pack(page["events"]))
        last = part.node
    if len(events) >= question.limit or size >= PAGE_BYTES_MAX:
        cursor.turn = last
    return {"events": events, "next": str(cursor)}

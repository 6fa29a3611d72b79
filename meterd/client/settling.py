"""Joins the answers to the attempts of one ingest request, until no event of it is undecided.

A node answers `unknown` for events of which it has not heard in time what became of them, while it
knows of the others.  The request is sent again as it was, with the same ids, and of the next answer
what was undecided counts: an event that was stored then was not stored twice, it is the same.  What
was rejected is sent again with it and may be stored then: there the newer answer counts, too.
"""

from __future__ import annotations

from meterd.protocol.errors import RemoteProtocolError
from meterd.protocol.result import COUNTS, IngestResult, decode_result, encode_result

UNKNOWN, REJECTED = "unknown", "rejected"


class Settling:
    """What is known of one request; changed only by `take`."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: IngestResult | None = None  # with events that are unknown

    def take(self, body: bytes, late: bool = False) -> bytes | None:
        """Take the body of an answer; a late one comes while a newer attempt may store events.

        Returns the body that answers the request when nothing of it is undecided any longer; else
        keeps what is known, and returns None.  Raises RemoteProtocolError.
        """
        known = self._known
        if known is None and b"items\x90" in body[-6:]:
            return body  # most answers: nothing but counts
        found = decode_result(body)
        if late:
            found = _rejections_open(found)
        if known is None and not found.unknown:
            return body
        joined = found if known is None else join(known, found, late)
        if joined.unknown:
            self._known = joined
            return None
        return encode_result(joined)

    def so_far(self) -> bytes | None:
        """Return what is known as the body of an answer; None: nothing is."""
        return None if self._known is None else encode_result(self._known)


def join(known: IngestResult, found: IngestResult, late: bool = False) -> IngestResult:
    """Return `known` with what `found` says of its undecided and its rejected events.

    What the newest attempt does not know of an event that was rejected before may be that it is
    stored; a late answer says nothing of that.
    Raises RemoteProtocolError when they are not about the same number of events.
    """
    if known.received != found.received:
        raise RemoteProtocolError("malformed", "an answer about another number of events")
    newly = {row: (row, status, reason) for row, status, reason in found.items}
    counts: dict[str, int] = {name: getattr(known, name) for name in COUNTS}
    otherwise = "accepted" if found.accepted else "stored"
    items = []
    for item in known.items:
        row, status, _ = item
        told = newly.get(row)
        says_nothing = late and told is not None and told[1] == UNKNOWN
        if status == UNKNOWN or (status == REJECTED and not says_nothing):
            counts[status] -= 1
            counts[otherwise if told is None else told[1]] += 1
            if told is None:
                continue
            item = told
        items.append(item)
    return IngestResult(**counts, items=items)


def _rejections_open(found: IngestResult) -> IngestResult:
    """Return an answer with its rejected events as undecided ones."""
    return found._replace(
        rejected=0,
        unknown=found.unknown + found.rejected,
        items=[
            (row, UNKNOWN, "") if status == REJECTED else (row, status, reason)
            for row, status, reason in found.items
        ],
    )

"""Writes and reads the result of an ingest request: what became of each event.

Only events that were not simply stored are named, so the usual answer is a handful of counts;
those repeat from request to request and their bytes are kept.

Invariant: received = stored + duplicate + conflict + rejected + unknown + accepted.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from meterd.protocol.body import pack, unpack_answer
from meterd.protocol.errors import (
    CONFLICT,
    DUPLICATE,
    REJECTED,
    STATUSES,
    UNKNOWN,
    RemoteProtocolError,
)
from meterd.protocol.limits import EVENTS_MAX

COUNTS = ("received", "stored", "duplicate", "conflict", "rejected", "unknown", "accepted")
KEYS = frozenset(COUNTS) | {"items"}
NAMED = frozenset(STATUSES[number] for number in (DUPLICATE, CONFLICT, REJECTED, UNKNOWN))
# Requests of most clients come in few sizes.
KEPT_ANSWERS_MAX = 1_024

Item = tuple[int, str, str]  # row in the request, status, reason


class IngestResult(NamedTuple):
    """What became of the events of one request."""

    received: int
    stored: int = 0
    duplicate: int = 0
    conflict: int = 0
    rejected: int = 0
    unknown: int = 0
    accepted: int = 0
    items: Sequence[Item] = ()


def encode_result(result: IngestResult) -> bytes:
    """Return the body of the answer."""
    if not result.items:
        return _counts_only(result[:-1])
    return pack(result._asdict())


@lru_cache(maxsize=KEPT_ANSWERS_MAX)
def _counts_only(counts: tuple[int, ...]) -> bytes:
    return pack(dict(zip(COUNTS, counts, strict=True)) | {"items": []})


def decode_result(body: bytes) -> IngestResult:
    """Return the result that the body of an answer holds.

    Raises RemoteProtocolError when counts or items do not fit together.
    """
    fields = unpack_answer(body)
    if type(fields) is not dict or not fields.keys() >= KEYS:
        raise RemoteProtocolError("malformed", "result: a key is missing")
    counts = [fields[key] for key in COUNTS]
    if any(type(count) is not int or not 0 <= count <= EVENTS_MAX for count in counts):
        raise RemoteProtocolError("malformed", "result: a count is no number of events")
    received, stored, *_, accepted = counts
    if received != sum(counts[1:]):
        raise RemoteProtocolError("malformed", "result: the counts do not add up")
    raw = fields["items"]
    if type(raw) is not list or len(raw) != received - stored - accepted:
        raise RemoteProtocolError("malformed", "result: items do not name every other event")
    items = [_item(entry, received) for entry in raw]
    return IngestResult(**dict(zip(COUNTS, counts, strict=True)), items=items)


def _item(raw: object, received: int) -> Item:
    if type(raw) is list and len(raw) == 3:
        row, status, reason = raw
        known = type(row) is int and 0 <= row < received
        if known and type(status) is str and status in NAMED and type(reason) is str:
            return row, status, reason
    raise RemoteProtocolError("malformed", "result: an item is not row, status and reason")

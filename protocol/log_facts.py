"""What the log says about groups, as bytes: term and vote (TERMS), where a log begins (MARK)."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from meterd.protocol import log_format
from meterd.protocol.log_format import (
    GROUP_COUNT,
    MARK,
    TERM_ROW,
    TERMS,
    Damaged,
    Record,
    RecordFields,
)
from meterd.protocol.raft_messages import Configuration, Mark

UNCERTAIN: Final = 1  # the last block was unreadable: it is not known where the log ended

NO_SLICES: Final[NDArray[np.void]] = np.zeros(0, log_format.SLICE)
DIGEST_SIZE: Final = 16
# Members of a configuration; no cluster comes near it.
MEMBERS_MAX: Final = 64


class LogMark(NamedTuple):
    """The log of a group begins here; what was before is in a snapshot."""

    group: int
    mark: Mark
    snapshot: str  # its name, empty for the node's own checkpoint


def encode_terms(rows: NDArray[np.void], sequence: int) -> tuple[bytes, bytes]:
    """Return head and payload of a record of term and vote of some groups."""
    return _encode(TERMS, rows.tobytes(), sequence)


def parse_terms(record: Record) -> NDArray[np.void]:
    """Return the rows of a TERMS record.  Raises Damaged."""
    if record.heap_size % TERM_ROW.itemsize:
        raise Damaged(record.offset, "terms that are no whole rows")
    rows = np.frombuffer(record.body, TERM_ROW)
    if len(rows) and rows["group"].max() >= GROUP_COUNT:
        raise Damaged(record.offset, "the term of a group that there is not")
    return rows


def encode_mark(found: LogMark, sequence: int) -> tuple[bytes, bytes]:
    """Return head and payload of a record that begins a group's log anew."""
    mark = found.mark
    fields = {
        "group": found.group,
        "index": mark.index,
        "term": mark.term,
        "digest": mark.digest.to_bytes(DIGEST_SIZE, "little"),
        "voters": list(mark.configuration.voters),
        "learners": list(mark.configuration.learners),
        "snapshot": found.snapshot,
    }
    return _encode(MARK, msgpack.packb(fields), sequence)


def parse_mark(record: Record) -> LogMark:
    """Return what a MARK record says.  Raises Damaged."""
    try:
        fields: dict[str, Any] = msgpack.unpackb(record.body, max_array_len=MEMBERS_MAX)
        members = Configuration(tuple(fields["voters"]), tuple(fields["learners"]))
        digest = int.from_bytes(fields["digest"], "little")
        mark = Mark(fields["index"], fields["term"], digest, members)
        found = LogMark(fields["group"], mark, fields["snapshot"])
        good = 0 <= found.group < GROUP_COUNT and mark.index >= 0 and mark.term >= 0
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(record.offset, f"a mark that cannot be read: {error!r:.100}") from None
    if not good:
        raise Damaged(record.offset, "a mark of no group or place")
    return found


def _encode(kind: int, body: bytes, sequence: int) -> tuple[bytes, bytes]:
    payload = body.ljust(log_format.padded(len(body)), b"\0")
    fields = RecordFields(kind, 0, len(body), 0, 0, sequence)
    return log_format.encode_record_head(fields, NO_SLICES, payload), payload

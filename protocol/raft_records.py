"""Ops as records and back: what an op's body is outside the engine, and the engine's own ops.

An op is a slice of a record, and an op alone is a record with one slice (docs/STORAGE.md).  The
engine makes two kinds of op itself; their content is a msgpack map, packed in one way only, so
that every replica hashes the same bytes.

Does not know: where a record lies, who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import msgpack
import numpy as np
from numpy.typing import NDArray

from meterd.protocol import log_format
from meterd.protocol.errors import RemoteProtocolError
from meterd.protocol.log_format import SLICE, Record, RecordFields
from meterd.protocol.raft_messages import CONFIG, NOOP, Configuration

ENGINE_KINDS = (NOOP, CONFIG)
# Members of one group, voters and learners together; the engine has columns for twelve.
MEMBERS_MAX = 64


class RecordSlice(NamedTuple):
    """The body of an op that is not the engine's: one slice of a record that others may share."""

    record: Record
    number: int  # its place in the slice table


class RecordSlices(Sequence[RecordSlice]):
    """The bodies of ops that are slices of one record, each made when it is asked for."""

    __slots__ = ("_numbers", "record")

    def __init__(self, record: Record, numbers: NDArray[np.intp] | None = None) -> None:
        """`numbers`: which slices; None: all of them, in their order."""
        self.record, self._numbers = record, numbers

    @property
    def whole(self) -> bool:
        """Whether these are all slices of the record."""
        return self._numbers is None

    @property
    def places(self) -> NDArray[np.intp] | slice:
        """What takes these slices out of a column of the record's slice table."""
        return slice(None) if self._numbers is None else self._numbers

    def __len__(self) -> int:
        return len(self.record.slices) if self._numbers is None else len(self._numbers)

    @overload
    def __getitem__(self, row: int) -> RecordSlice: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[RecordSlice]: ...
    def __getitem__(self, row: int | slice) -> RecordSlice | Sequence[RecordSlice]:
        if isinstance(row, slice):
            return [self[k] for k in range(*row.indices(len(self)))]
        number = range(len(self))[row]  # raises IndexError
        if self._numbers is not None:
            number = int(self._numbers[number])
        return RecordSlice(self.record, number)

    def take(self, rows: NDArray[np.intp]) -> RecordSlices:
        """Return some of them."""
        return RecordSlices(self.record, rows if self._numbers is None else self._numbers[rows])


def head_of(record: Record) -> bytes:
    """Return header and slice table of a record as bytes."""
    fields = RecordFields(
        record.kind,
        record.row_count,
        record.heap_size,
        record.registry_version,
        record.leader_time,
        record.sequence,
    )
    return log_format.encode_record_head(fields, record.slices, record.payload)


def engine_payload(kind: int, body: Any) -> bytes:
    """Return the content of an op of the engine, padded: why there is a NOOP, or who is a member.

    It is what the chain hashes (with 0 for registry version and leader time).
    """
    packed = _packed(kind, body)
    return packed.ljust(log_format.padded(len(packed)), b"\0")


def engine_record(kind: int, body: Any, slices: NDArray[np.void]) -> Record:
    """Return an op of the engine as a record with one slice; its count is 1, its heap empty."""
    packed = _packed(kind, body)
    payload = packed.ljust(log_format.padded(len(packed)), b"\0")
    size = log_format.RECORD_HEADER_SIZE + SLICE.itemsize + len(payload)
    version = log_format.MACHINE_VERSION
    fields = (0, len(packed), 0, 0, 0)
    return Record(0, size, kind, version, *fields, slices, memoryview(payload))


def engine_body(record: Record) -> Any:
    """Return why there is a NOOP, or the Configuration of a CONFIG.

    Raises RemoteProtocolError, also when the same could be said in other bytes.
    """
    try:
        fields = msgpack.unpackb(record.body, max_array_len=MEMBERS_MAX, max_map_len=2)
        if record.kind == NOOP:
            body: Any = fields["why"]
        else:
            body = Configuration(tuple(fields["voters"]), tuple(fields["learners"]))
        good = engine_payload(record.kind, body) == bytes(record.payload)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise RemoteProtocolError("malformed", f"op of the engine: {error!r:.200}") from None
    numbers = [body] if record.kind == NOOP else body.members
    if not good or any(type(n) is not int or not 0 < n < 1 << 62 for n in numbers):
        raise RemoteProtocolError("malformed", "op of the engine: not as it is written")
    return body


def _packed(kind: int, body: Any) -> bytes:
    if kind == NOOP:
        packed: bytes = msgpack.packb({"why": body})
    else:
        packed = msgpack.packb({"voters": list(body.voters), "learners": list(body.learners)})
    return packed

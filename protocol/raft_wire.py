"""Turns envelopes between nodes into frames and back; docs/PROTOCOL.md, "Between nodes".

A message of fixed size is a row of 64-bit words, and messages of one type that follow each other
are one table.  An op is a record with one slice, `AppendSlices` a record with a slice for each
row: its head lies among the words, its payload is a frame of its own and is copied by nobody.
`core/cluster/wire_envelopes.py` cuts records so that this is so.

Invariants:
  * any frames give an Envelope or a RemoteProtocolError
  * what is decoded has passed all checksums, and its numbers are within the engine's limits; that
    a content follows from the digest before it is checked by `core/cluster/wire_check.py`
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from meterd.protocol import log_format, raft_records
from meterd.protocol.errors import LocalProtocolError, RemoteProtocolError
from meterd.protocol.log_format import EVENTS, GROUP_COUNT, RECORD_SIZE_MAX, SLICE, Damaged, Record
from meterd.protocol.raft_frames import (
    ENVELOPE,
    NUMBER_MAX,
    Frame,
    Header,
    encode_first,
    parse_attached,
    parse_header,
)
from meterd.protocol.raft_messages import (
    Append,
    AppendReply,
    Beat,
    BeatReplies,
    BeatReply,
    Beats,
    Configuration,
    Envelope,
    Hello,
    HelloReply,
    Install,
    Mark,
    Op,
    PreVote,
    PreVoteReply,
    Repair,
    RepairReply,
    TimeoutNow,
    Vote,
    VoteReply,
    Vouch,
)
from meterd.protocol.raft_records import ENGINE_KINDS, MEMBERS_MAX, RecordSlice, RecordSlices
from meterd.protocol.raft_rows import Rows, table_of
from meterd.protocol.raft_slices import AckSlices, AppendSlices, SliceOps, words

TERM_MAX: Final = (1 << 32) - 1
# Messages of one envelope, rows of one table.
SECTIONS_MAX: Final = 4_096
ROWS_MAX: Final = 1 << 16
OPS_MAX: Final = 1_024
# So few rows are looked at one by one: numpy is for many.
FEW: Final = 16

# Types of section.  Never reuse a number.
TABLES: Final[dict[int, Any]] = {
    1: PreVote,
    2: PreVoteReply,
    3: Vote,
    4: VoteReply,
    5: AppendReply,
    6: TimeoutNow,
    7: Hello,
    8: HelloReply,
    17: Vouch,
}
BEATS, BEAT_REPLIES, ACK_SLICES, APPEND, APPEND_SLICES, INSTALL, REPAIR, REPAIR_REPLY = range(9, 17)

_TYPE_OF: Final = {table: number for number, table in TABLES.items()}
_TERMS: Final = {"term", "last_term", "prev_term", "conflict_term"}
_FLAGS: Final = {"granted", "transfer", "room"}
_HEAD_WORDS: Final = log_format.RECORD_HEADER_SIZE // 8
_SLICE_WORDS: Final = SLICE.itemsize // 8

_WORD: Final = struct.Struct("<q")

Words = NDArray[np.int64]
Unsigned = NDArray[np.uint64]


def _limits(row: Any) -> Unsigned:
    """Return the largest value of each field of a message."""
    known = {"group": GROUP_COUNT - 1}
    known |= dict.fromkeys(_TERMS, TERM_MAX) | dict.fromkeys(_FLAGS, 1)
    return np.array([known.get(name, NUMBER_MAX) for name in row._fields], np.uint64)


_LIMITS: Final = {row: _limits(row) for row in (*TABLES.values(), Beat, BeatReply)}
_FLAG_AT: Final = {row: [n in _FLAGS for n in row._fields] for row in _LIMITS}


# Encoding.


class Content(NamedTuple):
    """Messages as bytes: the same whoever gets them."""

    sections: int
    first: bytes  # what of them lies in the first frame
    attached: list[Frame]


def encode(
    envelope: Envelope, sequence: int = 0, heard_boot: int = 0, heard: int = 0
) -> list[Frame]:
    """Return the frames of an envelope.  Raises LocalProtocolError."""
    return encode_whole(envelope, encode_content(envelope.messages), sequence, heard_boot, heard)


def encode_content(messages: Sequence[Any]) -> Content:
    """Encode messages, whoever they go to.

    Ops that are not the engine's have a RecordSlice as body, of a record with that one slice;
    those of AppendSlices the RecordSlices of a record whose slices are the rows.  Raises
    LocalProtocolError.
    """
    parts: list[bytes] = []
    attached: list[Frame] = []
    sections = 0
    for kind, some in groupby(messages, type):
        if kind in _TYPE_OF:
            rows = list(some)
            parts += [_section(_TYPE_OF[kind], len(rows)), np.array(rows, "<i8").tobytes()]
            sections += 1
            continue
        for message in some:
            _ENCODERS[kind](message, parts, attached)
            sections += 1
    return Content(sections, b"".join(parts), attached)


def encode_whole(
    envelope: Envelope, content: Content, sequence: int, heard_boot: int, heard: int
) -> list[Frame]:
    """Return the frames of an envelope with this content instead of its messages."""
    header = Header(
        ENVELOPE,
        envelope.cluster,
        envelope.source,
        envelope.target,
        envelope.boot,
        envelope.block,
        sequence,
        heard_boot,
        heard,
        content.sections,
        len(content.attached),
    )
    sizes = [memoryview(frame).nbytes for frame in content.attached]
    return [encode_first(header, sizes, content.first), *content.attached]


def _section(number: int, count: int) -> bytes:
    return _words(number | count << 32)


def _words(*numbers: int) -> bytes:
    return b"".join([number.to_bytes(8, "little") for number in numbers])


def _put_beats(message: Beats | BeatReplies, parts: list[bytes], _: list[Frame]) -> None:
    if isinstance(message, Beats):
        number, table = BEATS, table_of(Beat, message.beats)
    else:
        number, table = BEAT_REPLIES, table_of(BeatReply, message.replies)
    parts.append(_section(number, len(table)))
    parts.append(_words(message.round, message.sent_at, message.wall))
    parts.append(table.T.tobytes())


def _put_acks(message: AckSlices, parts: list[bytes], _: list[Frame]) -> None:
    parts.append(_section(ACK_SLICES, len(message.groups)))
    parts.append(np.array(message, "<i8").tobytes())


def _put_append(message: Append, parts: list[bytes], attached: list[Frame]) -> None:
    parts.append(_section(APPEND, len(message.ops)))
    parts.append(_words(message.group, message.term, message.prev_index, message.prev_term))
    parts.append(_words(*words(message.prev_digest), message.commit))
    for op in message.ops:
        _put_op(message.group, op, parts, attached)


def _put_op(group: int, op: Op, parts: list[bytes], attached: list[Frame]) -> None:
    if op.kind in ENGINE_KINDS:
        table = np.array([(group, 0, 1, op.index, words(op.digest), op.term, 0)], SLICE)
        record = raft_records.engine_record(op.kind, op.body, table)
    else:
        record = op.body.record
    if len(record.slices) != 1:
        raise LocalProtocolError("an op is sent as a record with one slice")
    parts += [_words(op.size), raft_records.head_of(record)]
    attached.append(record.payload)


def _put_append_slices(message: AppendSlices, parts: list[bytes], attached: list[Frame]) -> None:
    ops = message.ops
    if not isinstance(ops.body, RecordSlices) or len(ops.body.record.slices) != len(ops.groups):
        raise LocalProtocolError("slices are sent as one record that has no others")
    record = ops.body.record
    parts += [_section(APPEND_SLICES, len(ops.groups)), raft_records.head_of(record)]
    columns = (message.term, message.prev_term, message.commit, ops.size)
    parts.append(np.array(columns, "<i8").tobytes())
    parts.append(message.prev_digest.astype("<u8").tobytes())
    attached.append(record.payload)


def _put_install(message: Install, parts: list[bytes], attached: list[Frame]) -> None:
    mark = message.mark
    voters, learners = mark.configuration
    parts.append(_section(INSTALL, len(voters) + len(learners)))
    parts.append(_words(message.group, message.term, mark.index, mark.term, *words(mark.digest)))
    parts.append(_words(len(voters), crc32c(message.body), *voters, *learners))
    attached.append(message.body)


def _put_repair(message: Repair, parts: list[bytes], _: list[Frame]) -> None:
    parts += [_section(REPAIR, len(message.wanted)), _words(message.group)]
    parts += [_words(index, term) for index, term in message.wanted]


def _put_repair_reply(message: RepairReply, parts: list[bytes], attached: list[Frame]) -> None:
    parts += [_section(REPAIR_REPLY, len(message.ops)), _words(message.group)]
    for op in message.ops:
        _put_op(message.group, op, parts, attached)


_ENCODERS: Final[dict[type, Any]] = {
    Beats: _put_beats,
    BeatReplies: _put_beats,
    AckSlices: _put_acks,
    Append: _put_append,
    AppendSlices: _put_append_slices,
    Install: _put_install,
    Repair: _put_repair,
    RepairReply: _put_repair_reply,
}


# Decoding.


def decode(frames: Sequence[Frame]) -> Envelope:
    """Return the envelope that frames are.  Raises RemoteProtocolError."""
    return decode_envelope(parse_header(frames[0] if frames else b""), frames)


def decode_envelope(header: Header, frames: Sequence[Frame]) -> Envelope:
    """Return the envelope of frames whose header is read already.  Raises RemoteProtocolError."""
    if header.kind != ENVELOPE:
        raise _malformed("no envelope")
    at = parse_attached(header, frames)
    if header.sections > SECTIONS_MAX:
        raise _malformed(f"{header.sections} sections")
    reader = _Reader(frames, at)
    messages: list[Any] = []
    for _ in range(header.sections):
        number, count = reader.section()
        if number in TABLES:
            messages += reader.rows(TABLES[number], count)
        elif number in _DECODERS:
            messages.append(_DECODERS[number](reader, count))
        else:
            raise _malformed(f"section of type {number}")
    reader.finish()
    source, target, boot, block = header[2:6]
    return Envelope(header.cluster, source, target, boot, block, tuple(messages))


def _malformed(reason: str) -> RemoteProtocolError:
    return RemoteProtocolError("malformed", f"envelope: {reason}")


class _Reader:
    """Goes through the words of a first frame, and through the frames attached."""

    def __init__(self, frames: Sequence[Frame], at: int) -> None:
        self._first = memoryview(frames[0])
        self._words = np.frombuffer(frames[0], "<i8")
        self._at = at // 8
        self._attached = iter(frames[1:])

    def finish(self) -> None:
        """Nothing must be left over."""
        if self._at != len(self._words) or next(self._attached, None) is not None:
            raise _malformed("something behind the last section")

    def take(self, count: int) -> Words:
        """Return the next words as they are."""
        begin, self._at = self._at, self._at + count
        if self._at > len(self._words):
            raise _malformed("a section reaches beyond the end")
        return self._words[begin : self._at]

    def section(self) -> tuple[int, int]:
        """Return type and count of the next section."""
        at = 8 * self._at
        self._at += 1
        if at + 8 > len(self._first):
            raise _malformed("a section reaches beyond the end")
        (word,) = _WORD.unpack_from(self._first, at)
        number, count = word & TERM_MAX, word >> 32
        if not 0 <= count <= ROWS_MAX:
            raise _malformed(f"a section of {count} rows")
        return number, count

    def numbers(self, count: int) -> list[int]:
        """Return the next words, each a number that the engine may add to another."""
        found = self.take(count)
        _check(found, NUMBER_MAX)
        return found.tolist()

    def digest(self) -> int:
        """Return the next two words as a digest."""
        low, high = self.take(2).view("<u8").tolist()
        return int(low | high << 64)

    def columns(self, row: Any, count: int) -> Rows[Any]:
        """Return messages that lie column by column."""
        width = len(row._fields)
        table = self.take(width * count).reshape(width, count).T
        _check(table, _LIMITS[row])
        return Rows(row, table)

    def rows(self, row: Any, count: int) -> list[Any]:
        """Return a table's messages."""
        width = len(row._fields)
        table = self.take(width * count).reshape(count, width)
        _check(table, _LIMITS[row])
        listed = table.tolist()
        flags = _FLAG_AT[row]
        if any(flags):
            listed = [
                [bool(x) if is_flag else x for x, is_flag in zip(one, flags, strict=True)]
                for one in listed
            ]
        return list(map(row._make, listed))

    def frame(self) -> Frame:
        """Return the next attached frame."""
        frame = next(self._attached, None)
        if frame is None:
            raise _malformed("a payload is missing")
        return frame

    def record(self, slice_count: int) -> Record:
        """Return the record whose head comes next and whose payload is the next frame."""
        begin = 8 * self._at
        self.take(_HEAD_WORDS + _SLICE_WORDS * slice_count)
        try:
            record = log_format.parse_frames(self._first[begin : 8 * self._at], self.frame())
        except Damaged as damage:
            raise _malformed(damage.reason) from None
        if len(record.slices) != slice_count:
            raise _malformed("a record has more or fewer slices than rows")
        _check_slices(record)
        return record

    def op(self, group: int) -> Op:
        """Return one op, which is a record."""
        (size,) = self.numbers(1)
        record = self.record(1)
        if int(record.slices["partition"][0]) != group or size > RECORD_SIZE_MAX:
            raise _malformed("an op of another group, or of impossible size")
        low, high = record.slices["digest"][0].tolist()
        index, term = int(record.slices["index"][0]), int(record.slices["term"][0])
        is_engines = record.kind in ENGINE_KINDS
        body = raft_records.engine_body(record) if is_engines else RecordSlice(record, 0)
        return Op(index, term, low | high << 64, record.kind, size, body)

    def ops(self, group: int, count: int) -> tuple[Op, ...]:
        if count > OPS_MAX:
            raise _malformed(f"{count} ops of one group")
        return tuple([self.op(group) for _ in range(count)])


def _check(numbers: Words, limits: Unsigned | int) -> None:
    if numbers.size <= FEW and type(limits) is int:  # no numpy where there is next to nothing
        listed = numbers.ravel().tolist()
        good = not listed or (min(listed) >= 0 and max(listed) <= limits)
    else:  # what is negative is very large without a sign
        good = not np.count_nonzero(numbers.view(np.uint64) > limits)
    if not good:
        raise _malformed("a number is out of range")


def _check_slices(record: Record) -> None:
    """Check a slice table against the record and the limits of the engine."""
    good = (_are_right if len(record.slices) > FEW else _few_are_right)(record)
    if not good:
        raise _malformed("slice table")


def _are_right(record: Record) -> bool:
    slices, are_events = record.slices, record.kind == EVENTS
    groups = slices["partition"].astype(np.int64)
    return (
        bool((np.diff(groups) > 0).all())
        and int(groups[-1]) < GROUP_COUNT
        and not slices["flags"].any()
        and bool(((slices["index"] > 0) & (slices["index"] <= NUMBER_MAX)).all())
        and (not are_events or bool(slices["count"].all()))
        and (
            not are_events
            or (int(slices["count"].sum()), int(slices["heap_size"].sum()))
            == (record.row_count, record.heap_size)
        )
    )


def _few_are_right(record: Record) -> bool:
    are_events = record.kind == EVENTS
    before, rows, heap = -1, 0, 0
    for group, flags, count, index, _, _, heap_size in record.slices.tolist():
        if not before < group < GROUP_COUNT or flags or not 0 < index <= NUMBER_MAX:
            return False
        if are_events and not count:
            return False
        before = group
        rows, heap = rows + count, heap + heap_size
    return before >= 0 and (not are_events or (rows, heap) == (record.row_count, record.heap_size))


def _get_beats(reader: _Reader, count: int) -> Beats:
    number, sent_at, wall = reader.numbers(3)
    return Beats(number, sent_at, wall, reader.columns(Beat, count))


def _get_beat_replies(reader: _Reader, count: int) -> BeatReplies:
    number, sent_at, wall = reader.numbers(3)
    return BeatReplies(number, sent_at, wall, reader.columns(BeatReply, count))


def _get_acks(reader: _Reader, count: int) -> AckSlices:
    rows = reader.take(5 * count).reshape(5, count)
    _check(rows, NUMBER_MAX)
    _check(rows[1], TERM_MAX)
    groups = rows[0]
    # A row is about one group, and they ascend: columns are written to by group.
    if not count or groups[-1] >= GROUP_COUNT or (count > 1 and (np.diff(groups) <= 0).any()):
        raise _malformed("groups do not ascend, or are too many")
    return AckSlices(*rows)


def _get_append(reader: _Reader, count: int) -> Append:
    group, term, prev_index, prev_term = reader.numbers(4)
    prev_digest = reader.digest()
    (commit,) = reader.numbers(1)
    if group >= GROUP_COUNT or max(term, prev_term) > TERM_MAX:
        raise _malformed("append: a number is out of range")
    ops = reader.ops(group, count)
    if [op.index for op in ops] != list(range(prev_index + 1, prev_index + 1 + count)):
        raise _malformed("append: an index does not follow")
    if any(op.term > term for op in ops):
        raise _malformed("append: an op of a later term")
    return Append(group, term, prev_index, prev_term, prev_digest, ops, commit)


def _get_append_slices(reader: _Reader, count: int) -> AppendSlices:
    record = reader.record(count)
    term, prev_term, commit, size = reader.take(4 * count).reshape(4, count)
    prev_digest = reader.take(2 * count).view("<u8").reshape(count, 2)
    slices = record.slices
    for column, limit in (
        (term, TERM_MAX),
        (prev_term, TERM_MAX),
        (commit, NUMBER_MAX),
        (size, RECORD_SIZE_MAX),
    ):
        _check(column, limit)
    op_term = slices["term"].astype(np.int64)
    if record.kind in ENGINE_KINDS or np.count_nonzero(op_term > term):
        raise _malformed("slices: an op of the engine, or of a later term")
    ops = SliceOps(
        slices["partition"].astype(np.int64),
        slices["index"].astype(np.int64),
        op_term,
        slices["digest"].astype(np.uint64),
        np.full(count, record.kind, np.int64),
        size,
        RecordSlices(record),
    )
    return AppendSlices(term, prev_term, prev_digest, commit, ops)


def _get_install(reader: _Reader, count: int) -> Install:
    group, term, index, mark_term = reader.numbers(4)
    digest = reader.digest()
    voter_count, crc = reader.numbers(2)
    if count > MEMBERS_MAX or voter_count > count:
        raise _malformed("install: too many members")
    members = tuple(reader.numbers(count))
    body = reader.frame()
    if group >= GROUP_COUNT or max(term, mark_term) > TERM_MAX or crc != crc32c(body):
        raise _malformed("install: a number is out of range, or the checksum")
    configuration = Configuration(members[:voter_count], members[voter_count:])
    return Install(group, term, Mark(index, mark_term, digest, configuration), body)


def _get_repair(reader: _Reader, count: int) -> Repair:
    (group,) = reader.numbers(1)
    if count > OPS_MAX or group >= GROUP_COUNT:
        raise _malformed("repair: out of range")
    numbers = reader.numbers(2 * count)
    return Repair(group, tuple(zip(numbers[::2], numbers[1::2], strict=True)))


def _get_repair_reply(reader: _Reader, count: int) -> RepairReply:
    (group,) = reader.numbers(1)
    return RepairReply(group, reader.ops(group, count))


_DECODERS: Final = {
    BEATS: _get_beats,
    BEAT_REPLIES: _get_beat_replies,
    ACK_SLICES: _get_acks,
    APPEND: _get_append,
    APPEND_SLICES: _get_append_slices,
    INSTALL: _get_install,
    REPAIR: _get_repair,
    REPAIR_REPLY: _get_repair_reply,
}

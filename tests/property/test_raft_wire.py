"""Envelopes between nodes: what was sent is what arrives, and any other bytes are an error."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.cluster.wire_check import check_envelope
from meterd.core.cluster.wire_envelopes import ready_to_send
from meterd.core.log.record_cut import cut
from meterd.protocol import log_format, raft_records
from meterd.protocol.errors import RemoteProtocolError
from meterd.protocol.raft_frames import (
    HEADER_SIZE,
    NUMBER_MAX,
    Note,
    decode_note,
    encode_note,
    parse_header,
)
from meterd.protocol.raft_messages import (
    UNKNOWN,
    Append,
    AppendReply,
    Beat,
    BeatReplies,
    BeatReply,
    Beats,
    Hello,
    HelloReply,
    PreVote,
    PreVoteReply,
    Repair,
    TimeoutNow,
    Vote,
    VoteReply,
    Vouch,
)
from meterd.protocol.raft_records import RecordSlice, RecordSlices
from meterd.protocol.raft_rows import Rows
from meterd.protocol.raft_slices import AckSlices
from meterd.protocol.raft_wire import TERM_MAX, decode, encode
from tests.support.log_builder import LoggedEvent
from tests.support.peer_messages import (
    BOOT,
    CLUSTER,
    GOLDEN,
    SOURCE,
    TARGET,
    Histories,
    envelope,
    event,
    events_record,
    every_envelope,
    golden_frames,
    read_golden,
)

EVERY = every_envelope()
FRAMES = {name: [bytes(frame) for frame in encode(one)] for name, one in EVERY.items()}

numbers = st.integers(0, NUMBER_MAX)
terms = st.integers(0, TERM_MAX)
groups = st.integers(0, 256)
flags = st.booleans()
messages = st.one_of(
    st.builds(PreVote, groups, terms, numbers, terms),
    st.builds(PreVoteReply, groups, numbers, flags, terms),
    st.builds(Vote, groups, terms, numbers, terms, flags),
    st.builds(VoteReply, groups, numbers, flags, terms),
    st.builds(
        AppendReply,
        groups,
        terms,
        numbers,
        numbers,
        numbers,
        numbers,
        terms,
        numbers,
        numbers,
        flags,
    ),
    st.builds(TimeoutNow, groups, terms, numbers),
    st.builds(Vouch, groups, terms, numbers),
    st.builds(Hello, numbers),
    st.builds(HelloReply, numbers, numbers),
    st.builds(
        Beats,
        numbers,
        numbers,
        numbers,
        st.lists(st.builds(Beat, groups, terms, numbers), max_size=4).map(tuple),
    ),
    st.builds(
        BeatReplies,
        numbers,
        numbers,
        numbers,
        st.lists(
            st.builds(BeatReply, groups, terms, numbers, numbers, numbers, numbers, flags),
            max_size=4,
        ).map(tuple),
    ),
    st.builds(Repair, groups, st.lists(st.tuples(numbers, numbers), max_size=4).map(tuple)),
    st.builds(
        Append, groups, terms, numbers, terms, st.integers(0, 2**128 - 1), st.just(()), numbers
    ),
)
events = st.builds(
    LoggedEvent,
    st.sampled_from(["a", "a/b", "ä/ö", "x" * 128]),
    st.uuids().map(str) | st.text("xyz", min_size=1, max_size=9),
    st.integers(0, 65_535),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["none", "add", "remove"]),
    st.dictionaries(st.sampled_from(["k", "region"]), st.text("uü", max_size=5), max_size=2),
)
contents = st.dictionaries(
    st.integers(0, 255), st.lists(events, min_size=1, max_size=4), min_size=1, max_size=5
)


def plain(value: Any) -> Any:
    """Make messages comparable: arrays as lists, records as bytes."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, RecordSlice):
        record = value.record
        return raft_records.head_of(record), bytes(record.payload), value.number
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, Rows | RecordSlices):
        value = tuple(value)
    if isinstance(value, tuple | list):
        return type(value).__name__, [plain(item) for item in value]
    return value


@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_kind_of_message_arrives_as_it_was_sent(name: str) -> None:
    assert plain(decode(FRAMES[name])) == plain(EVERY[name])


@pytest.mark.parametrize("name", sorted(EVERY))
def test_golden_frames_are_what_is_written_and_what_is_read(name: str) -> None:
    """A failing test here means that nodes of two versions would not understand each other."""
    assert golden_frames()[name] == read_golden(name)
    assert plain(decode(read_golden(name))) == plain(EVERY[name])


def test_every_message_has_its_golden_file() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(EVERY)


@given(st.lists(messages, max_size=12))
def test_any_messages_arrive_as_they_were_sent_and_in_order(sent: list[Any]) -> None:
    assert decode(encode(envelope(*sent))) == envelope(*sent)


@given(contents)
def test_a_record_arrives_once_and_is_found_to_follow(rows: dict[int, list[LoggedEvent]]) -> None:
    message = Histories(2).slices(events_record(rows))
    frames = encode(envelope(message))
    assert len(frames) == 2
    arrived = decode(frames)
    assert plain(arrived) == plain(envelope(message))
    assert plain(check_envelope(arrived, lambda *_: None)) == plain(arrived)
    record = arrived.messages[0].ops.body[0].record
    assert np.shares_memory(np.frombuffer(record.payload, np.uint8), np.frombuffer(frames[1], "u1"))


@given(contents, st.data())
def test_what_is_cut_out_of_a_record_follows_as_before(
    rows: dict[int, list[LoggedEvent]], data: st.DataObject
) -> None:
    whole = Histories(3).slices(events_record(rows))
    some = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, unique=True))
    part = whole.take(np.array(sorted(some)))
    (ready,) = ready_to_send(envelope(part))
    assert ready.is_bulk
    arrived = decode(encode(ready.envelope))
    check_envelope(arrived, lambda *_: None)
    message = arrived.messages[0]
    assert plain(message[:4]) == plain(part[:4])
    assert plain(message.ops[:6]) == plain(part.ops[:6])
    partitions = [sorted(rows)[number] for number in sorted(some)]
    alone = events_record({number: rows[number] for number in partitions})
    assert bytes(message.ops.body[0].record.payload) == bytes(alone.payload)


@given(contents)
def test_an_op_goes_alone_where_the_engine_sends_it_alone(
    rows: dict[int, list[LoggedEvent]],
) -> None:
    whole = Histories(4).slices(events_record(rows))
    for number, one in enumerate(whole.expanded()):
        (ready,) = ready_to_send(envelope(one))
        (arrived,) = check_envelope(decode(encode(ready.envelope)), lambda *_: None).messages
        assert arrived._replace(ops=()) == one._replace(ops=())
        assert plain(arrived.ops[0][:5]) == plain(one.ops[0][:5])
        alone = cut(whole.ops.body[0].record, [number])
        assert bytes(arrived.ops[0].body.record.payload) == bytes(alone.payload)


@given(contents)
def test_ops_say_themselves_whether_they_follow(rows: dict[int, list[LoggedEvent]]) -> None:
    """A leader whose files begin with an op does not know what came before it.

    What it says of that is not heeded: it may even be this replica's own digest.
    """
    sent = [
        message._replace(prev_index=message.ops[0].index - 1, prev_term=UNKNOWN, prev_digest=1)
        for message in Histories(4).slices(events_record(rows)).expanded()
    ]
    past = Histories(4)
    (ready,) = ready_to_send(envelope(*sent))
    arrived = decode(encode(ready.envelope))
    same = check_envelope(arrived, lambda group, _: past.digest_at(group))
    assert [m.prev_digest for m in same.messages] == [past.digest_at(m.group) for m in sent]
    for other in (None, 1):
        found = check_envelope(arrived, lambda *_: other)  # noqa: B023
        assert [m.prev_digest for m in found.messages] == [0] * len(sent)


def test_small_messages_go_by_themselves_and_large_ones_in_portions() -> None:
    past = Histories(5)
    bulk = [past.slices(events_record({n: [event(n)] * 4_000, 99: [event(1)]})) for n in range(20)]
    small = [Hello(1), TimeoutNow(3, 4, 5)]
    ready = list(ready_to_send(envelope(small[0], *bulk, small[1])))
    assert [one.is_bulk for one in ready] == [False] + [True] * (len(ready) - 1)
    assert ready[0].envelope.messages == tuple(small)
    sent = [m.ops.groups.tolist() for one in ready[1:] for m in one.envelope.messages]
    assert sent == [m.ops.groups.tolist() for m in bulk]
    assert len(ready) > 2
    assert all(one.size <= 2 << 20 for one in ready)


# Bad bytes.


def try_decode(frames: list[Any]) -> None:
    with contextlib.suppress(RemoteProtocolError):
        check_envelope(decode(frames), lambda *_: 0)


def with_checksum(first: bytearray) -> bytes:
    """Return a first frame whose size and checksum are right, whatever else it says."""
    if len(first) >= HEADER_SIZE:
        first[88:92] = len(first).to_bytes(4, "little")
        crc = crc32c(bytes(first[HEADER_SIZE:]), crc32c(bytes(first[:92])))
        first[92:96] = crc.to_bytes(4, "little")
    return bytes(first)


@st.composite
def mutated(draw: Any) -> list[bytes]:
    """Frames of an envelope with a few edits; the checksum of the first may be mended."""
    frames = [bytearray(f) for f in FRAMES[draw(st.sampled_from(sorted(FRAMES)))]]
    for _ in range(draw(st.integers(1, 3))):
        raw = draw(st.sampled_from(frames))
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        size = draw(st.sampled_from([0, 1, 2, 4, 8, 16]))
        edit = draw(st.sampled_from(["flip", "cut", "put", "word", "repeat", "end", "swap"]))
        if edit == "flip" and raw:
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif edit == "cut":
            del raw[at : at + size]
        elif edit == "put":
            raw[at : at + size] = draw(st.binary(max_size=8))
        elif edit == "word":
            value = draw(
                st.sampled_from([0, 1, 255, 257, 1 << 16, 1 << 32, 1 << 62, (1 << 64) - 1])
            )
            raw[at // 8 * 8 : at // 8 * 8 + 8] = value.to_bytes(8, "little")
        elif edit == "repeat":
            raw[at:at] = raw[at : at + size]
        elif edit == "end":
            del raw[at:]
        else:
            frames.append(frames.pop(draw(st.integers(0, len(frames) - 1))))
    if draw(st.booleans()) and frames:
        frames[0] = bytearray(with_checksum(frames[0]))
    return [bytes(frame) for frame in frames]


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_bytes_are_an_envelope_or_an_error(frames: list[bytes]) -> None:
    try_decode(frames)


@given(mutated())
def test_any_changed_envelope_is_an_envelope_or_an_error(frames: list[bytes]) -> None:
    try_decode(frames)


RECORDS = ["append", "slices", "expire", "repair"]


def with_changed_payload(name: str, number: int, at: int, bits: int) -> list[bytes]:
    """Return an envelope with a byte of a record's payload changed, and right checksums."""
    frames = [bytearray(frame) for frame in FRAMES[name]]
    payload = frames[number]
    payload[at] ^= bits
    first = frames[0]
    begin = -1
    for _ in range(number):  # the record's head is the one with this number
        begin = first.index(log_format.RECORD_MAGIC.to_bytes(4, "little"), begin + 1)
    slices = int.from_bytes(first[begin + 12 : begin + 16], "little")
    first[begin + 48 : begin + 52] = crc32c(bytes(payload)).to_bytes(4, "little")
    table = bytes(first[begin + 64 : begin + 64 + 40 * slices])
    crc = crc32c(table, crc32c(bytes(first[begin : begin + 60])))
    first[begin + 60 : begin + 64] = crc.to_bytes(4, "little")
    return [with_checksum(first), *(bytes(frame) for frame in frames[1:])]


@given(st.sampled_from(RECORDS), st.data())
def test_a_changed_record_with_right_checksums_does_not_follow(
    name: str, data: st.DataObject
) -> None:
    """Whoever changes a payload must change the digests, and all that come after them."""
    number = data.draw(st.integers(1, len(FRAMES[name]) - 1))
    at = data.draw(st.integers(0, len(FRAMES[name][number]) - 1))
    assert_not_taken(name, with_changed_payload(name, number, at, data.draw(st.integers(1, 255))))


@pytest.mark.parametrize("name", RECORDS)
def test_no_bit_of_a_record_may_differ(name: str) -> None:
    """Where an entry of the heap ends is in no digest; hypothesis moved such a border once."""
    for number in range(1, len(FRAMES[name])):
        for bit in range(8 * len(FRAMES[name][number])):
            assert_not_taken(name, with_changed_payload(name, number, bit // 8, 1 << bit % 8))


def assert_not_taken(name: str, frames: list[bytes]) -> None:
    """An envelope is refused; of a repair what does not follow may be left out instead."""
    try:
        found = check_envelope(decode(frames), own_digest)
    except RemoteProtocolError:
        return
    assert name == "repair"
    assert len(found.messages[1].ops) < 2


def own_digest(group: int, index: int) -> int | None:
    """What a replica that has the history of group 11 knows."""
    before, first = Histories(1), EVERY["repair"].messages[1].ops[0]
    known = {int(before.index[11]): before.digest_at(11), first.index: first.digest}
    return known.get(index) if group == 11 else None


def test_repair_is_checked_against_the_own_log() -> None:
    arrived = decode(FRAMES["repair"])
    checked = check_envelope(arrived, own_digest)
    assert len(checked.messages[1].ops) == 2
    unknown = check_envelope(arrived, lambda *_: None)
    assert unknown.messages[1].ops == ()
    # Since it asked another leader's ops may have taken the place of what was to be repaired.
    elsewhere = check_envelope(arrived, lambda *_: 1)
    assert elsewhere.messages[1].ops == ()


def test_another_version_is_told_apart() -> None:
    first = bytearray(FRAMES["votes"][0])
    first[4] = 2
    with pytest.raises(RemoteProtocolError) as caught:
        decode([with_checksum(first)])
    assert caught.value.code == "unsupported_version"


def test_groups_that_do_not_ascend_are_refused() -> None:
    twice = np.ones((5, 2), np.int64)
    with pytest.raises(RemoteProtocolError, match="ascend"):
        decode(encode(envelope(AckSlices(*twice))))


# Notes.


@given(st.lists(st.binary(max_size=40), max_size=5), numbers, numbers, numbers)
def test_notes_arrive_as_they_were_sent(
    sent: list[bytes], sequence: int, boot: int, heard: int
) -> None:
    note = Note(CLUSTER, SOURCE, TARGET, BOOT, sent)
    frames = encode_note(note, sequence, boot, heard)
    header = parse_header(frames[0])
    assert header[6:9] == (sequence, boot, heard)
    assert decode_note(header, frames) == note


@given(st.data())
def test_a_changed_note_is_an_error(data: st.DataObject) -> None:
    frames = [bytearray(f) for f in encode_note(Note(CLUSTER, SOURCE, TARGET, BOOT, [b"ab", b"c"]))]
    raw = data.draw(st.sampled_from(frames))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RemoteProtocolError):
        decode_note(parse_header(frames[0]), frames)

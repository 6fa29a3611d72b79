"""Envelopes as nodes send them: records with real contents and chains, every kind of message.

`python -m tests.support.peer_messages` writes the golden frames in tests/data/peer_frames/, which
a change of the encoders must not alter by accident.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from meterd.core.kernels import chain, stage
from meterd.protocol import log_format, raft_records
from meterd.protocol.log_format import EVENTS, META, SLICE, Record
from meterd.protocol.raft_messages import (
    CONFIG,
    NOOP,
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
    member_id,
)
from meterd.protocol.raft_records import RecordSlice, RecordSlices
from meterd.protocol.raft_slices import AckSlices, AppendSlices, SliceOps, words
from meterd.protocol.raft_wire import encode
from tests.support.log_builder import LoggedEvent, columns

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "peer_frames"
CLUSTER = int.from_bytes(bytes(range(16, 32)), "little")
SOURCE, TARGET = member_id(1, 1), member_id(2, 3)
BOOT = 1_770_000_000_000
TERM, REGISTRY, TIME = 7, 3, 1_770_000_000_000_000_000


def events_record(rows: dict[int, list[LoggedEvent]]) -> Record:
    """A record with these partitions' rows, its slices not yet placed: digests are contents."""
    partitions = sorted(rows)
    together = [event for number in partitions for event in rows[number]]
    payload, heap_size = columns(together)
    layout = log_format.payload_layout(len(together), heap_size)
    ends = [0, *np.frombuffer(payload, "<u4", len(together), layout.heap_end).tolist()]
    table = np.zeros(len(partitions), SLICE)
    row = 0
    for at, number in enumerate(partitions):
        last = row + len(rows[number])
        table[at]["digest"] = stage.content_of(
            np.frombuffer(payload, np.uint8), layout[:6], row, last - row, ends[row], ends[last]
        )
        table[at]["partition"], table[at]["count"] = number, last - row
        table[at]["heap_size"] = ends[last] - ends[row]
        row = last
    return _record(EVENTS, row, heap_size, table, payload)


def body_record(kind: int, groups: list[int], body: bytes) -> Record:
    """A record with a slice for each group, whose content is one body."""
    payload = body.ljust(log_format.padded(len(body)), b"\0")
    table = np.zeros(len(groups), SLICE)
    table["partition"], table["count"] = groups, 1
    table["digest"] = stage.content_of_bytes(np.frombuffer(payload, np.uint8))
    return _record(kind, 0, len(body), table, payload)


def _record(kind: int, rows: int, heap_size: int, table: np.ndarray, payload: bytes) -> Record:
    size = log_format.RECORD_HEADER_SIZE + table.nbytes + len(payload)
    fields = (rows, heap_size, REGISTRY, TIME, 12)
    return Record(0, size, kind, 1, *fields, table, memoryview(payload))


class Histories:
    """The last index and digest of each group at the sender."""

    def __init__(self, seed: int = 1) -> None:
        random = np.random.default_rng(seed)
        self.index = random.integers(0, 1 << 40, 257).astype(np.uint64)
        self.digest = random.integers(0, 1 << 64, (257, 2), np.uint64)

    def digest_at(self, group: int) -> int:
        low, high = self.digest[group].tolist()
        return low | high << 64

    def place(self, record: Record, term: int = TERM) -> Record:
        """Give a record's slices the next places of their groups."""
        stamps = [0, 0] if record.kind in (NOOP, CONFIG) else [REGISTRY, TIME]
        table = record.slices.copy()
        groups = table["partition"]
        fields = np.array([record.kind, *stamps], np.uint64)
        index = (self.index[groups] + np.uint64(1)).astype(np.int64)
        terms, out = np.full(len(groups), term), np.empty((len(groups), 2), np.uint64)
        contents = np.ascontiguousarray(table["digest"])
        chain.chain_ops(self.digest[groups], index, terms, fields, contents, out)
        table["index"], table["term"], table["digest"] = index, term, out
        self.index[groups], self.digest[groups] = index, out
        return record._replace(slices=table)

    def op(self, group: int, kind: int, body: object = None, record: Record | None = None) -> Op:
        """The next op of a group: of the engine, or a record with one slice."""
        if record is None:
            table = np.zeros(1, SLICE)
            table["partition"], table["count"] = group, 1
            payload = raft_records.engine_payload(kind, body)
            table["digest"] = stage.content_of_bytes(np.frombuffer(payload, np.uint8))
            record = raft_records.engine_record(kind, body, table)
        record = self.place(record)
        if kind not in (NOOP, CONFIG):
            body = RecordSlice(record, 0)
        low, high = record.slices["digest"][0].tolist()
        index = int(record.slices["index"][0])
        return Op(index, TERM, low | high << 64, kind, record.size, body)

    def slices(self, record: Record) -> AppendSlices:
        """The message that carries a whole record."""
        groups = record.slices["partition"].astype(np.int64)
        before = self.digest[groups].copy()
        placed = self.place(record)
        table, count = placed.slices, len(groups)
        same = np.ones(count, np.int64)
        ops = SliceOps(
            groups,
            table["index"].astype(np.int64),
            table["term"].astype(np.int64),
            table["digest"].copy(),
            same * record.kind,
            same * 100 + np.arange(count),
            RecordSlices(placed),
        )
        return AppendSlices(same * TERM, same * (TERM - 1), before, table["index"] - same, ops)


def event(number: int, account: str = "acme") -> LoggedEvent:
    return LoggedEvent(account, f"evt-{number}", 3, number, TIME + number, "none", {"region": "eu"})


def envelope(*messages: object) -> Envelope:
    return Envelope(CLUSTER, SOURCE, TARGET, BOOT, 99, messages)


def every_envelope() -> dict[str, Envelope]:
    """One envelope of each kind of message, for golden bytes and as seeds of mutation."""
    past = Histories()
    three = Configuration((SOURCE, TARGET, member_id(3, 1)), (member_id(4, 1),))
    columns5 = np.arange(1, 11, dtype=np.int64).reshape(5, 2)
    groups = [4, 5]
    append_from, append_digest = int(past.index[9]), past.digest_at(9)
    repair_from = int(past.index[11])
    return {
        "votes": envelope(
            PreVote(3, 8, 100, 7),
            PreVote(4, 8, 101, 7),
            PreVoteReply(3, 8, True, 7),
            Vote(5, 9, 7, 6, False),
            Vote(256, 9, 7, 6, True),
            VoteReply(5, 9, False, 10),
            TimeoutNow(6, 9, 12),
            Vouch(7, 9, BOOT),
        ),
        "beats": envelope(
            Hello(98),
            HelloReply(BOOT, 97),
            Beats(5, 1_000, BOOT, (Beat(0, 7, 12), Beat(255, 7, 13))),
            BeatReplies(4, 900, BOOT, (BeatReply(3, 7, 12, 11, 0, 0, True),)),
        ),
        "replies": envelope(
            AppendReply(3, 7, 12, 13, 12, 0, 0, 0, 0, True),
            AppendReply(4, 7, 12, 0, 12, 11, 6, 2, BOOT, False),
            AckSlices(np.array(groups), *columns5[1:]),
        ),
        "append": envelope(
            Append(
                9,
                TERM,
                append_from,
                6,
                append_digest,
                (
                    past.op(9, NOOP, 1),
                    past.op(9, EVENTS, record=events_record({9: [event(1), event(2)]})),
                    past.op(9, CONFIG, three),
                    past.op(9, META, record=body_record(META, [9], b"\x81\xa1a\x01")),
                ),
                12,
            ),
            Append(10, TERM, 3, 6, words(5)[0], (), 3),
        ),
        "slices": envelope(
            past.slices(
                events_record({1: [event(1)], 7: [event(2), event(3, "b")], 255: [event(4)]})
            )
        ),
        "expire": envelope(past.slices(body_record(log_format.EXPIRE, [1, 2], b"\x81\xa1h\x05"))),
        "install": envelope(Install(8, TERM, Mark(77, 6, 1 << 100, three), b"a snapshot")),
        "repair": envelope(
            Repair(11, ((repair_from + 1, TERM), (3, 2))),
            RepairReply(
                11,
                (past.op(11, EVENTS, record=events_record({11: [event(5)]})), past.op(11, NOOP, 2)),
            ),
        ),
        "nothing": envelope(),
    }


def golden_frames() -> dict[str, list[bytes]]:
    """The frames of every envelope, as they are sent first."""
    return {
        name: [bytes(frame) for frame in encode(one, 3, 1_769_999_999_999, 2)]
        for name, one in every_envelope().items()
    }


def read_golden(name: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in (GOLDEN / f"{name}.txt").read_text().split()]


if __name__ == "__main__":
    for name, frames in golden_frames().items():
        text = "".join(f"{frame.hex()}\n" for frame in frames)
        (GOLDEN / f"{name}.txt").write_text(text)

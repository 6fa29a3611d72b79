"""The usage actor in a cluster: slices become committed one by one, are replaced, outlast a start.

Log, ingest and usage are the real ones; the test takes the place of replication and says what is
committed.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from meterd.actors.frames.bundle import bundle
from meterd.actors.ingest import Ingest
from meterd.actors.log.replay import NOTHING
from meterd.actors.usage import Usage
from meterd.actors.wal_writer import WalWriter
from meterd.core.cluster.proposals import Proposal
from meterd.core.log.scan import Groups
from meterd.protocol import log_format
from meterd.protocol.errors import InvariantViolation
from meterd.protocol.log_format import GROUP_COUNT, META_GROUP, NOT_HERE, SLICE, TERM_ROW
from tests.support.recording import answers, recorded, request
from tests.support.replica import Replica

LIMITS = dict.fromkeys(("accounts", "series", "cells"), 10_000)
ACCOUNTS = [f"account-{number}" for number in range(6)]
ME, OTHER = 1, 2


class Member:
    """A node whose replication is the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        sections: dict[str, Any] = {"limits": LIMITS, "wal": {"segment_size": 4 << 20}}
        self.wal = recorded(WalWriter, path, **sections)
        self.usage = recorded(Usage, path, **sections)
        self.ingest = recorded(Ingest, path, **sections)
        (_, opened), *_ = self.wal.take(b"opened")
        self.end = msgpack.unpackb(opened[1], strict_map_key=False)
        self.replica = Replica(Groups.unpacked(self.end))
        self.heads: list[log_format.Record] = []
        self.held: list[Any] | None = None  # records that go with what makes them committed
        self.usage.handle(
            [b"replay", opened[1], msgpack.unpackb(opened[2], strict_map_key=False)["marks"][0]]
        )

    def say_leaders(self, leaders: bytes = bytes([ME]) * GROUP_COUNT) -> None:
        self.usage.handle([b"leaders", bytes(8), leaders])

    def begin(self) -> Member:
        """Serve: everything in the log is committed, and a metric is registered."""
        self.say_leaders()
        self.commit(dict(enumerate(self.replica._groups.index.tolist())))
        self.turn()
        self.commit_all()
        if not self.usage.state.registry.entries:
            self.send("metric_put", {"code": "calls", "aggregation": "sum"})
            self.turn()
            self.commit_all()
            assert self.answers() == ["ok"]
        return self

    def send(self, kind: str, body: dict[str, Any]) -> None:
        self.ingest.handle([b"requests", *bundle([b"ticket", *request(kind, body)])])
        self.ingest.flush()

    def count(self, *accounts: str, prefix: str = "") -> None:
        """Send one event of each account, in one request; it becomes one record."""
        event = {"metric": "calls", "timestamp": self.usage.state.leader_time, "value": 1}
        rows = [event | {"account": name, "id": prefix + name} for name in accounts]
        self.send("ingest", {"events": rows})
        self.turn()

    def turn(self) -> None:
        """Order what is proposed, make it durable, and hand everything on."""
        for actor in (self.usage, self.ingest):
            for _, frames in actor.take(b"propose"):
                fields = msgpack.unpackb(frames[1])
                fields["slices"] = bytearray(fields["slices"])
                proposal = Proposal(payload=bytes(frames[2]), **fields)
                append = self.replica.propose(proposal, time.time_ns())
                self.write(append.head, append.payload, frames[3])
        self.wal.flush()
        for _, frames in self.wal.take(b"commit"):
            self.usage.handle([bytes(frame) for frame in frames])
        self.usage.flush()
        for _, frames in self.usage.take(b"registry"):
            self.ingest.handle([bytes(frame) for frame in frames])
            self.ingest.flush()

    def write(self, head: bytes, payload: Any, origin: bytes = b"") -> None:
        record = log_format.parse_frames(head, bytes(payload))
        self.heads.append(record)
        sequence = record.sequence.to_bytes(8, "little")
        self.wal.handle([b"append", sequence, head, payload])
        found = [sequence, head, bytes(payload), bytes(origin)]
        if self.held is None:
            self.usage.handle([b"record", *found])
        else:
            self.held += found

    def other(
        self, kind: int, body: Any, *slices: tuple[int, int, int, int], version: int = 0
    ) -> None:
        """Write a record of another leader; slices: (group, index, term, flags)."""
        table = np.zeros(len(slices), SLICE)
        for row, (group, index, term, flags) in enumerate(slices):
            table[row] = (group, flags, 1, index, (0, 0), term, 0)
        packed = body if isinstance(body, bytes) else msgpack.packb(body)
        payload = packed.ljust(log_format.padded(len(packed)), b"\0")
        groups = self.replica._groups
        groups.sequence += 1
        now = time.time_ns() if kind in log_format.TIMED else 0
        fields = log_format.RecordFields(kind, 0, len(packed), version, now, groups.sequence)
        self.write(log_format.encode_record_head(fields, table, payload), payload)
        self.turn()

    def commit(self, index: dict[int, int]) -> None:
        groups = np.array(list(index), np.uint16)
        words = np.array(list(index.values()), np.uint64)
        said = [groups.tobytes(), words.tobytes()]
        if self.held:
            count, held, self.held = bytes([len(self.held) // 4]), self.held, []
            self.usage.handle([b"record_committed", count, *held, *said])
        else:
            self.usage.handle([b"committed", *said])
        self.usage.flush()

    def commit_all(self) -> None:
        self.commit(dict(enumerate(self.replica._groups.index.tolist())))
        self.turn()

    def answers(self) -> list[str]:
        return [status for name in (self.ingest, self.usage) for status, _ in answers(name)]

    def results(self) -> list[dict[str, Any]]:
        return [body for _, body in answers(self.usage)]

    def close(self) -> None:
        for actor in (self.usage, self.ingest, self.wal):
            actor.close()


@pytest.fixture
def member(tmp_path):
    made = Member(tmp_path).begin()
    yield made
    made.close()


def slices_of(member: Member) -> dict[int, int]:
    """Return group → index of the last record."""
    slices = member.heads[-1].slices
    return dict(zip(slices["partition"].tolist(), slices["index"].tolist(), strict=True))


def refused(usage: Any) -> dict[int, tuple[bytes, int]]:
    return {number: usage.refused.packed(number) for number in usage.refused.files()}


def test_a_request_is_answered_when_each_of_its_slices_is_committed(member):
    member.count(*ACCOUNTS)
    groups = slices_of(member)
    assert len(groups) > 2
    position = member.usage.position
    for number, (group, index) in enumerate(groups.items()):
        assert member.results() == []
        assert member.usage.position == position
        assert not member.usage.queue.empty
        member.commit({group: index})
        assert member.usage.state.stored == sum(
            int(one["count"]) for one in member.heads[-1].slices[: number + 1]
        )
    (result,) = member.results()
    assert (result["received"], result["stored"]) == (len(ACCOUNTS), len(ACCOUNTS))
    assert member.usage.queue.empty
    assert member.usage.position == member.usage.read_end != position


def test_records_may_come_with_what_makes_them_committed(member):
    member.held = []
    member.count(*ACCOUNTS)
    first = slices_of(member)
    member.count(*ACCOUNTS, prefix="again-")
    queue = member.usage.queue
    assert member.results() == [] and not (queue._coming or queue._held)
    member.commit(first)
    assert [result["stored"] for result in member.results()] == [len(ACCOUNTS)]
    member.commit_all()
    assert [result["stored"] for result in member.results()] == [len(ACCOUNTS)]
    assert member.usage.state.stored == 2 * len(ACCOUNTS)
    assert member.usage.queue.empty


def test_what_another_leader_replaced_is_answered_unknown(member):
    member.count(*ACCOUNTS)
    (lost, index), *others = slices_of(member).items()
    rows = int(member.heads[-1].slices["count"][0])
    member.other(log_format.NOOP, {"why": 1}, (lost, index, 2, 0))
    member.commit({lost: index} | dict(others))
    (result,) = member.results()
    assert (result["unknown"], result["stored"]) == (rows, len(ACCOUNTS) - rows)
    assert {item[1] for item in result["items"]} == {"unknown"}
    assert member.usage.state.stored == len(ACCOUNTS) - rows


REFUSED = {"metric": "no_such", "timestamp": 1, "value": 1}


def refuse(member: Member, *accounts: str) -> None:
    """Send events that ingest refuses, with the identities that `count` uses."""
    member.send("ingest", {"events": [REFUSED | {"account": a, "id": a} for a in accounts]})
    for _, frames in member.ingest.take(b"judge"):
        member.usage.handle([bytes(frame) for frame in frames])
    member.usage.flush()


def statuses(member: Member) -> list[list[str]]:
    return [[item[1] for item in result["items"]] for result in member.results()]


def test_what_is_refused_is_judged_when_what_came_before_in_its_partition_is_applied(member):
    """Its first attempt waits for the other replicas, and a later record does not."""
    one, other = ACCOUNTS[:2]
    member.count(one)
    first = slices_of(member)
    member.count(other)
    second = slices_of(member)
    refuse(member, one)
    refuse(member, other)
    assert statuses(member) == []
    member.commit(second)
    assert statuses(member) == [[], ["conflict"]]
    member.commit(first)
    assert statuses(member) == [[], ["conflict"]]


def test_refused_rows_of_a_record_wait_for_what_came_before_in_their_partition(member):
    one, other = ACCOUNTS[:2]
    member.count(one)
    first = slices_of(member)
    event = {"metric": "calls", "timestamp": member.usage.state.leader_time, "value": 1}
    events = [event | {"account": other, "id": "new"}, REFUSED | {"account": one, "id": one}]
    member.send("ingest", {"events": events})
    member.turn()
    member.commit(slices_of(member))
    assert statuses(member) == [] and member.usage.state.stored == 1
    member.count(other)
    member.commit(slices_of(member))  # whose outcome is another
    assert statuses(member) == [[]]
    member.commit(first)
    assert statuses(member) == [[], ["conflict"]]


def test_what_came_before_may_be_replaced(member):
    member.count(ACCOUNTS[0])
    ((group, index),) = slices_of(member).items()
    refuse(member, ACCOUNTS[0])
    member.other(log_format.NOOP, {"why": 1}, (group, index, 2, 0))
    assert statuses(member) == [["unknown"]]  # the first attempt
    member.commit({group: index})
    assert statuses(member) == [["rejected"]]


def test_of_too_many_that_wait_the_oldest_is_undecided(member, monkeypatch):
    monkeypatch.setattr("meterd.actors.requests.judging.HELD_MAX", 1)
    member.count(ACCOUNTS[0])
    refuse(member, ACCOUNTS[0])
    refuse(member, ACCOUNTS[0])
    assert statuses(member) == [["unknown"]]
    member.commit_all()
    assert statuses(member) == [[], ["conflict"]]


def test_a_deposed_leader_judges_nothing(member, monkeypatch):
    """No other node has said that it still leads, and none will."""
    monkeypatch.setattr(member.usage.leader_map, "alone", False)
    member.say_leaders()
    refuse(member, ACCOUNTS[0])
    assert statuses(member) == []
    ((_, (_, cause, _)),) = member.usage.take(b"read")
    member.usage.handle([b"read_refused", cause])
    member.usage.flush()
    assert statuses(member) == [["unknown"]]


def test_a_command_that_was_replaced_is_answered_with_an_error(member):
    member.send("metric_put", {"code": "other", "aggregation": "sum"})
    member.turn()
    ((group, index),) = slices_of(member).items()
    member.other(log_format.NOOP, {"why": 1}, (group, index, 2, 0))
    member.commit({group: index})
    member.turn()
    assert [status for status, _ in answers(member.ingest) + answers(member.usage)] == ["error"]
    assert member.usage.state.registry.find("other") is None


def test_a_slice_waits_for_the_registry_that_it_was_made_under(member):
    member.send("metric_put", {"code": "other", "aggregation": "sum"})
    member.turn()
    meta, state = slices_of(member), member.usage.state
    index = 1 + int(member.replica._groups.index[7])
    body = {"op": "expire", "horizon": 0, "totals_horizon": 0, "future_ns": 12_345}
    version = state.registry.version + 1
    member.other(log_format.EXPIRE, body, (7, index, 1, 0), version=version)
    member.commit({7: index})
    assert state.future_ns != 12_345 and not member.usage.queue.empty
    member.commit(meta)
    assert state.registry.version == version
    assert state.horizons.alike is False and member.usage.queue.empty


def test_a_slice_that_is_not_here_is_no_part_of_the_record(member):
    free = next(g for g in range(256) if member.replica._groups.index[g] == 1)
    body = {"voters": [ME], "learners": [OTHER]}
    slices = [(free, 2, 2, 0), (META_GROUP, 99, 9, NOT_HERE)]
    member.other(log_format.CONFIG, body, *slices)
    member.commit({free: 2})
    assert member.usage.queue.empty
    assert member.usage.applier.facts.configurations[free] == ((ME,), (OTHER,))


def test_a_snapshot_in_the_log_is_refused(member):
    with pytest.raises(InvariantViolation, match="snapshot"):
        member.other(log_format.MARK, {"group": 1})


def test_terms_are_kept_when_everything_before_them_is_resolved(member):
    member.count("account-1")
    row = np.array([(5, 1, 7, 3)], TERM_ROW)
    member.other(log_format.TERMS, row.tobytes())
    facts = member.usage.applier.facts
    assert facts.terms == {}
    member.commit_all()
    assert facts.packed()["terms"] == {5: [7, 3, 1]}
    assert member.usage.queue.empty


@pytest.mark.parametrize("voters", [[ME], [ME, OTHER, 3]])
def test_a_new_leader_is_counted_and_one_that_leads_again_alone_is_not(member, voters):
    first = 1 + int(member.replica._groups.index[7])
    body = {"voters": voters, "learners": []}
    member.other(log_format.CONFIG, body, (7, first, 1, 0))
    for term in (2, 3):
        member.other(log_format.NOOP, {"why": 1}, (7, first + term - 1, term, 0))
        member.other(log_format.NOOP, {"why": 2}, (7, first + term, term, 0))
        first += 1
    member.commit({7: first + 3})
    assert member.usage.queue.empty
    assert int(member.usage.applier.facts.view_changes[7]) == (0 if voters == [ME] else 2)


@pytest.mark.parametrize("saved", [False, True])
def test_a_start_goes_on_with_what_waited(tmp_path, saved):
    """Half of a record is applied, a part of another is replaced; a checkpoint stands between."""
    (tmp_path / "one").mkdir()
    member = Member(tmp_path / "one").begin()
    member.count(*ACCOUNTS)
    groups = slices_of(member)
    first, second = list(groups.items())[:2]
    member.other(log_format.NOOP, {"why": 1}, (*first, 2, 0))
    member.commit(dict([first, second]))
    member.count(*ACCOUNTS[:3], prefix="later")
    later = slices_of(member)
    stored = member.usage.state.stored
    assert 0 < stored < len(ACCOUNTS)
    if saved:
        member.usage.save()
        member.usage._take_saved(wait=True)
        assert member.usage.position != member.usage.read_end
    shutil.copytree(tmp_path / "one", tmp_path / "two")  # as a crash leaves it
    again = recorded(Usage, tmp_path / "two", limits=LIMITS)
    again.handle([b"replay", msgpack.packb({"sequence": member.heads[-1].sequence}), NOTHING])
    assert not again.serving and again.state.stored == (stored if saved else 0)
    again.handle([b"leaders", bytes(8), bytes([ME]) * GROUP_COUNT])
    said = [dict.fromkeys(range(GROUP_COUNT), 1), groups, later, dict.fromkeys(range(256), 2)]
    said = [
        {g: min(i, int(member.usage.queue.last_index()[g])) for g, i in one.items()} for one in said
    ]
    for one in said:
        columns = [np.array(list(one), np.uint16), np.array(list(one.values()), np.uint64)]
        again.handle([b"committed", *(column.tobytes() for column in columns)])
        member.commit(one)
    assert again.serving and again.queue.empty and member.usage.queue.empty
    assert again.state.stored == member.usage.state.stored > stored
    assert again.groups.packed() == member.usage.groups.packed()
    assert refused(again) == refused(member.usage)
    assert again.position == member.usage.position
    assert again.applier.facts.packed() == member.usage.applier.facts.packed()
    again.close()
    member.close()


def test_a_node_of_a_cluster_serves_when_what_it_leads_is_applied(tmp_path):
    """What another leader has not committed yet does not keep it from that."""
    (tmp_path / "one").mkdir()
    member = Member(tmp_path / "one").begin()
    member.count(*ACCOUNTS)
    (mine, index), (theirs, _), *_ = slices_of(member).items()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    again = recorded(Usage, tmp_path / "two", limits=LIMITS)
    again.handle([b"replay", msgpack.packb({"sequence": member.heads[-1].sequence}), NOTHING])
    leaders = np.full(GROUP_COUNT, OTHER, np.uint8)
    leaders[mine] = ME
    again.handle([b"leaders", bytes(8), leaders.tobytes()])
    assert not again.serving
    columns = [np.array([META_GROUP, mine], np.uint16), np.array([1, index], np.uint64)]
    again.handle([b"committed", *(column.tobytes() for column in columns)])
    assert again.serving and not again.queue.empty
    assert int(again.groups.index[theirs]) == 0
    again.handle([b"requests", *bundle([b"ticket", *request("status", {})])])
    again.flush()
    assert [status for status, _ in answers(again)] == ["ok"]
    again.close()
    member.close()


def test_replication_hears_how_far_groups_are_applied(member):
    member.usage.take(b"applied")
    member.count("account-1")
    ((group, index),) = slices_of(member).items()
    member.usage.tick(1e9)
    member.usage.take(b"applied")
    member.commit({group: index})
    member.usage.tick(2e9)
    ((to, frames),) = member.usage.take(b"applied")
    assert to == "replication"
    assert np.frombuffer(frames[1], np.uint16).tolist() == [group]
    assert np.frombuffer(frames[2], np.uint64).tolist() == [index]
    member.usage.tick(3e9)
    assert member.usage.take(b"applied") == []

"""A copy of a peer takes the old directory's place, whole, wherever a crash comes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from meterd.actors.files.disk import LocalDisk
from meterd.actors.housekeeping import peer_copies
from meterd.actors.housekeeping.disk_watch import limits_of
from meterd.actors.housekeeping.jobs import Job, Task
from meterd.actors.housekeeping.peer_copies import PeerCopies
from meterd.actors.log.wal_recovery import Recovery
from meterd.actors.options import Node, Options
from meterd.actors.replicating.heard_file import HeardFile, Places
from meterd.actors.starting import copy_giver, peer_copy
from meterd.actors.starting import fetching as fetching_module
from meterd.actors.starting.copy_giver import PIECE_SIZE, CopyGiver
from meterd.actors.starting.copying import lacks
from meterd.actors.starting.fetching import Fetching, NoCopy
from meterd.actors.starting.founding import pack
from meterd.actors.starting.identity import Identity
from meterd.core.housekeeping.disk_state import Space
from meterd.core.log.group_logs import GroupLogs
from meterd.protocol.errors import DiskFull
from tests.support.ports import free_ports
from tests.unit.test_log_mending import DAMAGED, OWNER, WHO, blocks, damage, written
from tests.unit.test_log_mending import recover as mended

__all__ = ["written"]  # the fixture

KEPT = {"node.json": b"mine", "boot.json": b"7", "refused.log": b"refused", "lock": b""}
KEPT |= {"heard.json": b"{}"}
OLD = {"wal.log": b"old log", "wal-00000000000000000001.log": b"old", "checkpoint.bin": b"old c"}
STALE = {"wal.spare": b"zeros", "held-0.checkpoint.bin": b"h", "archive.bin": b"a"}
NEW = {
    "wal.log": b"new log",
    "wal-00000000000000000005.log": b"five",
    "checkpoint.bin": b"new c",
    "ids-3.run": b"ids",
    "copied.json": b'{"nodes": [2]}',
}


class Crash(Exception):
    pass


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "incoming").mkdir(parents=True)
    for name, content in (KEPT | OLD | STALE | {"behind.json": b'{"node": 2}'}).items():
        (root / name).write_bytes(content)
    for name, content in NEW.items():
        (root / "incoming" / name).write_bytes(content)
    (root / "incoming" / "seg-1-2.seg.partial").write_bytes(b"part")
    return root


def content(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}


def test_nothing_changes_before_the_copy_is_complete(directory: Path) -> None:
    before = content(directory)
    assert not peer_copy.finish(str(directory))
    assert content(directory) == before
    assert peer_copy.behind_whom(str(directory)) == 2


def test_a_crash_at_any_step_ends_with_the_copy(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer_copy.complete(str(directory))
    steps = 0
    while True:
        root = tmp_path / f"try-{steps}"
        shutil.copytree(directory, root)
        with monkeypatch.context() as patch:
            left = [steps]

            def counted(real: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
                def call(*arguments: Any, **options: Any) -> Any:
                    if left[0] == 0:
                        raise Crash
                    left[0] -= 1
                    return real(*arguments, **options)

                return call

            for place, name in ((os, "replace"), (Path, "unlink"), (shutil, "rmtree")):
                patch.setattr(place, name, counted(getattr(place, name)))
            try:
                peer_copy.finish(str(root))
                crashed = False
            except Crash:
                crashed = True
        if crashed and not (root / "incoming" / "complete.json").exists():
            assert content(root) == KEPT | NEW  # only litter is left
        peer_copy.finish(str(root))
        assert content(root) == KEPT | NEW
        assert peer_copy.behind_whom(str(root)) == 0
        assert peer_copy.copied_from(str(root)) == (2,)
        if not crashed:
            break
        steps += 1
    assert steps > len(NEW)


def test_nothing_of_another_donor_is_kept(directory: Path) -> None:
    """Its files may have the same names and sizes: log files nearly always have."""
    incoming = peer_copy.begin(str(directory), 2)
    assert content(incoming).keys() == {"donor.json"}  # nobody knows whose they were
    (incoming / "wal-00000000000000000005.log").write_bytes(b"of 2")
    (incoming / "wal.log.partial").write_bytes(b"of 2")
    peer_copy.begin(str(directory), 2)
    assert content(incoming).keys() == {"donor.json", "wal-00000000000000000005.log"}
    peer_copy.begin(str(directory), 3)
    assert content(incoming).keys() == {"donor.json"}
    (incoming / "ids-3.run").write_bytes(b"of 3")
    peer_copy.reject(str(directory))
    peer_copy.begin(str(directory), 3)
    assert content(incoming).keys() == {"donor.json"}


@pytest.mark.parametrize("wrong", [{"crc": 1}, {"data": 3}, {}])
def test_a_donor_that_sends_nonsense_is_given_up(tmp_path: Path, wrong: dict[str, Any]) -> None:
    fetching = object.__new__(Fetching)
    fetching._incoming, fetching._bytes, fetching._progress = tmp_path, 0, lambda _: None
    fetching._ask = lambda way, **fields: {"data": b"x", "size": 9, "stamp": "1"} | wrong  # type: ignore[method-assign]
    with pytest.raises(NoCopy):
        fetching._take(None, "ids-3.run")  # type: ignore[arg-type]


def test_members_are_given_pieces_and_nobody_else(tmp_path: Path) -> None:
    data = os.urandom(PIECE_SIZE + 10)
    (tmp_path / "ids-3.run").write_bytes(data)
    (tmp_path / "node.json").write_bytes(b"secret")
    giver, members = CopyGiver(str(tmp_path), WHO), WHO.beginning
    giver.applied = lambda: b"applied"
    asker = {"id": 1, "cluster": WHO.cluster_id_hex, "node": 8, "incarnation": 1}

    def ask(**fields: Any) -> dict[str, Any] | None:
        return giver.answer(asker | fields, members)

    listed = ask(copy="list")
    assert listed is not None
    assert listed["files"] == [["ids-3.run", len(data)]]
    assert (listed["donors"], listed["applied"]) == ([WHO.node_id], b"applied")
    first = ask(copy="read", name="ids-3.run", offset=0)
    second = ask(copy="read", name="ids-3.run", offset=PIECE_SIZE)
    assert first is not None
    assert second is not None
    assert first["data"] + second["data"] == data
    assert first["stamp"] == second["stamp"]
    for name in ("node.json", "../data", "ids-4.run"):
        assert (ask(copy="read", name=name, offset=0) or {}).get("gone")
    for wrong in ({"cluster": "00" * 16}, {"node": 9, "incarnation": 2}, {"node": 44}):
        assert ask(copy="list", **wrong) is None
    assert giver.answer(asker | {"copy": "list"}, None) is None
    assert ask(copy="read", name=3, offset=0) is None


def test_one_of_several_may_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, boots = [10**18], {}
    monkeypatch.setattr(copy_giver.time, "time_ns", lambda: now[0])
    giver = CopyGiver(str(tmp_path), WHO)
    giver.boot_of = lambda node: boots.get(node, 5)
    asker = {"id": 1, "cluster": WHO.cluster_id_hex, "incarnation": 1, "copy": "leave"}

    def may(node: int) -> bool:
        answer = giver.answer(asker | {"node": node}, WHO.beginning)
        assert answer is not None
        return bool(answer["leave"])

    one, other = sorted(WHO.beginning.nodes)[:2]
    assert [may(one), may(other), may(one)] == [True, False, True]
    now[0] += copy_giver.LEAVE_NS
    assert [may(other), may(one)] == [True, False]
    boots[other] = now[0] + 1  # it is back
    assert [may(one), may(other)] == [True, False]


def test_what_was_taken_over_takes_its_place_beside_what_stays(directory: Path) -> None:
    folder = Path(peer_copy.begin_adopted(str(directory)))
    (folder / "checkpoint.bin").write_bytes(b"adopted")
    (folder / "seg-5-5.idx").write_bytes(b"rows")
    peer_copy.complete_adopted(str(directory), ["wal.log", "checkpoint.bin", "seg-5-5.idx"])
    assert peer_copy.finish(str(directory))
    new = {"checkpoint.bin": b"adopted", "seg-5-5.idx": b"rows", "wal.log": b"old log"}
    assert content(directory) == KEPT | new
    assert not (directory / "incoming").exists()


def test_a_start_uses_a_copy_only_when_it_was_fetched(tmp_path: Path) -> None:
    peer_copy.note_behind(str(tmp_path), 2, 7)
    assert not peer_copy.is_fetched(str(tmp_path))
    peer_copy.note_fetched(str(tmp_path), 3)
    assert peer_copy.is_fetched(str(tmp_path))
    assert (peer_copy.behind_whom(str(tmp_path)), peer_copy.behind_in(str(tmp_path))) == (3, 7)
    peer_copy.give_up(str(tmp_path))
    assert (peer_copy.behind_whom(str(tmp_path)), peer_copy.behind_in(str(tmp_path))) == (0, None)
    assert not peer_copy.is_fetched(str(tmp_path))
    peer_copy.note_behind(str(tmp_path), 2, 7)
    assert peer_copy.not_before(str(tmp_path)) > time.time(), "not again at once"


def recover(directory: Path, who: Identity = WHO) -> Any:
    return Recovery(LocalDisk(), str(directory), OWNER, None, lambda _: None, who).run()


def test_a_copy_must_hold_all_of_the_own_log(written: Path) -> None:
    end = recover(written)
    assert lacks(end.logs, end) is None
    own = recover(written).logs
    group = int(np.flatnonzero(own.groups.index)[0])
    own.groups.index[group] += 1
    assert lacks(own, end) == group
    own = recover(written).logs
    own.groups.digest[group, 0] ^= 1
    assert lacks(own, end) == group
    # What the donor has applied is committed: an op of another history never was.
    end.logs.mark_index[group] = own.groups.index[group]
    assert lacks(own, end) is None
    # So was what the own log contradicts, and then nothing behind that counts.
    own, end = recover(written).logs, recover(written)
    group = int(np.flatnonzero(own.groups.index >= 2)[0])
    own.groups.digest[group, 0] ^= 1
    end.logs.mark_index[group] = own.groups.index[group] - 1
    mark = own._find(group, int(end.logs.mark_index[group]))
    assert mark is not None
    end.logs.mark_digest[group] = mark["digest"]
    assert lacks(own, end) == group
    end.logs.mark_digest[group, 0] ^= 1
    assert lacks(own, end) is None
    nothing = GroupLogs(WHO.member, None, WHO.beginning.configurations)
    assert lacks(nothing, end) is None


def test_a_copy_must_have_the_content_of_what_the_own_log_has(
    written: Path, tmp_path: Path
) -> None:
    """The donor's disk has rotted, and it has not been given the op again yet."""
    record = blocks(written)[DAMAGED][1][0]
    at = record.offset + record.size - len(record.payload)
    donor = damage(written, tmp_path / "donor", at, b"\xaa" * len(record.payload))
    mended(donor)
    own, end = recover(written).logs, recover(donor)
    lost = {int(row["partition"]) for row in record.slices}
    assert lacks(own, end) in lost
    assert lacks(end.logs, end) is None, "what is lost here, too, cannot be forgotten"
    for group in lost:  # the own log ends before
        own.groups.index[group] = 0
    assert lacks(own, end) is None


def test_donors_are_all_nodes_that_there_are_also_those_that_no_list_names(tmp_path: Path) -> None:
    node = Node(id=7, data_dir=str(tmp_path), peers="8:eight:9001,9:nine:9001")
    options = Options(node=node)
    assert Fetching(options, WHO, lambda _: None).donors() == [8, 9]
    file = HeardFile(str(tmp_path))
    file.close({}, Places(3, {7: "seven:9001", 9: "moved:9001", 10: "ten:9001"}))
    peer_copy.note_behind(str(tmp_path), 10, 7)
    fetching = Fetching(options, WHO, lambda _: None)
    assert fetching.donors() == [10, 8, 9]
    places = {8: ["eight:9001"], 9: ["moved:9001", "nine:9001"], 10: ["ten:9001"]}
    assert fetching._addresses == places


@pytest.mark.parametrize("heard_is_right", [True, False])
def test_a_donor_is_looked_for_where_it_was_heard_and_where_the_list_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard_is_right: bool
) -> None:
    """A cluster may move while a node is down: then what that node has heard is wrong."""
    monkeypatch.setattr(fetching_module, "ANSWER_SECONDS", 0.3)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as donor:
        port = donor.bind_to_random_port("tcp://127.0.0.1")
        places = [f"127.0.0.1:{port}", f"127.0.0.1:{free_ports(1)[0]}"]
        heard, listed = places if heard_is_right else places[::-1]
        HeardFile(str(tmp_path)).close({}, Places(3, {8: heard}))
        options = Options(node=Node(id=7, data_dir=str(tmp_path), peers=f"8:{listed}"))
        fetching = Fetching(options, WHO, lambda _: None)
        with ThreadPoolExecutor(1) as beside:
            asked = beside.submit(fetching.may_leave, True)
            rid, *question = donor.recv_multipart()
            answer = {"id": msgpack.unpackb(question[2])["id"], "leave": True}
            donor.send_multipart([rid, *pack(answer)])
            assert asked.result() is True


def test_a_copy_leaves_the_space_that_the_node_needs_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(node=Node(id=7, data_dir=str(tmp_path), peers="8:127.0.0.1:9001"))
    fetching, asked = Fetching(options, WHO, lambda _: None), []
    size, total = 100 << 20, 1 << 40
    monkeypatch.setattr(fetching, "_list", lambda _: [("seg-1-1.seg", size), ("wal.log", 1)])
    monkeypatch.setattr(fetching, "_take", lambda _, name: bool(asked.append(name)) or True)
    free = limits_of(options.disk).resume_at(total) + size - 1
    monkeypatch.setattr(fetching_module, "space_of", lambda _: Space(free, total, 1 << 20, 1 << 20))
    with pytest.raises(NoCopy, match="100 MiB"):
        fetching.fetch(8)
    assert asked == []
    free += 1
    with pytest.raises(NoCopy, match="change faster"):  # it has room; nothing ever comes
        fetching.fetch(8)
    assert "seg-1-1.seg" in asked


def test_what_has_come_gives_way_where_the_node_itself_lacks_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of a copy came, its donor went, and others have filled the disk since."""
    options = Options(node=Node(id=7, data_dir=str(tmp_path), peers="8:127.0.0.1:9001"))
    total = 1 << 40
    free = limits_of(options.disk).resume_at(total) - 1
    monkeypatch.setattr(fetching_module, "space_of", lambda _: Space(free, total, 1 << 20, 1 << 20))
    monkeypatch.setattr(Fetching, "_list", lambda *_: [("seg-1-1.seg", 9), ("seg-2-2.seg", 9)])
    monkeypatch.setattr(peer_copies.identity, "read", lambda _: WHO)
    incoming = peer_copy.begin(str(tmp_path), 8)
    (incoming / "seg-1-1.seg").write_bytes(b"123456789")
    copies: Any = PeerCopies(SimpleNamespace(options=options))  # type: ignore[arg-type]
    with pytest.raises(DiskFull):
        copies._work(Task())
    assert not incoming.exists()


@pytest.mark.parametrize("address", ["", "bad host:9001", "x:port"])
def test_a_node_that_is_nowhere_gives_no_copy_and_ends_nobody(tmp_path: Path, address: str) -> None:
    """The members, or an older file, may say anything."""
    said = {"version": 3, "addresses": {"8": address}}
    content = json.dumps({"format": 1, "members": {}, "places": said})
    Path(tmp_path, "heard.json").write_text(content)
    options = Options(node=Node(id=7, data_dir=str(tmp_path), peers="8:127.0.0.1:9001"))
    fetching = Fetching(options, WHO, lambda _: None)
    if not address:
        assert fetching._addresses == {8: ["127.0.0.1:9001"]}
        return
    with pytest.raises(NoCopy):
        fetching.fetch(8)
    assert fetching.may_leave(is_patient=False)
    assert not fetching.may_leave(is_patient=True)


def test_what_cannot_be_had_is_asked_for_later_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt says why it failed, and a leader says every second what is lacking."""
    now, tried = 1_000.0, []
    monkeypatch.setattr(peer_copies.time, "monotonic", lambda: now)

    def fails(kind: str, lane: str, work: Any, then: Callable[[Job], None]) -> None:
        tried.append(now)
        then(Job(1, kind, lane, work, Task(), 0, state="failed"))

    options = Options(node=Node(id=7, data_dir=str(tmp_path)))
    jobs = SimpleNamespace(active=lambda _kind: None, start=fails)
    copies: Any = PeerCopies(SimpleNamespace(jobs=jobs, options=options, holds_still=False))  # type: ignore[arg-type]
    for _ in range(1_300):
        copies.handle([b"behind"])
        now += 1.0
    assert [int(at) - 1_000 for at in tried] == [0, 10, 30, 70, 150, 310, 610, 910, 1_210]
    now += 2 * peer_copies.RETRY_SECONDS_MAX  # it has lacked nothing for a while
    tried.clear()
    for _ in range(11):
        copies.handle([b"behind"])
        now += 1.0
    assert len(tried) == 2

"""The retention sweeper: segments, deletion, free space, refused events."""

from __future__ import annotations

import os
import time

import lz4.block
import msgpack
import pytest

from meterd.actors.files.disk import LocalDisk
from meterd.actors.files.totals_files import Covered, covered_by, read_totals
from meterd.actors.frames.bundle import bundle
from meterd.actors.housekeeping import log_retention
from meterd.actors.housekeeping.jobs import Cancelled
from meterd.actors.keeping.registry_file import REGISTRY_FILE
from meterd.actors.log.wal_recovery import Owner
from meterd.actors.retention_sweeper import RetentionSweeper
from meterd.actors.starting import start_checks
from meterd.core.questions.zones import UTC
from meterd.core.state.erasures import Erasures, erasure_command, erasure_of, none_erased
from meterd.core.state.registry import Registry
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import Corrupt, DiskFull, StorageError
from meterd.protocol.log_format import full_name
from meterd.protocol.metric import MetricDefinition
from meterd.protocol.segment_format import SUFFIXES, SegmentName
from tests.support.log_builder import CLUSTER_ID, IDENTITY_KEY, LoggedEvent
from tests.support.log_directory import LogDirectory
from tests.support.periods import DAY
from tests.support.recording import answers, recorded, request
from tests.support.waiting import eventually

OLD = time.time_ns() - 200 * DAY


def definition(code: str, aggregation: str, **more) -> MetricDefinition:
    return MetricDefinition.from_map({"code": code, "aggregation": aggregation} | more)


@pytest.fixture
def log(tmp_path) -> LogDirectory:
    registry = Registry()
    registry.put(definition("spend", "sum", decimals=2), UTC, False, 1)
    registry.put(definition("seats", "unique", unique_on="user"), UTC, False, 2)
    state = {"kind": "registry", "registry": registry.to_bytes()}
    (tmp_path / REGISTRY_FILE).write_bytes(b"".join(checkpoint_format.encode(state, {})))
    return LogDirectory(tmp_path)


@pytest.fixture
def sweeper(log):
    made = recorded(RetentionSweeper, log.path)
    made.sent = []
    yield made
    made.close()


def write_full_file(log: LogDirectory, at: int, segmented: bool) -> int:
    events = [
        LoggedEvent("a", f"{at}-1", 1, 5, at),
        LoggedEvent("a", f"{at}-2", 2, 0, at, "add", {"user": f"u{log.builder.file_number}"}),
    ]
    log.write(events, {0})
    return log.seal(segmented)


def announce(sweeper, log: LogDirectory, number: int) -> None:
    meta = msgpack.packb({"file_number": number, "row_count": 2})
    sweeper.handle([b"sealed", meta, lz4.block.compress(log.bitmap(number))])


def finish_jobs(sweeper, now: float = 0.0) -> None:
    """Let the sweeper run until nothing is in work."""
    sweeper.tick(now)
    # The first job of a test process may have to compile its kernels.
    eventually(lambda: turn(sweeper, now) and sweeper.drained(), "no job runs", 120.0)
    sweeper.tick(now)


def turn(sweeper, now: float) -> bool:
    """Let the sweeper do what is due, and look after its jobs."""
    sweeper.jobs.turn(now)
    sweeper.tick(now)
    return True


def segment_names(log: LogDirectory) -> set[str]:
    return {path.name for path in log.path.glob("seg-*")}


def names_of(*numbers: int) -> set[str]:
    return {SegmentName(n, n).file(suffix) for n in numbers for suffix in SUFFIXES}


def test_a_sealed_file_gets_its_segment_and_both_who_need_it_are_told(log, sweeper):
    number = write_full_file(log, OLD, segmented=False)
    announce(sweeper, log, number)
    finish_jobs(sweeper)
    (segment,) = sweeper.files.segments.complete()
    assert (segment.header.row_count, segment.header.ordinal_count) == (1, 2)
    assert segment.header.has_operations
    told = sweeper.take(b"segmented")
    assert [to for to, _ in told] == ["query", "usage"]
    assert all(frames == [b"segmented", b"1"] for _, frames in told)


def test_a_segment_that_is_there_is_announced_and_not_made_again(log, sweeper):
    """The usage actor was restarted before it had saved that it may forget the bitmap."""
    number = write_full_file(log, OLD, segmented=False)
    announce(sweeper, log, number)
    finish_jobs(sweeper)
    index = log.path / SegmentName(number, number).file(".idx")
    before = index.stat().st_ino
    announce(sweeper, log, number)
    finish_jobs(sweeper)
    assert index.stat().st_ino == before
    assert len(sweeper.take(b"segmented")) == 4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_segment_is_made_anew(log, sweeper, suffix):
    number = write_full_file(log, OLD, segmented=True)
    log.waiting[number] = 2
    (log.path / SegmentName(number, number).file(suffix)).write_bytes(b"no segment")
    announce(sweeper, log, number)
    finish_jobs(sweeper)
    assert len(sweeper.files.segments.complete()) == 1


def test_a_segment_that_finds_no_room_is_tried_again(log, sweeper, monkeypatch):
    number = write_full_file(log, OLD, segmented=False)

    def full(*_):
        raise DiskFull("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("meterd.actors.housekeeping.segment_making.atomic_write", full)
        announce(sweeper, log, number)
        finish_jobs(sweeper)
    assert sweeper.take(b"segmented") == []
    finish_jobs(sweeper, 1.0)
    assert sweeper.take(b"segmented") == []
    finish_jobs(sweeper, 1_000.0)
    assert len(sweeper.take(b"segmented")) == 2


def test_a_segment_whose_job_is_cancelled_is_tried_again(log, sweeper, monkeypatch):
    number = write_full_file(log, OLD, segmented=False)

    def cancelled(*_):
        raise Cancelled

    with monkeypatch.context() as patched:
        patched.setattr("meterd.actors.housekeeping.segment_making.atomic_write", cancelled)
        announce(sweeper, log, number)
        finish_jobs(sweeper)
    assert [job["state"] for job in asked(sweeper, "job_list")["jobs"]] == ["cancelled"]
    finish_jobs(sweeper, 1_000.0)
    assert len(sweeper.take(b"segmented")) == 2


def test_a_file_without_events_gets_a_segment_by_itself(log, sweeper):
    log.seal(segmented=False)
    finish_jobs(sweeper)
    finish_jobs(sweeper)
    (segment,) = sweeper.files.segments.complete()
    assert segment.header.ordinal_count == 0


def standing(sweeper, horizon: int = -(2**63), erasures: Erasures | None = None) -> None:
    """What the usage actor says of totals and erased accounts."""
    erasures = erasures or none_erased(sweeper.files.identity_key)
    said = {"horizon": horizon, "totals_horizon": horizon, "erasures": erasures.to_lists()}
    sweeper.handle([b"expiry", msgpack.packb(said)])


def totals(log: LogDirectory) -> dict[Covered, int]:
    """The totals files there are, with the events in each."""
    return {covered_by(path.name): read_totals(str(path)).events for path in log.path.glob("*.tot")}


def tell(sweeper, first_needed=100, days=90, horizon=None, **told) -> None:
    """What the usage actor says: which files the checkpoints need, and the horizon."""
    standing(sweeper)
    horizon = time.time_ns() - days * DAY if horizon is None else horizon
    said = {"days": days, "set": False, "horizon": horizon, "first_needed": first_needed} | told
    sweeper.handle([b"retention", msgpack.packb(said)])


def asked(sweeper, kind: str, **body):
    sweeper.handle([b"requests", *bundle([b"rid", *request(kind, body)])])
    sweeper.flush()
    ((status, answer),) = answers(sweeper)
    assert status == "ok", answer
    return answer


def log_names(log: LogDirectory) -> set[str]:
    return {path.name for path in log.path.glob("wal-*")}


def test_the_oldest_expired_files_go_and_their_totals_stay(log, sweeper):
    for at in (OLD, OLD + DAY, time.time_ns(), OLD):
        write_full_file(log, at, segmented=True)
    tell(sweeper)
    finish_jobs(sweeper)
    assert log_names(log) == {full_name(3), full_name(4)}
    assert segment_names(log) == names_of(3, 4)
    assert totals(log) == {Covered(1, 1): 1, Covered(2, 2): 1}
    assert sweeper.take(b"removed") == 2 * [("query", [b"removed"])]
    assert [to for to, _ in sweeper.take(b"save")] == ["usage"]


def test_nothing_goes_before_it_is_told_what_may(log, sweeper):
    write_full_file(log, OLD, segmented=True)
    finish_jobs(sweeper)
    assert (log.path / full_name(1)).exists()
    tell(sweeper)
    finish_jobs(sweeper)
    assert not (log.path / full_name(1)).exists()


def test_nothing_goes_before_it_is_known_what_was_erased(log, sweeper):
    write_full_file(log, OLD, segmented=True)
    said = {"days": 90, "set": False, "horizon": OLD + DAY, "first_needed": 100}
    sweeper.handle([b"retention", msgpack.packb(said)])
    finish_jobs(sweeper)
    assert (log.path / full_name(1)).exists()
    assert not totals(log)


def test_a_segment_that_was_folded_and_not_deleted_is_not_folded_again(log, sweeper):
    for _ in range(2):
        write_full_file(log, OLD, segmented=True)
    assert sweeper.registry.read()
    log.fold([1], sweeper.registry.registry, -(2**63))
    before = (log.path / Covered(1, 1).name).stat().st_ino
    tell(sweeper)
    finish_jobs(sweeper)
    assert (log.path / Covered(1, 1).name).stat().st_ino == before
    assert totals(log) == {Covered(1, 1): 1, Covered(2, 2): 1}
    assert segment_names(log) == set()


@pytest.mark.parametrize("erased", [False, True])
def test_superseded_totals_stay_while_they_are_held(log, sweeper, erased):
    for step in range(4):
        write_full_file(log, OLD + step * DAY, segmented=True)
    assert sweeper.registry.read()
    log.delete([1, 2, 3, 4], sweeper.registry.registry)
    sweeper.pins.pin("backup", 0, time.time_ns() + 10 * DAY)
    parts = {Covered(n, n) for n in (1, 2, 3, 4)}
    if erased:
        log.erase("b")
    standing(sweeper, erasures=log.erasures)
    finish_jobs(sweeper)
    assert set(totals(log)) == parts | {Covered(1, 4)}
    long_ago = time.time() - 3 * sweeper.options.storage.copy_grace
    os.utime(log.path / Covered(1, 4).name, (long_ago, long_ago))
    finish_jobs(sweeper, time.monotonic() + 1e6)
    assert set(totals(log)) == (set() if erased else parts) | {Covered(1, 4)}
    sweeper.pins.unpin("backup")
    finish_jobs(sweeper, time.monotonic() + 1e7)
    assert set(totals(log)) == {Covered(1, 4)}


def test_the_index_is_durably_gone_before_the_rest_of_a_segment(log, sweeper, monkeypatch):
    write_full_file(log, OLD, segmented=True)
    seen = []
    monkeypatch.setattr(
        log_retention, "sync_directory", lambda _: seen.append(sorted(segment_names(log)))
    )
    tell(sweeper)
    finish_jobs(sweeper)
    assert seen == [
        ["seg-000000000001-000000000001.props", "seg-000000000001-000000000001.seg"],
        [],
    ]


@pytest.mark.parametrize("left", ["", "damaged"])
def test_a_folded_segment_that_is_half_deleted_does_not_stop_a_start(log, sweeper, left):
    write_full_file(log, OLD, segmented=True)
    index = log.path / SegmentName(1, 1).file(".idx")
    content = index.read_bytes()
    tell(sweeper)
    finish_jobs(sweeper)
    index.write_bytes(left.encode() or content)  # its deletion was not durable
    owner = Owner(1, CLUSTER_ID, IDENTITY_KEY)
    assert start_checks.check_segments(LocalDisk(), str(log.path), owner, None) == 0
    (log.path / Covered(1, 1).name).unlink()
    with pytest.raises(Corrupt):
        start_checks.check_segments(LocalDisk(), str(log.path), owner, None)


def test_a_segment_that_goes_before_it_is_folded_ends_the_job_and_not_the_actor(log, sweeper):
    """It was merged meanwhile: the next sweep folds the whole."""
    write_full_file(log, OLD, segmented=True)
    aside = {path: path.read_bytes() for path in log.path.glob("seg-*")}
    tell(sweeper)
    sweeper.tick(0.0)
    (job,) = sweeper.jobs.unfinished("fold")
    job.thread.join()
    (log.path / Covered(1, 1).name).unlink(missing_ok=True)
    for path in aside:
        path.unlink()
    with pytest.raises(StorageError):
        log.fold([1], sweeper.registry.registry, -(2**63))


def test_a_segment_is_not_deleted_when_a_pin_comes_while_it_is_folded(log, sweeper):
    write_full_file(log, OLD, segmented=True)
    tell(sweeper)
    sweeper.tick(0.0)
    sweeper.pins.pin("backup", 0, time.time_ns() + DAY)
    finish_jobs(sweeper)
    assert totals(log) == {Covered(1, 1): 1}
    assert segment_names(log) == names_of(1)
    sweeper.pins.unpin("backup")
    asked(sweeper, "retention_run")
    finish_jobs(sweeper)
    assert segment_names(log) == set()


def test_totals_are_merged_coarsened_and_erased_accounts_leave_them(log, sweeper):
    for step in range(4):
        write_full_file(log, OLD + step * DAY, segmented=True)
    log.write([LoggedEvent("b", "b-1", 1, 5, OLD)])
    log.seal(segmented=True)
    tell(sweeper)
    finish_jobs(sweeper)
    finish_jobs(sweeper)
    assert totals(log)[Covered(1, 5)] == 5
    key = sweeper.files.identity_key
    command, partition = erasure_command(key, "a", False, "once")
    erasures = Erasures([erasure_of(command, partition, 100, time.time_ns())], key)
    standing(sweeper, OLD + 10 * DAY, erasures)
    finish_jobs(sweeper)
    assert totals(log) == {Covered(1, 5): 1}
    file = read_totals(str(log.path / Covered(1, 5).name))
    assert file.accounts((0, file.account_count)) == ["b"]
    assert file.next_timestamp == 2**63 - 1


def folded_b_c_d(log: LogDirectory, sweeper) -> tuple[Erasures, Erasures]:
    """Have a totals file with accounts b, c and d; return the erasures of b alone and of c alone.

    They are in different partitions, so a start may hear of either first.
    """
    log.write([LoggedEvent(account, account, 1, 5, OLD) for account in "bcd"])
    log.seal(segmented=True)
    tell(sweeper)
    finish_jobs(sweeper)
    for account in "bc":
        log.erase(account)
    of_b, of_c = log.erasures
    assert of_b.partition != of_c.partition
    return Erasures([of_b], log.erasures.key), Erasures([of_c], log.erasures.key)


def accounts_of_totals(log: LogDirectory) -> list[str]:
    file = read_totals(str(log.path / Covered(1, 1).name))
    return file.accounts((0, file.account_count))


def test_an_erasure_that_a_start_hears_of_earlier_than_one_before_is_applied(log, sweeper):
    of_b, of_c = folded_b_c_d(log, sweeper)
    standing(sweeper, erasures=of_b)
    finish_jobs(sweeper)
    assert accounts_of_totals(log) == ["c", "d"]
    both = Erasures([*of_c, *of_b], of_b.key)
    file = read_totals(str(log.path / Covered(1, 1).name))
    assert [one.account for one in both.since(file.applied)] == [one.account for one in of_c]
    again = recorded(RetentionSweeper, log.path)
    standing(again, erasures=both)
    finish_jobs(again)
    again.close()
    assert accounts_of_totals(log) == ["d"]


def test_erasures_of_a_usage_actor_that_started_anew_are_applied_though_they_are_as_many(
    log, sweeper
):
    of_b, of_c = folded_b_c_d(log, sweeper)
    for erasures in (of_b, of_c):
        standing(sweeper, erasures=erasures)
        finish_jobs(sweeper)
    assert accounts_of_totals(log) == ["d"]


def test_a_totals_file_that_said_how_many_erasures_are_applied_loses_what_is_erased_and_no_more(
    log, sweeper
):
    """One of them was applied, but which?  What came after it stays when it is applied again."""
    log.write([LoggedEvent("b", "b-1", 1, 5, OLD), LoggedEvent("c", "c-1", 1, 5, OLD)])
    log.erase("b")
    members = [("u1", "add"), ("u2", "add"), ("u1", "remove")]
    after = [
        LoggedEvent("b", f"b-{i}", 2, 0, OLD, op, {"user": u}) for i, (u, op) in enumerate(members)
    ]
    log.write([LoggedEvent("b", "b-after", 1, 7, OLD), *after])
    log.seal(segmented=True)
    assert sweeper.registry.read()
    log.fold([1], sweeper.registry.registry, -(2**63))
    path = log.path / Covered(1, 1).name
    state, arrays = checkpoint_format.decode(path.read_bytes())
    state |= {"version": 1, "erasures": 1}
    del state["erased"]
    path.write_bytes(b"".join(checkpoint_format.encode(state, arrays)))
    before = read_totals(str(path))
    log.erase("c")
    standing(sweeper, erasures=Erasures(reversed(list(log.erasures)), log.erasures.key))
    finish_jobs(sweeper)
    file = read_totals(str(path))
    assert file.applied == log.erasures.latest
    assert (file.events, before.events) == (4, 5)
    (span,) = file.spans("b", False)
    assert accounts_of_totals(log) == ["b"]
    assert len(file.read(span).seats) == len(before.read((0, 1)).seats) == 3


def test_what_a_checkpoint_needs_stays(log, sweeper):
    for _ in range(3):
        write_full_file(log, OLD, segmented=True)
    tell(sweeper, first_needed=2)
    finish_jobs(sweeper)
    assert full_name(1) not in log_names(log)
    assert {full_name(2), full_name(3)} <= log_names(log)
    assert totals(log) == {Covered(1, 1): 1}
    ran = asked(sweeper, "retention_run", dry_run=True)
    assert (ran["files"], ran["held"]) == (0, {"checkpoint": 2})


def test_what_is_pinned_stays_until_the_pin_ends(log, sweeper):
    for _ in range(3):
        write_full_file(log, OLD, segmented=True)
    sweeper.pins.pin("backup-1", 2, time.time_ns() + DAY)
    tell(sweeper)
    finish_jobs(sweeper)
    assert {full_name(2), full_name(3)} <= log_names(log)
    assert full_name(1) not in log_names(log)
    assert segment_names(log) == names_of(2, 3)
    sweeper.pins.unpin("backup-1")
    assert asked(sweeper, "retention_run")["files"] == 2
    assert log_names(log) == set()
    finish_jobs(sweeper)
    assert segment_names(log) == set()


def test_what_a_segment_covers_goes_when_nobody_else_needs_it(log):
    """Its events are not past the retention: none of them is lost, nor a member."""
    sweeper = recorded(RetentionSweeper, log.path, wal={"min_segments": 1, "retention_days": 0})
    for _ in range(3):
        write_full_file(log, time.time_ns(), segmented=True)
    now = time.time_ns()
    sweeper.holding.covered = lambda: {1: now - 2 * DAY, 2: now, 3: now - 2 * DAY}
    tell(sweeper)
    sweeper.tick(0.0)
    assert full_name(1) not in log_names(log)
    assert {full_name(2), full_name(3)} <= log_names(log)
    assert not totals(log)
    assert sweeper.take(b"save") == []
    held = asked(sweeper, "wal_status", holders=True)["segments"]
    assert [(row["number"], row["held_by"]) for row in held] == [(2, ["grace"]), (3, ["count"])]
    sweeper.close()


def test_a_run_says_what_goes_and_a_dry_one_what_would(log, sweeper):
    for at in (OLD, OLD, time.time_ns()):
        write_full_file(log, at, segmented=True)
    sweeper.tick(0.0)
    tell(sweeper)
    sizes = [(log.path / full_name(number)).stat().st_size for number in (1, 2)]
    expected = {"files": 2, "bytes": sum(sizes), "events": 2, "first": 1, "last": 2}
    dry = asked(sweeper, "retention_run", dry_run=True)
    assert dry.items() >= (expected | {"dry_run": True, "remaining": 0}).items()
    assert full_name(1) in log_names(log)
    shown = asked(sweeper, "retention_show")
    assert shown["expired"].items() >= expected.items()
    assert (shown["days"], shown["origin"], shown["files"]) == (90, "option", 3)
    real = asked(sweeper, "retention_run")
    assert real.items() >= (expected | {"dry_run": False, "remaining": 0}).items()
    assert log_names(log) == {full_name(3)}
    again = asked(sweeper, "retention_run")
    assert (again["files"], again["segments"]) == (0, 0)
    finish_jobs(sweeper)
    assert segment_names(log) == names_of(3)


def test_a_sweep_is_bounded_and_the_rest_follows_at_once(log, sweeper, monkeypatch):
    monkeypatch.setattr("meterd.core.housekeeping.retention.FILES_PER_SWEEP_MAX", 2)
    for _ in range(3):
        write_full_file(log, OLD, segmented=True)
    sweeper.tick(0.0)
    tell(sweeper)
    assert asked(sweeper, "retention_run").items() >= {"files": 2, "remaining": 1}.items()
    sweeper.tick(1.0)
    assert log_names(log) == set()


def test_nobody_is_told_what_is_past_before_the_horizon_is_known(sweeper):
    sweeper.handle([b"requests", *bundle([b"rid", *request("retention_show", {})])])
    sweeper.flush()
    ((status, body),) = answers(sweeper)
    assert (status, body["code"]) == ("error", "starting")


def test_too_many_log_files_have_those_who_hold_them_go_on(log, caplog):
    sweeper = recorded(RetentionSweeper, log.path, wal={"max_segments": 2, "min_segments": 1})
    for _ in range(3):
        write_full_file(log, time.time_ns(), segmented=True)
    tell(sweeper, first_needed=1)
    sweeper.tick(0.0)
    assert [to for to, _ in sweeper.take(b"save")] == ["usage"]
    assert "more log files are kept than wished for" in caplog.text
    assert len(log_names(log)) == 3
    sweeper.close()


def test_the_log_status_says_what_there_is(log, sweeper):
    for _ in range(2):
        write_full_file(log, time.time_ns(), segmented=True)
    sweeper.pins.pin("b", 2, time.time_ns() + DAY)
    tell(sweeper, first_needed=2)
    status = asked(sweeper, "wal_status")
    sizes = [(log.path / full_name(number)).stat().st_size for number in (1, 2)]
    assert (status["files"], status["bytes"]) == (2, sum(sizes))
    assert (status["first"], status["last"]) == (1, 2)
    assert "segments" not in status
    held = {row["holder"]: (row["files"], row["bytes"]) for row in status["held"]}
    assert held["checkpoint"] == held["pin"] == (1, sizes[1])
    assert held["grace"] == held["age"] == held["count"] == (2, sum(sizes))
    assert [pin["name"] for pin in status["pins"]] == ["b"]
    assert status["archive"]["target"] == ""


def test_nothing_goes_while_nobody_can_say_what_it_holds(log, sweeper):
    """The registry's file is damaged: what rows count for could not be kept."""
    write_full_file(log, OLD, segmented=True)
    (log.path / REGISTRY_FILE).write_bytes(b"damaged")
    tell(sweeper)
    finish_jobs(sweeper)
    assert (log.path / full_name(1)).exists()
    assert not totals(log)


def test_a_segment_stays_while_the_registry_is_too_old_for_it(log, sweeper):
    log.write([LoggedEvent("a", "1", 9, 5, OLD)])
    log.seal(segmented=True)
    tell(sweeper)
    finish_jobs(sweeper)
    assert segment_names(log) == names_of(1)
    assert not totals(log)


def test_a_segment_stays_while_the_totals_before_it_are_damaged(log, sweeper):
    write_full_file(log, OLD, segmented=True)
    tell(sweeper)
    finish_jobs(sweeper)
    write_full_file(log, OLD, segmented=True)
    (log.path / Covered(1, 1).name).write_bytes(b"damaged")
    asked(sweeper, "retention_run")
    finish_jobs(sweeper)
    assert segment_names(log) == names_of(2)


def test_a_damaged_log_file_gets_no_segment_and_stops_nobody(log, sweeper):
    number = write_full_file(log, OLD, segmented=False)
    second = write_full_file(log, OLD, segmented=False)
    path = log.path / full_name(number)
    path.write_bytes(path.read_bytes()[:4096] + bytes([1]) * 512)
    announce(sweeper, log, number)
    announce(sweeper, log, second)
    finish_jobs(sweeper)
    eventually(
        lambda: turn(sweeper, 0.0) and segment_names(log) == names_of(second),
        "the second file has its segment",
    )


def test_what_a_crash_has_left_is_litter(log):
    write_full_file(log, OLD, segmented=True)
    write_full_file(log, OLD, segmented=True)
    (log.path / SegmentName(1, 1).file(".idx")).unlink()
    (log.path / (SegmentName(3, 3).file(".seg") + ".tmp")).write_bytes(b"half")
    recorded(RetentionSweeper, log.path).close()
    assert segment_names(log) == names_of(2)


def test_too_little_space_refuses_events_and_a_new_router_is_told(log):
    huge = {"warn_free": 1 << 50, "stop_free": 1 << 50}
    sweeper = recorded(RetentionSweeper, log.path, disk=huge)
    ((to, frames),) = sweeper.take(b"admission")
    said = msgpack.unpackb(frames[1])
    assert to == "router"
    assert (said["source"], said["code"]) == ("retention_sweeper", "disk_stop")
    assert said["retry_after_ms"] > 0
    sweeper.handle([b"hello", b"router"])
    assert len(sweeper.take(b"admission")) == 1
    assert sweeper.tick(0.0) <= 1.0
    assert sweeper.take(b"admission") == []
    small = {"warn_free": 0, "stop_free": 0, "resume_margin": 0, "resume_hold": 0}
    sweeper.reload(sweeper.options.from_mapping({"disk": small}))
    sweeper.tick(1_000.0)
    ((_, frames),) = sweeper.take(b"admission")
    assert msgpack.unpackb(frames[1])["code"] is None
    sweeper.close()


def test_enough_space_says_nothing(sweeper):
    sweeper.tick(0.0)
    assert sweeper.take(b"admission") == []


def test_refused_events_are_listed_as_people_read_them(sweeper):
    common = {"account": "a", "id": "i", "timestamp": 7}
    sweeper.handle(
        [
            b"refused_events",
            msgpack.packb(
                [
                    common | {"metric": 1, "value": 1250, "reason": "too_old"},
                    common
                    | {"metric": "none", "value": 5, "exponent": 1, "reason": "unknown_metric"},
                    common | {"metric": 99, "value": 5, "reason": "too_old"},
                ]
            ),
        ]
    )
    sweeper.handle([b"requests", *bundle([b"rid", *request("rejected", {"limit": 2})])])
    sweeper.flush()
    ((status, page),) = answers(sweeper)
    assert status == "ok"
    assert [event["metric"] for event in page["events"]] == ["99", "none"]
    sweeper.handle([b"requests", *bundle([b"rid", *request("rejected", {"after": page["next"]})])])
    sweeper.flush()
    ((_, page),) = answers(sweeper)
    (event,) = page["events"]
    assert (event["metric"], event["value"], event["reason"]) == ("spend", "12.5", "too_old")
    assert (event["account"], event["id"], event["timestamp"]) == ("a", "i", 7)
    assert page["next"] is None


@pytest.mark.parametrize(
    ("reason", "value", "exponent", "shown"),
    [
        ("bad_value", 1, 0, (7, None)),
        ("bad_value", 0, 0, (7, None)),
        ("bad_value", 1234, 3, (7, "1.234")),
        ("bad_value", 1, 1, (7, "0.1")),
        ("bad_timestamp", 1, 0, (None, "1")),
    ],
)
def test_what_could_not_be_read_of_a_refused_event_is_not_made_up(
    sweeper, reason, value, exponent, shown
):
    event = {"account": "a", "id": "i", "timestamp": 7, "metric": "m"}
    event |= {"reason": reason, "value": value, "exponent": exponent}
    sweeper.handle([b"refused_events", msgpack.packb([event])])
    sweeper.handle([b"requests", *bundle([b"rid", *request("rejected", {"limit": 2})])])
    sweeper.flush()
    ((_, page),) = answers(sweeper)
    assert (page["events"][0]["timestamp"], page["events"][0]["value"]) == shown


def test_a_wrong_cursor_gets_an_error_answer(sweeper):
    sweeper.handle([b"requests", *bundle([b"rid", *request("rejected", {"after": "e.1.2"})])])
    sweeper.flush()
    ((status, body),) = answers(sweeper)
    assert (status, body["code"]) == ("error", "bad_request")

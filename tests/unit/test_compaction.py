"""Compaction: the service and its job, whenever it ends, whatever is wrong with a segment."""

from __future__ import annotations

import copy
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from meterd.actors.checking import fsck_files
from meterd.actors.files import totals_files
from meterd.actors.files.segment_files import read_segment
from meterd.actors.frames.bundle import bundle
from meterd.actors.housekeeping import compaction, log_retention
from meterd.actors.housekeeping.log_retention import LogRetention
from meterd.actors.housekeeping.segment_merger import SegmentMerger
from meterd.actors.keeping.registry_file import REGISTRY_FILE
from meterd.actors.measuring import catalog
from meterd.actors.questions import reading
from meterd.actors.questions.log_files import LogFiles
from meterd.actors.retention_sweeper import RetentionSweeper
from meterd.core.kernels.cells import COUNT, SUM_LO
from meterd.core.questions.question import Question
from meterd.core.segments.compaction_plan import Effort
from meterd.core.segments.merging import same_log
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import Corrupt, DiskFull, FsyncFailed, InvariantViolation
from meterd.protocol.log_format import full_name
from meterd.protocol.segment_format import BLOCK_ROWS, SUFFIXES, SegmentName
from tests.property.test_segments import answers as all_answers
from tests.support.log_builder import IDENTITY_KEY, LoggedEvent
from tests.support.log_directory import LogDirectory, finish
from tests.support.periods import DAY
from tests.support.recording import answers, recorded, request
from tests.support.segments import registry_of
from tests.support.waiting import eventually

NOW = time.time_ns()
NAMES = [SegmentName(number, number) for number in (1, 2, 3, 4)]
WHOLE = SegmentName(1, 4)
EVERYTHING = ("a", True, (-(2**63), 2**63 - 1), 4)


def written(path: Path, files: int = 4, rows: int = 30) -> LogDirectory:
    path.mkdir(exist_ok=True)
    state = {"kind": "registry", "registry": registry_of(40).to_bytes()}
    (path / REGISTRY_FILE).write_bytes(b"".join(checkpoint_format.encode(state, {})))
    log = LogDirectory(path)
    for number in range(files):
        log.write(
            [
                LoggedEvent(
                    f"a/{n % 7}", f"{number}-{n}", 1 + n % 2, n, NOW - DAY * (number + 1) + n
                )
                for n in range(rows)
            ],
            {1},
        )
        log.seal(segmented=True)
    return log


def copy_of(log: LogDirectory, path: Path) -> LogDirectory:
    """The same files somewhere else."""
    shutil.copytree(log.path, path)
    other = copy.copy(log)
    other.path, other.files = path, LogFiles(str(path), IDENTITY_KEY)
    return other


@pytest.fixture
def log(tmp_path: Path) -> LogDirectory:
    return written(tmp_path / "data")


def freely(done: float, moved: int) -> None:
    """A pace that never waits."""


def names_of(log: LogDirectory) -> list[SegmentName]:
    log.files.refresh()
    return [one.name for one in log.files.segments.chosen(1 << 62)]


class Sweeper:
    """A retention sweeper, and what can be seen of it."""

    def __init__(self, log: LogDirectory, **options: Any) -> None:
        sections = {"compaction": {"enabled": False} | options}
        sections["disk"] = {"warn_free": 0, "warn_free_ratio": 0.0, "stop_free": 0, "hard_free": 0}
        self.actor = recorded(RetentionSweeper, log.path, **sections)

    @classmethod
    def of(cls, actor: RetentionSweeper) -> Sweeper:
        made = cls.__new__(cls)
        made.actor = actor
        return made

    def ask(self, kind: str, **body: Any) -> tuple[str, Any]:
        self.actor.handle([b"requests", *bundle([b"rid", *request(kind, body)])])
        self.actor.flush()
        (found,) = answers(self.actor)
        return found

    def ended(self, number: int) -> dict[str, Any]:
        """Wait until a job has ended."""

        def job() -> dict[str, Any] | None:
            self.actor.tick(time.monotonic())
            found = self.ask("job_show", id=number)[1]["job"]
            return found if found["finished"] is not None else None

        found = eventually(job, "the job ends")
        assert found is not None
        return found

    def run(self, **fields: Any) -> dict[str, Any]:
        status, answer = self.ask("compact", **fields)
        assert status == "ok", answer
        return self.ended(answer["job"]["id"])

    def tell(self, horizon: int, first_needed: int = 0, erasures: Any = ()) -> None:
        standing = {"horizon": horizon, "totals_horizon": horizon, "erasures": list(erasures)}
        self.actor.handle([b"expiry", msgpack.packb(standing)])
        told = {"days": 90, "set": False, "horizon": horizon, "first_needed": first_needed}
        self.actor.handle([b"retention", msgpack.packb(told)])

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("compact_status")[1]
        return found

    def counted(self, name: str) -> int:
        return self.actor.telemetry._counters.get(name, 0)


@pytest.fixture
def start(log: LogDirectory) -> Iterator[Callable[..., Sweeper]]:
    made = []

    def start(**options: Any) -> Sweeper:
        made.append(Sweeper(log, **options))
        return made[-1]

    yield start
    for one in made:
        one.actor.close()


def test_an_operator_has_segments_merged(log, start):
    sweeper = start()
    before = all_answers(log, *EVERYTHING)
    assert sweeper.status["pending"] == 4
    job = sweeper.run()
    assert job["state"] == "done"
    result = job["result"]
    assert (result["merges"], result["files_merged"], result["events"]) == (1, 4, 116)
    assert names_of(log) == [WHOLE]
    assert all_answers(log, *EVERYTHING) == before
    status = sweeper.status
    assert (status["segments"], status["superseded"], status["pending"]) == (1, 4, 0)
    assert status["last"]["id"] == job["id"]
    assert ("query", [b"removed"]) in sweeper.actor.sent
    assert sweeper.counted("compaction_files_merged_total") == 4
    assert sweeper.counted("compaction_bytes_written_total") == result["bytes_written"]
    again = sweeper.run()
    assert again["state"] == "done"
    assert again["result"]["merges"] == 0


def test_all_telemetry_is_known(log, start):
    sweeper = start()
    sweeper.run(aggressive=True)
    sweeper.actor.tick(time.monotonic() + 100)
    telemetry = sweeper.actor.telemetry
    used = {name.split("{")[0] for name in [*telemetry._counters, *telemetry._gauges]}
    assert {name for name in used if name.startswith("compaction")} <= set(catalog.BY_NAME)
    assert "compaction_pending_files" in used


def test_it_merges_by_itself_when_enough_wait(log, start):
    sweeper = start(enabled=True, merge_interval="100ms")

    def merged() -> bool:
        sweeper.actor.tick(time.monotonic())
        return names_of(log) == [WHOLE]

    eventually(merged, "the segments are merged")


def test_fewer_are_merged_once_a_day(log, start):
    sweeper = start(enabled=True, merge_interval="100ms", min_files=5)
    (service,) = [one for one in sweeper.actor._services if isinstance(one, compaction.Compaction)]
    now = time.monotonic()
    service.turn(now)
    assert sweeper.actor.jobs.active("compact") is None
    service._thorough_due = now
    service.turn(now)
    job = sweeper.actor.jobs.active("compact")
    assert service._efforts[job.id] is Effort.ASKED
    assert sweeper.ended(job.id)["state"] == "done"
    assert names_of(log) == [WHOLE]


def test_a_full_disk_holds_it_still(log, start, monkeypatch):
    sweeper = start(enabled=True, merge_interval="100ms")
    (service,) = [one for one in sweeper.actor._services if isinstance(one, compaction.Compaction)]
    monkeypatch.setattr(RetentionSweeper, "holds_still", True)
    service.turn(time.monotonic())
    assert sweeper.actor.jobs.active("compact") is None
    job = service._start(Effort.ASKED, frozenset())
    assert sweeper.ended(job.id)["error"]["code"] == "disk_full"
    assert names_of(log) == NAMES


def test_too_little_space_is_refused(log, start, monkeypatch):
    sweeper = start()
    monkeypatch.setattr(compaction, "room", lambda sweeper: 3_000)
    job = sweeper.run()
    assert (job["state"], job["error"]["code"]) == ("failed", "disk_full")
    monkeypatch.setattr(compaction, "room", lambda sweeper: -1)
    status, error = sweeper.ask("compact")
    assert (status, error["code"]) == ("error", "disk_stop")
    assert names_of(log) == NAMES
    assert sweeper.counted("compaction_errors_total") == 1


def test_a_cancelled_job_leaves_nothing_behind(log, start, monkeypatch):
    """It is held in the middle of a merge until it has been cancelled."""
    began, may_go_on = threading.Event(), threading.Event()
    merge = SegmentMerger.merge

    def held(self: SegmentMerger, names: Any, erasures: Any, pace: Any) -> Any:
        def waiting(done: float, moved: int) -> None:
            began.set()
            may_go_on.wait()
            pace(done, moved)

        return merge(self, names, erasures, waiting)

    monkeypatch.setattr(SegmentMerger, "merge", held)
    sweeper = start()
    before = set(os.listdir(log.path))
    number = sweeper.ask("compact", aggressive=True)[1]["job"]["id"]
    try:
        assert began.wait(120)
        assert sweeper.ask("compact", aggressive=True)[1]["job"]["id"] == number
        sweeper.ask("job_cancel", id=number)
    finally:
        may_go_on.set()
    assert sweeper.ended(number)["state"] == "cancelled"
    assert set(os.listdir(log.path)) == before
    assert names_of(log) == NAMES
    assert sweeper.run()["state"] == "done"


def test_a_merge_that_is_cancelled_anywhere_leaves_nothing_behind(log):
    """Progress never falls; whenever it ends, the parts are all there is."""

    class Cancelled(Exception):
        pass

    before = sorted(os.listdir(log.path))
    for calls in range(100):
        left, done = [calls], [0.0]

        def pace(now_done: float, moved: int, left=left, done=done) -> None:
            assert done[0] <= now_done <= 1
            done[0] = now_done
            if left[0] == 0:
                raise Cancelled
            left[0] -= 1

        try:
            SegmentMerger(str(log.path)).merge(NAMES, None, pace)
        except Cancelled:
            assert sorted(os.listdir(log.path)) == before
        else:
            break
    assert names_of(log) == [WHOLE]
    assert calls > 0


CALLS = ("open", "pwrite", "ftruncate", "fsync", "fdatasync", "rename", "unlink")


class Stopped(BaseException):
    """The process has ended here."""


@pytest.mark.parametrize("error", [Stopped, OSError])
def test_a_merge_that_ends_anywhere_leaves_the_parts_or_the_whole(tmp_path, monkeypatch, error):
    """At any call of the file system; then the next start merges them."""
    template = written(tmp_path / "template")
    before = all_answers(template, *EVERYTHING)
    left: list[int | None] = [None]

    def counted(call: Any) -> Any:
        def wrapped(*args: Any, **more: Any) -> Any:
            if left[0] is not None:
                if left[0] == 0:
                    raise error
                left[0] -= 1
            return call(*args, **more)

        return wrapped

    for name in CALLS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    ended = 0
    for calls in range(200):
        log = copy_of(template, tmp_path / str(calls))
        left[0] = calls
        try:
            SegmentMerger(str(log.path)).merge(NAMES, None, freely)
        except (Stopped, OSError, FsyncFailed):
            ended += 1
        done, left[0] = left[0] > 0, None
        assert names_of(log) in (NAMES, [WHOLE])
        assert all_answers(log, *EVERYTHING) == before
        if names_of(log) == NAMES:
            recorded(RetentionSweeper, log.path).close()  # a start removes what was left behind
            assert not [name for name in os.listdir(log.path) if name.startswith(WHOLE.file(""))]
            SegmentMerger(str(log.path)).merge(NAMES, None, freely)
        assert names_of(log) == [WHOLE]
        assert all_answers(log, *EVERYTHING) == before
        if done:
            break
    assert ended > 20


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_bit_of_a_part_is_checked(tmp_path, suffix):
    """Damage is told with file and offset, or changes nothing; the parts stay as they are."""
    log = written(tmp_path / "data")
    path = log.path / NAMES[1].file(suffix)
    whole = path.read_bytes()
    SegmentMerger(str(log.path)).merge(NAMES, None, freely)
    before = all_answers(log, *EVERYTHING)
    found = 0
    for at in range(0, len(whole), 11 if len(whole) < 3_000 else 67):
        for name in SUFFIXES:
            (log.path / WHOLE.file(name)).unlink(missing_ok=True)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(bytes(damaged))
        try:
            SegmentMerger(str(log.path)).merge(NAMES, None, freely)
        except Corrupt as corrupt:
            assert NAMES[1].file("") in corrupt.path
            assert not [name for name in os.listdir(log.path) if name.startswith(WHOLE.file(""))]
            found += 1
            continue
        log.files.refresh()
        assert all_answers(log, *EVERYTHING) == before
    assert found > 5
    assert path.read_bytes() == bytes(damaged)


def test_a_damaged_segment_is_left_alone_and_named(log, start):
    sweeper = start()
    path = log.path / NAMES[2].file(".seg")
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(bytes(damaged))
    job = sweeper.run()
    assert (job["state"], job["error"]["code"]) == ("failed", "corrupt")
    assert NAMES[2].file(".seg") in job["error"]["message"]
    assert "offset 64" in job["error"]["message"]
    assert sweeper.status["avoided"] == 4
    assert names_of(log) == NAMES
    assert path.read_bytes() == bytes(damaged)


def test_a_whole_that_differs_is_never_named(log, monkeypatch):
    """What was written is read back: here the disk has changed a bit of it."""
    real = SegmentMerger._replace

    def replace(self, name, suffix, data) -> None:
        real(self, name, suffix, data)
        if suffix == ".seg":
            path = log.path / name.file(suffix)
            raw = bytearray(path.read_bytes())
            raw[70] ^= 1
            path.write_bytes(bytes(raw))

    monkeypatch.setattr(SegmentMerger, "_replace", replace)
    with pytest.raises(Corrupt):
        SegmentMerger(str(log.path)).merge(NAMES, None, freely)
    assert names_of(log) == NAMES
    assert not (log.path / WHOLE.file(".seg")).exists()


def test_only_neighbours_are_merged(log):
    merger = SegmentMerger(str(log.path))
    for names in ([NAMES[0]], [NAMES[0], NAMES[2]], [NAMES[1], NAMES[0]]):
        with pytest.raises(InvariantViolation):
            merger.merge(names, None, freely)


def test_a_full_disk_frees_what_was_written(log, monkeypatch):
    before = sorted(os.listdir(log.path))
    real = os.pwrite
    written_bytes = [0]

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        written_bytes[0] += len(data)
        if written_bytes[0] > 4_000:
            raise OSError(28, "no space")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(DiskFull):
        SegmentMerger(str(log.path)).merge(NAMES, None, freely)
    assert sorted(os.listdir(log.path)) == before


def test_what_expires_whole_is_not_merged_and_expired_rows_stay(log, start):
    sweeper = start()
    before = all_answers(log, *EVERYTHING)
    sweeper.tell(NOW - 2 * DAY)
    job = sweeper.run(aggressive=True)
    assert job["state"] == "done"
    # Files 3 and 4 have expired whole, and go whole; file 2 is half expired.
    assert (job["result"]["merges"], job["result"]["events_left_out"]) == (1, 0)
    assert names_of(log)[0] == SegmentName(1, 2)
    assert all_answers(log, *EVERYTHING) == before


def test_a_run_that_is_asked_for_leaves_no_row_of_an_erased_account(log, start):
    """The one segment that is left is written again, once; ids and log stay as they were."""
    sweeper = start()
    sweeper.run()
    (whole,) = names_of(log)
    digests = read_segment(str(log.path), whole).log()
    log.erase("a/3")
    expected = all_answers(log, *EVERYTHING)
    sweeper.tell(NOW - 90 * DAY, erasures=log.erasures.to_lists())
    job = sweeper.run()
    assert (job["state"], job["result"]["merges"], job["result"]["files_merged"]) == ("done", 1, 1)
    assert job["result"]["events_left_out"] == 16
    assert sweeper.counted("compaction_events_left_out_total") == 16
    (again,) = names_of(log)
    assert again == SegmentName(1, 4, 1)
    assert (log.path / whole.file(".idx")).exists()
    reader = read_segment(str(log.path), again)
    assert reader.header.has_erased
    assert same_log(reader.log(), digests)
    assert all_answers(log, *EVERYTHING) == expected
    assert sweeper.run()["result"]["merges"] == 0
    log.erase("a", subtree=True)
    sweeper.tell(NOW - 90 * DAY, erasures=log.erasures.to_lists())
    sweeper.run()
    assert names_of(log) == [SegmentName(1, 4, 2)]
    assert read_segment(str(log.path), SegmentName(1, 4, 2)).header.row_count == 0


def test_a_usual_merge_leaves_them_out_too_and_the_daily_run_looks_for_more(log, start):
    sweeper = start(enabled=True, merge_interval="1h", min_files=2)
    (service,) = [one for one in sweeper.actor._services if isinstance(one, compaction.Compaction)]
    log.erase("a/3")
    sweeper.tell(NOW - 90 * DAY, erasures=log.erasures.to_lists())
    job = service._start(Effort.USUAL, frozenset())
    assert sweeper.ended(job.id)["result"]["events_left_out"] == 16
    log.erase("a/4")
    sweeper.tell(NOW - 90 * DAY, erasures=log.erasures.to_lists())
    job = service._start(Effort.USUAL, frozenset())
    assert sweeper.ended(job.id)["result"]["merges"] == 0
    for merges in (1, 0):
        service._thorough_due = now = time.monotonic()
        service.turn(now)
        running = sweeper.actor.jobs.active("compact")
        assert sweeper.ended(running.id)["result"]["merges"] == merges
    assert names_of(log) == [SegmentName(1, 4, 1)]


def test_a_generation_that_was_not_finished_is_litter(log, start):
    """Until its index is there the one before counts, and all three of its files."""
    merger = SegmentMerger(str(log.path))
    log.erase("a/3")
    merged = merger.merge(NAMES[:1], log.erasures, freely)
    assert merged.name == SegmentName(1, 1, 1)
    before = all_answers(log, *EVERYTHING)
    (log.path / merged.name.file(".idx")).unlink()
    assert names_of(log) == NAMES
    assert all_answers(log, *EVERYTHING) == before
    start()
    assert not list(log.path.glob("seg-*-*-*"))
    assert all_answers(log, *EVERYTHING) == before


def test_merged_segments_stay_for_those_who_copy_and_are_then_deleted(log, start, monkeypatch):
    sweeper = start()
    sweeper.run()
    sweep = [one for one in sweeper.actor._services if isinstance(one, log_retention.LogRetention)]
    before = all_answers(log, *EVERYTHING)
    sweep[0]._delete_superseded()
    assert (log.path / NAMES[0].file(".seg")).exists()
    monkeypatch.setattr(RetentionSweeper, "is_short_of_space", True)
    monkeypatch.setattr(log_retention, "QUESTION_SECONDS", 0.0)
    sweeper.actor.pins.pin("copy", 3, time.time_ns() + DAY)
    sweep[0]._delete_superseded()
    there = [(log.path / name.file(".seg")).exists() for name in NAMES]
    assert there == [False, False, True, True]
    sweeper.actor.pins.unpin("copy")
    sweep[0]._delete_superseded()
    assert not any((log.path / name.file(".seg")).exists() for name in NAMES)
    assert all_answers(log, *EVERYTHING) == before


def test_the_parts_of_what_has_expired_go_with_it(log, start):
    sweeper = start()
    sweeper.run()
    (sweep,) = [
        one for one in sweeper.actor._services if isinstance(one, log_retention.LogRetention)
    ]
    sweeper.tell(NOW + DAY, first_needed=100)
    sweep.turn(time.monotonic())
    (job,) = sweeper.actor.jobs.unfinished("fold")
    assert sweeper.ended(job.id)["state"] == "done"
    assert not list(log.path.glob("seg-*"))


def total(log: LogDirectory) -> tuple[int, int]:
    """The count and the sum of all events of a metric, from totals files and from the log."""
    log.files.refresh()
    question = Question("usage", "a", True, "m1", -(2**63), 2**63 - 1)
    found = finish(reading.read_cells(log.view(), question, registry_of(40))).cells
    return int(found[:, COUNT].sum()), int(found[:, SUM_LO].sum())


@pytest.fixture
def sweep(start, monkeypatch) -> LogRetention:
    """Deletes at once what it may."""
    monkeypatch.setattr(RetentionSweeper, "is_short_of_space", True)
    monkeypatch.setattr(log_retention, "QUESTION_SECONDS", 0.0)
    (found,) = [one for one in start().actor._services if isinstance(one, LogRetention)]
    return found


def test_a_segment_of_which_a_part_was_folded_meanwhile_stands_for_nothing(log, sweep):
    """What it was merged from is all there is of the rest; it goes itself."""
    before = total(log)
    SegmentMerger(str(log.path)).merge(NAMES, None, freely)
    log.fold([1, 2], registry_of(40), -(2**63))
    log.remove([1, 2])
    for number in (3, 4):
        (log.path / full_name(number)).unlink()
    assert total(log) == before
    sweep.assess()
    sweep._delete_superseded()
    assert names_of(log) == NAMES[2:]
    assert not list(log.path.glob(f"{WHOLE.file('')}*"))
    assert total(log) == before


def test_a_segment_with_a_folded_part_goes_also_when_the_rest_was_merged_beyond_it(log, sweep):
    log.write([LoggedEvent("a/1", f"5-{n}", 1, n, NOW + n) for n in range(9)], {1})
    log.seal(segmented=True)
    before = total(log)
    SegmentMerger(str(log.path)).merge(NAMES, None, freely)
    log.fold([1, 2], registry_of(40), -(2**63))
    log.remove([1, 2])
    SegmentMerger(str(log.path)).merge([*NAMES[2:], SegmentName(5, 5)], None, freely)
    log.remove([3, 4, 5])
    sweep.assess()
    sweep._delete_superseded()
    assert names_of(log) == [SegmentName(3, 5)]
    assert not list(log.path.glob(f"{WHOLE.file('')}*"))
    assert total(log) == before


def test_parts_stay_when_nobody_can_read_what_was_folded_of_the_others(log, sweep):
    """The totals file is damaged; its name still says what is folded."""
    before = total(log)
    SegmentMerger(str(log.path)).merge(NAMES, None, freely)
    log.fold([1, 2], registry_of(40), -(2**63))
    log.remove([1, 2])
    for number in (3, 4):
        (log.path / full_name(number)).unlink()
    kept = [(path, path.read_bytes()) for path in log.path.glob("totals-*")]
    for path, _ in kept:
        path.write_bytes(b"damaged")
    sweep.assess()
    sweep._delete_superseded()
    for path, content in kept:
        path.write_bytes(content)
    assert names_of(log)[-2:] == NAMES[2:]
    assert total(log) == before


def test_what_only_a_segment_with_a_folded_part_covers_is_missed(log):
    """Nobody reads it: a check of the directory must not count on it."""
    SegmentMerger(str(log.path)).merge(NAMES, None, freely)
    log.fold([1, 2], registry_of(40), -(2**63))
    log.remove([1, 2])
    assert list(fsck_files.coverage(str(log.path), [])) == []
    log.remove([3])
    (finding,) = fsck_files.coverage(str(log.path), [])
    assert finding.file == full_name(3)


def test_parts_stay_while_one_of_them_is_folded(log, sweep, monkeypatch):
    """They were merged meanwhile; the others are all there is of their events when it is done."""
    before = total(log)
    began, may_go_on = threading.Event(), threading.Event()
    write = totals_files.write

    def held(*args: Any) -> int:
        began.set()
        may_go_on.wait()
        return write(*args)

    monkeypatch.setattr(totals_files, "write", held)
    sweeper = Sweeper.of(sweep.sweeper)
    sweeper.tell(NOW + DAY, first_needed=100)
    sweep.turn(time.monotonic())
    (job,) = sweeper.actor.jobs.unfinished("fold")
    try:
        assert began.wait(120)
        SegmentMerger(str(log.path)).merge(NAMES, None, freely)
        sweep.assess()
        sweep._delete_superseded()
    finally:
        may_go_on.set()
    assert sweeper.ended(job.id)["state"] == "done"
    assert total(log) == before
    assert not list(log.path.glob("seg-*"))


def test_many_blocks_go_through_small_windows(tmp_path):
    """Segments of several blocks whose accounts interleave."""
    log = LogDirectory(tmp_path)
    for number in range(3):
        rows = 2 * BLOCK_ROWS + 17 * number
        for first in range(0, rows, 1_000):
            log.write(
                [
                    LoggedEvent(
                        f"a/{n % 301}", f"{number}-{n}", 1, n, n // 3, "none", {"k": str(n % 9)}
                    )
                    for n in range(first, min(first + 1_000, rows))
                ]
            )
        log.seal(segmented=True)
    before = all_answers(log, "a", True, (0, 3_000), 4_000)
    merged = SegmentMerger(str(tmp_path)).merge(NAMES[:3], None, freely)
    assert merged.rows == 6 * BLOCK_ROWS + 51
    log.files.refresh()
    assert all_answers(log, "a", True, (0, 3_000), 4_000) == before
    segments = LogFiles(str(tmp_path), IDENTITY_KEY).segments
    (found,) = segments.chosen(1 << 62)
    assert found.header.set_count == 9
    assert found.header.account_count == 301

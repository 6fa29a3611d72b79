"""Jobs: lanes, progress, cancelling, and what becomes of errors."""

from __future__ import annotations

import threading
import time

import pytest

from meterd.actors.housekeeping.jobs import WAITING_MAX, Jobs
from meterd.actors.retention_sweeper import RetentionSweeper
from meterd.protocol.errors import Busy, Corrupt, FsyncFailed, NotFound
from tests.support.recording import recorded
from tests.support.waiting import eventually


@pytest.fixture
def jobs(tmp_path):
    sweeper = recorded(RetentionSweeper, tmp_path)
    yield sweeper.jobs
    sweeper.close()


def ended(jobs: Jobs) -> bool:
    jobs.turn(time.monotonic())
    return jobs.drained(stopping=False)


def shown(jobs: Jobs, job) -> dict:
    return jobs.answer("job_show", {"id": job.id})["job"]


def test_a_job_gives_its_result_and_says_how_far_it_is(jobs):
    go = threading.Event()

    def work(task):
        task.advance(0.25)
        assert go.wait(10)
        return {"files": 3}

    told = []
    job = jobs.start("compact", "compaction", work, told.append)
    eventually(lambda: shown(jobs, job)["progress"] == 0.25, "the job ends")
    assert shown(jobs, job)["state"] == "running"
    assert shown(jobs, job)["eta_seconds"] >= 0
    assert jobs.active("compact") is job
    go.set()
    eventually(lambda: ended(jobs), "the job ends")
    assert told == [job]
    found = shown(jobs, job)
    assert (found["state"], found["progress"], found["result"]) == ("done", 1.0, {"files": 3})
    assert jobs.active("compact") is None


def test_a_job_is_done_for_clients_when_what_follows_from_it_is(jobs):
    job = jobs.start("compact", "compaction", lambda _: {"files": 3})
    job.thread.join(10)
    found = shown(jobs, job)
    assert (found["state"], found["finished"], found["result"]) == ("running", None, None)
    jobs.turn(time.monotonic())
    found = shown(jobs, job)
    assert (found["state"], found["result"]) == ("done", {"files": 3}) and found["finished"]


def test_jobs_of_one_lane_wait_for_each_other_and_others_do_not(jobs):
    go, order = threading.Event(), []

    def first(_):
        assert go.wait(10)
        order.append("first")
        return {}

    jobs.start("compact", "compaction", first)
    second = jobs.start("compact", "compaction", lambda _: order.append("second") or {})
    other = jobs.start("backup", "backup", lambda _: order.append("other") or {})
    eventually(lambda: jobs.turn(0.0) or shown(jobs, other)["state"] == "done", "the job ends")
    assert shown(jobs, second)["state"] == "waiting"
    go.set()
    eventually(lambda: ended(jobs), "the job ends")
    assert order == ["other", "first", "second"]


def test_a_cancelled_job_ends_where_it_says_how_far_it_is(jobs):
    reached = threading.Event()

    def work(task):
        while True:
            task.advance(0.5)
            reached.set()

    job = jobs.start("compact", "compaction", work)
    assert reached.wait(10)
    jobs.answer("job_cancel", {"id": job.id})
    eventually(lambda: ended(jobs), "the job ends")
    assert shown(jobs, job)["state"] == "cancelled"


def test_an_expected_error_is_kept_and_a_broken_disk_ends_the_actor(jobs):
    def damaged(_):
        raise Corrupt("seg-1.seg", 64, "checksum")

    def broken(_):
        raise FsyncFailed("seg-2.seg")

    job = jobs.start("backup_verify", "backup", damaged)
    eventually(lambda: ended(jobs), "the job ends")
    assert shown(jobs, job)["error"]["code"] == "corrupt"
    assert "seg-1.seg at offset 64" in shown(jobs, job)["error"]["message"]
    jobs.start("backup", "backup", broken)
    with pytest.raises(FsyncFailed):
        eventually(lambda: ended(jobs), "the job ends")


def test_too_many_jobs_are_refused_and_an_unknown_one_is_not_found(jobs):
    go = threading.Event()
    jobs.start("compact", "compaction", lambda _: {"waited": go.wait(10)})
    for _ in range(WAITING_MAX):
        jobs.start("compact", "compaction", lambda _: {})
    with pytest.raises(Busy):
        jobs.start("compact", "compaction", lambda _: {})
    with pytest.raises(NotFound):
        jobs.answer("job_show", {"id": 1})
    go.set()
    eventually(lambda: ended(jobs), "the job ends")

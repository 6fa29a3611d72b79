"""Threads that keep processors awake: to whom they give way, and when they sleep themselves."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from meterd.actors.machine.idle_poll import IdlePoll, has_quota

ROOT = Path(__file__).resolve().parent.parent.parent

# In a process of its own: its threads end with it.
PROGRAM = """
import os, threading
from meterd.actors.machine import idle_poll
from meterd.actors.machine.idle_poll import WAITING, IdlePoll
from tests.support.waiting import eventually

idle_poll.has_quota = lambda: False

before = set(os.listdir("/proc/self/task"))
poll = IdlePoll(3600.0)
mine = [int(name) for name in set(os.listdir("/proc/self/task")) - before]
processors = os.sched_getaffinity(0)
assert len(mine) == len(processors)
for thread in mine:
    eventually(lambda: os.sched_getscheduler(thread) == os.SCHED_IDLE, "it gives way")
assert {frozenset(os.sched_getaffinity(thread)) for thread in mine} == {
    frozenset({processor}) for processor in processors
}

def waiting():
    return [bool(row[WAITING]) for row, _ in poll._rows]

eventually(lambda: all(waiting()), "all wait")  # nothing has come yet
poll.extend()
assert not any(waiting())
for row, _ in poll._rows:
    row[0] = 0  # the time is over
eventually(lambda: all(waiting()), "all wait")
poll.extend()  # and again, for an hour: that does not keep the process from ending
print("polled")
"""


def test_threads_poll_after_a_request_wait_otherwise_and_end_with_the_process():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "polled\n"), done.stderr[-2_000:]


def test_none_is_started_when_it_is_turned_off():
    before = threading.active_count()
    IdlePoll(0.0).extend()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, False),
        ({"a/b": "max 100000", "a": "max 100000"}, False),
        ({"a/b": "50000 100000"}, True),
        ({"a/b": "max 100000", "a": "150000 100000"}, True),
        ({"": "150000 100000"}, True),  # of a container, seen from inside
        ({"other": "150000 100000"}, False),
    ],
)
def test_a_quota_of_the_group_or_of_one_around_it_is_found(
    tmp_path: Path, limits: dict[str, str], expected: bool
) -> None:
    membership, groups = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text("1:cpu:/else\n0::/a/b\n")
    for name, limit in limits.items():
        (groups / name).mkdir(parents=True, exist_ok=True)
        (groups / name / "cpu.max").write_text(limit + "\n")
    assert has_quota(membership, groups) is expected


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert not has_quota(tmp_path / "none", tmp_path)

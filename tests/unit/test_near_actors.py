"""Threads of the actors on one processor: which are moved, and that all are let go again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meterd.actors.machine import near_actors
from meterd.actors.machine.near_actors import NearActors
from meterd.core.nearness import REQUESTS_MIN, WINDOW_SECONDS

ALL = os.sched_getaffinity(0)
ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="there is one processor only")

# An actor with a thread of ZeroMQ, and one that works beside it.
ACTOR = """
import sys, threading, zmq
from pathlib import Path
from tests.support.waiting import eventually

context = zmq.Context()
context.socket(zmq.PULL).bind("inproc://any")
tasks = Path("/proc/self/task")
names = lambda: [path.read_text()[:6] for path in tasks.glob("*/comm")]
eventually(lambda: names().count("ZMQbg/") == 2, "threads have their names")
threading.Thread(target=sys.stdin.read).start()
print("ready", flush=True)
"""


@pytest.fixture
def actor() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", ACTOR]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        yield process
        process.stdin.close()


def affinities(process: int) -> dict[str, list[set[int]]]:
    found: dict[str, list[set[int]]] = {}
    for thread, name in near_actors._threads_of(process):
        kind = "main" if thread == process else name[: len(near_actors.IO_THREADS)]
        found.setdefault(kind, []).append(os.sched_getaffinity(thread))
    return found


def listed(directory: Path, *processes: int) -> None:
    """Write the list of actors."""
    actors = dict(zip(near_actors.ACTORS, ({"pid": pid} for pid in processes), strict=False))
    (directory / near_actors.ACTORS_FILE).write_text(json.dumps({"actors": actors}))


def near(directory: Path, *processes: int, wanted: bool = True) -> NearActors:
    """Return what has just begun to try it."""
    listed(directory, *processes)
    made = NearActors(str(directory), wanted, os.getpid())
    made.turn(0.0)
    for _ in range(REQUESTS_MIN):
        made.nearness.begun(0.0)
        made.nearness.ended(0.001)
    made.turn(WINDOW_SECONDS)
    return made


def test_what_serves_requests_is_moved_and_let_go(tmp_path, actor):
    near_one = near(tmp_path, actor.pid, 2**22 + 1)  # another is gone
    found = affinities(actor.pid)
    assert len(found["main"][0]) == 1
    assert found[near_actors.IO_THREADS] == found["main"] * len(found[near_actors.IO_THREADS])
    others = [one for kind, some in found.items() if kind not in ("main", "ZMQbg/") for one in some]
    assert others and all(one == ALL for one in others)
    near_one.nearness.begun(0.2)
    assert affinities(actor.pid) == found
    near_one.crowded()
    assert all(one == ALL for some in affinities(actor.pid).values() for one in some)


def test_nobody_is_left_there_at_the_end(tmp_path, actor):
    near_one = near(tmp_path, actor.pid)
    assert affinities(actor.pid)["main"] != [ALL]
    near_one.close()
    assert affinities(actor.pid)["main"] == [ALL]


def test_who_was_started_there_is_let_go_at_the_next_look(tmp_path, actor):
    near_one = near(tmp_path, actor.pid)
    (processor,) = affinities(actor.pid)["main"]
    others = [t for t, name in near_actors._threads_of(actor.pid) if not name.startswith("ZMQ")]
    others.remove(actor.pid)
    os.sched_setaffinity(others[0], processor)
    near_one.turn(WINDOW_SECONDS)
    assert os.sched_getaffinity(others[0]) == processor
    near_one._look_at = 0.0
    near_one.turn(WINDOW_SECONDS)
    assert os.sched_getaffinity(others[0]) == ALL
    near_one.close()


def test_nobody_is_moved_who_is_not_to_be(tmp_path, actor):
    near(tmp_path, actor.pid, wanted=False)
    assert all(one == ALL for some in affinities(actor.pid).values() for one in some)


def test_without_a_list_of_actors_it_does_nothing(tmp_path):
    made = near(tmp_path)
    (tmp_path / near_actors.ACTORS_FILE).unlink()
    made.close()
    assert os.sched_getaffinity(0) == ALL


def test_whom_a_killed_router_has_left_there_the_next_one_lets_go(tmp_path, actor):
    near(tmp_path, actor.pid)  # and is never closed
    assert affinities(actor.pid)["main"] != [ALL]
    NearActors(str(tmp_path), True, os.getpid()).turn(0.0)
    assert all(one == ALL for some in affinities(actor.pid).values() for one in some)


def test_nobody_else_s_process_is_touched(tmp_path, actor):
    """The list may be that of an earlier node, and its numbers given to others."""
    os.sched_setaffinity(actor.pid, {min(ALL)})
    listed(tmp_path, actor.pid)
    NearActors(str(tmp_path), True, os.getppid()).turn(0.0)
    assert affinities(actor.pid)["main"] == [{min(ALL)}]

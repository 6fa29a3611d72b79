"""No fault makes an answer wrong: a few of what `bench.faults` does.

What is damaged at rest, every kind of fault on the simulated disk, and real disks that lose power.
The simulation must find fault with a disk that does not keep its promises.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from meterd.core.warm import warm
from tests.support import one_process, real_faults, simulated_faults
from tests.support.disk_image import DiskImage
from tests.support.disk_trace import DiskTrace
from tests.support.fault_book import Violation
from tests.support.fault_campaign import FAULTS, KINDS, Campaign
from tests.support.node import Node
from tests.support.one_process import OneProcessNode, apart
from tests.support.simulated_faults import FLIPPED, Simulation
from tests.support.warm_starts import WarmStarts

SEEDS = {"bit": 3, "sector": 1, "cut": 1, "lost": 1}
FIRST = 10_000


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# Damage at rest


@pytest.fixture(scope="module", params=[False, True], ids=["with log files", "segments alone"])
def campaign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("faults"), request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_right_or_refused_whatever_is_damaged(campaign: Campaign, kind: str) -> None:
    for fault in FAULTS:
        for seed in range(SEEDS[fault]):
            campaign.run(kind, fault, FIRST + seed)
    assert not campaign.violations


def test_a_sound_directory_is_right(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, False)
    assert campaign.look("nothing", 0) == "right"
    assert not campaign.violations


# The simulated disk


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    warm()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="mfault", dir=memory) as home:
        yield Simulation(Path(home))


@pytest.mark.slow
@pytest.mark.parametrize("kind", simulated_faults.CRASHES)
def test_a_crash_anywhere_loses_nothing(simulation: Simulation, kind: str) -> None:
    for seed in range(FIRST, FIRST + 2):
        assert simulation.run(kind, seed) in ("right", "restored")


@pytest.mark.slow
@pytest.mark.parametrize("kind", simulated_faults.LIVE)
def test_a_fault_while_a_node_works_loses_nothing(simulation: Simulation, kind: str) -> None:
    simulation.run(kind, FIRST)


@pytest.mark.slow
def test_a_flipped_bit_is_told(simulation: Simulation) -> None:
    for pattern in FLIPPED:
        simulation.flip(pattern, FIRST)
    for seed in range(FIRST, FIRST + 4):
        simulation.flip_backup(seed)


@pytest.mark.slow
def test_the_trace_is_what_became_of_the_files(simulation: Simulation, tmp_path: Path) -> None:
    """With nothing lost an image is the directory itself, so no change escapes the trace."""
    recorded = simulation.life(FIRST // simulated_faults.RUNS_PER_LIFE)
    DiskImage(recorded.trace, len(recorded.trace.calls)).write_to(tmp_path, Random(1), True)
    root = Path(recorded.trace.root)
    found = {path.relative_to(root): path for path in root.rglob("*")}
    made = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*")}
    assert found.keys() == made.keys()
    for name, path in found.items():
        if path.is_file() and path.name != "node.json":  # which names the directory
            assert path.read_bytes() == made[name].read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["sync", "sync_names"])
def test_a_disk_that_breaks_its_promises_is_found_out(simulation: Simulation, kept: str) -> None:
    """Without the effect of one kind of sync some crashes must lose what was acknowledged."""
    recorded = simulation.life(FIRST // simulated_faults.RUNS_PER_LIFE)
    found = 0
    for seed in range(8):
        random = Random(seed)
        end = random.randrange(len(recorded.trace.calls) // 2, recorded.at["restore"][0][0])
        image = DiskImage(Lying(recorded.trace, kept), end)
        image.write_to(simulation.image, random, False)
        try:
            simulation.look(recorded, end, seed)
        except Violation:
            found += 1
    assert found > 1


class Lying:
    """A trace without one kind of sync."""

    def __init__(self, trace: DiskTrace, kind: str) -> None:
        self.inodes, self.start = trace.inodes, trace.start
        # In the place of each such call stands one that does nothing.
        self.calls = [
            call._replace(kind="mark") if call.kind == kind else call for call in trace.calls
        ]


def test_a_process_that_gets_no_processor_misses_no_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that others use must not look like a node that hangs."""
    monkeypatch.setattr(one_process, "DEADLINE_SECONDS", 0.05)
    looks = []

    def looked_twice() -> bool:
        looks.append(time.sleep(0.2))  # as if it were not scheduled
        return len(looks) == 2

    def wait(condition: Callable[[], bool]) -> None:
        OneProcessNode(tmp_path, Random(1)).until(condition, "it is true")

    apart(lambda: wait(looked_twice))
    with pytest.raises(AssertionError, match="it is true"):
        apart(lambda: wait(lambda: False))


def test_what_is_tried_again_a_hundred_times_is_not_waited_for(tmp_path: Path) -> None:
    """A segment that finds no room is, each time after ten seconds."""

    def wait() -> int:
        node, looks = OneProcessNode(tmp_path, Random(1)), itertools.count()
        end = time.monotonic() + 100 * 10.0
        node.until(lambda: next(looks) >= 0 and time.monotonic() > end, "the last is tried")
        return next(looks)

    assert apart(wait) < 1_000


# Real disks


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lost unsynced data", "fsync error"])
def test_a_real_node_loses_nothing(kind: str) -> None:
    with real_faults.stage(kind) as run:
        assert run(FIRST) == "right"


@pytest.mark.slow
def test_a_node_that_is_forked_ends_as_any_other() -> None:
    """What campaigns rely on that start thousands of nodes."""
    with WarmStarts(), Node() as node:
        assert node.pids()["supervisor"] == node.process.pid
        node.kill9()
        assert node.process.returncode == -signal.SIGKILL
        assert node.start().stop() == 0, node.log()

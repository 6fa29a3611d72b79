"""A node on a real small disk that others fill: nothing acknowledged is lost, and it goes on.

The disk is a tmpfs.  Limits are those of an ordinary node divided by about a hundred.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from meterd.client import Event
from tests.support.disk_campaign import BLIND, OPTIONS, Run
from tests.support.meterctl import run
from tests.support.node import Node
from tests.support.small_disk import MIB, Load, SmallDisk
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SIZE = 128 * MIB  # where all is slow the load fills half of it before the others do
RESUME_SECONDS_MAX = 30.0
HOLD = 3.0
SEEDS = (2, 10)  # space that ends little by little, and a kill; inodes; both noticed by writes


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with SmallDisk(SIZE, inodes=2_000) as made:
        yield made


def disk_status(node: Node) -> dict[str, Any]:
    """What an operator sees."""
    code, said = run(node, "disk", "status")
    assert code in (0, 1), said
    (found,) = said["nodes"]
    assert (code == 1) == (found["state"] in ("stop", "hard"))
    return dict(found)


def total(node: Node) -> int:
    """How many events the node counts."""
    with node.client() as client:
        return sum(int(row.value) for row in client.accounts("calls"))


def check_books(node: Node, load: Load) -> None:
    """All that was acknowledged is there once, and nothing that was not sent."""
    found = total(node)
    assert len(load.acknowledged) <= found <= len(load.acknowledged) + load.undecided


def states(node: Node) -> list[str]:
    """The states of the disk in the order in which they began."""
    return re.findall(r"disk state (\w+), was", node.log())


def prepare(node: Node) -> None:
    with node.client() as client:
        client.put_metric("calls", aggregation="count")


def wait_for_load(load: Load, events: int) -> None:
    eventually(lambda: len(load.acknowledged) > events, "events are taken", 60.0)


def refuses(load: Load) -> bool:
    return load.refused["disk_stop"] > 0


def resumes(load: Load, began: float) -> float:
    """Wait until events are taken again; return after how long."""
    eventually(lambda: load.taken_since(began), "events are taken again", RESUME_SECONDS_MAX)
    return time.monotonic() - began


def test_a_disk_that_others_fill_under_load(disk: SmallDisk) -> None:
    with Node(data_dir=disk.data_dir, environment=OPTIONS) as node:
        prepare(node)
        pids = node.pids()
        with Load(node) as load:
            wait_for_load(load, 500)
            eventually(lambda: (disk.data_dir / "ballast").exists(), "there is a ballast")
            disk.fill()
            eventually(lambda: refuses(load), "events are refused")
            eventually(lambda: disk_status(node)["state"] == "hard" or disk.fill(), "hard")
            # Questions and administration go on.
            assert total(node) >= len(load.acknowledged) > 0
            with node.client() as client:
                client.put_metric("more", aggregation="sum")
            found = disk_status(node)
            assert (found["reason"], found["reserve"]) == ("space", 0)
            assert "not belong to this node" in found["cause"]
            assert node.get("/readyz?for=read")[0] == 200
            assert node.get("/readyz?for=write")[0] == 503
            assert node.get("/livez")[0] == 200
            taken = len(load.acknowledged)
            began = time.monotonic()
            disk.free_up()
            assert resumes(load, began) >= HOLD - 0.1
            wait_for_load(load, taken + 200)
            assert not load.without_wait
        # By themselves: no process has ended, and no state came twice without cause.
        assert node.pids() == pids
        assert set(load.refused) == {"disk_stop"}
        back = states(node)
        assert back[-1] in ("ok", "warn"), back
        assert sum(one in ("ok", "warn") for one in back[back.index("hard") :]) <= 2, back
        check_books(node, load)
        node.kill9()
        node.start()
        check_books(node, load)
        assert node.stop() == 0


def test_a_kill_on_a_full_disk_and_a_start_on_it(disk: SmallDisk) -> None:
    with Node(data_dir=disk.data_dir, environment=OPTIONS) as node:
        prepare(node)
        with Load(node) as load:
            wait_for_load(load, 2_500)
            disk.fill()
            eventually(lambda: refuses(load), "events are refused")
            node.kill9()
        disk.fill()
        node.start()
        disk.fill()
        check_books(node, load)
        with Load(node) as another:
            eventually(lambda: refuses(another), "events are refused after the start too")
        assert (len(another.acknowledged), set(another.refused)) == (0, {"disk_stop"})
        assert disk_status(node)["state"] in ("stop", "hard")
        began = time.monotonic()
        disk.free_up()
        with node.client() as client:
            assert client.ingest([Event("a0", "calls", id="later")]).stored == 1
        assert time.monotonic() - began < RESUME_SECONDS_MAX
        assert node.stop() == 0
        node.start()
        assert total(node) >= len(load.acknowledged) + 1


def test_writes_that_find_no_room_are_enough_to_notice(disk: SmallDisk) -> None:
    """As with a quota: the free space says nothing, the next log file cannot be made."""
    with Node(data_dir=disk.data_dir, environment=OPTIONS | BLIND) as node:
        prepare(node)
        pids = node.pids()
        with Load(node) as load:
            wait_for_load(load, 500)
            disk.fill()
            eventually(lambda: refuses(load), "events are refused", 120.0)
            assert "no room for" in node.log()
            assert total(node) >= len(load.acknowledged)
            began = time.monotonic()
            disk.free_up()
            resumes(load, began)
            wait_for_load(load, len(load.acknowledged) + 200)
        assert node.pids() == pids
        assert set(load.refused) <= {"disk_stop"}
        check_books(node, load)
        node.kill9()
        node.start()
        check_books(node, load)


def test_no_inodes_and_a_disk_that_grows() -> None:
    with (
        SmallDisk(SIZE, inodes=150) as disk,
        Node(data_dir=disk.data_dir, environment=OPTIONS) as node,
    ):
        prepare(node)
        pids = node.pids()
        with Load(node) as load:
            wait_for_load(load, 500)
            disk.fill_inodes()
            eventually(lambda: refuses(load), "events are refused")
            found = disk_status(node)
            assert (found["reason"], found["state"]) == ("inodes", "hard")
            assert "--inodes" in found["next"]
            assert total(node) >= len(load.acknowledged)
            began = time.monotonic()
            disk.free_up()
            resumes(load, began)
            # And now space, which comes back by a larger volume.
            refused = load.refused["disk_stop"]
            disk.fill(6 * MIB)
            eventually(lambda: load.refused["disk_stop"] > refused, "events are refused again")
            began = time.monotonic()
            disk.resize(2 * SIZE)
            resumes(load, began)
        assert node.pids() == pids
        check_books(node, load)
        assert node.stop() == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_runs_of_the_campaign(seed: int) -> None:
    """A few of those that `python -m bench.full_disk` makes."""
    report = Run(seed).run()
    assert report.violations == []
    assert report.acknowledged > 0 and set(report.refused) <= {
        "disk_stop",
        "restarting",
        "starting",
    }


def test_log_files_and_checkpoints_without_an_inode() -> None:
    """The next log file is there ahead, and so is the file for the next checkpoint."""
    with (
        SmallDisk(SIZE, inodes=150) as disk,
        Node(data_dir=disk.data_dir, environment=OPTIONS | BLIND) as node,
    ):
        prepare(node)
        pids = node.pids()
        with Load(node) as load:
            wait_for_load(load, 3_000)
            eventually(lambda: (disk.data_dir / "checkpoint.bin.spare").exists(), "a checkpoint")
            disk.fill_inodes()
            eventually(lambda: refuses(load), "events are refused", 120.0)
            began = time.monotonic()
            disk.free_up()
            resumes(load, began)
        assert node.pids() == pids
        check_books(node, load)
        node.kill9()
        node.start()
        check_books(node, load)

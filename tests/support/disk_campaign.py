"""Fills the disk of a working node in every way that a seed draws, and audits what it remembers.

One run is one node on a small file system of its own: clients ingest; the disk loses its space or
its inodes, at once or little by little, watched or noticed only by writes that fail; meanwhile
perhaps an actor or the whole node is killed with SIGKILL and started again on the full disk;
questions are asked; then there is room again.  At the end the node is killed once more, everything
undecided is sent again, and every event must be there exactly once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from tests.support.node import Node
from tests.support.small_disk import MIB, Load, SmallDisk, SmallExt4
from tests.support.waiting import eventually

DISKS = {"tmpfs": SmallDisk, "ext4": SmallExt4}
SIZE = 96 * MIB
INODES = 150
RESUME_SECONDS_MAX = 30.0
OPTIONS = {
    "METERD__WAL__SEGMENT_SIZE": "4MiB",
    "METERD__STORAGE__CHECKPOINT_EVENTS": "2000",
    "METERD__STORAGE__CHECKPOINT_INTERVAL": "2s",
    "METERD__DISK__CHECK_INTERVAL": "1s",
    "METERD__DISK__WARN_FREE": "16MiB",
    "METERD__DISK__WARN_FREE_RATIO": "0",
    "METERD__DISK__STOP_FREE": "12MiB",
    "METERD__DISK__RESUME_MARGIN": "4MiB",
    "METERD__DISK__HARD_FREE": "2MiB",
    "METERD__DISK__BALLAST": "4MiB",
    "METERD__DISK__RESUME_HOLD": "3s",
    "METERD__DISK__INODE_WARN": "60",
    "METERD__DISK__INODE_STOP": "40",
    "METERD__DISK__INODE_RESUME": "50",
}
# Nobody looks at the disk until a write has failed, as with a quota.
BLIND = {"METERD__DISK__CHECK_INTERVAL": "10m", "METERD__DISK__CHECK_INTERVAL_MIN": "1m"}
BLIND_SECONDS_MAX = 60.0
VICTIMS = ("node", "usage", "wal_writer", "retention_sweeper", "router")


@dataclass
class Plan:
    """What happens in one run."""

    disk: str  # tmpfs, ext4
    what: str  # space, inodes
    slowly: bool
    blind: bool
    left: int  # bytes that the filler leaves
    victim: str | None
    options: dict[str, str] = field(default_factory=dict)


def draw_plan(seed: int) -> Plan:
    """Return the plan of a seed."""
    random = Random(seed)
    what = random.choice(("space", "space", "inodes"))
    blind = random.random() < 0.3
    return Plan(
        disk="ext4" if seed % 2 else "tmpfs",
        what=what,
        slowly=random.random() < 0.4,
        blind=blind,
        left=0 if blind else random.choice((0, 0, MIB, 6 * MIB)),
        victim=random.choice((None, None, "node", *VICTIMS)),
        options=OPTIONS | (BLIND if blind else {}),
    )


@dataclass
class Report:
    """What one run has shown."""

    seed: int
    plan: dict[str, Any]
    acknowledged: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    resume_seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Run:
    """One run; `run` returns its report."""

    def __init__(self, seed: int) -> None:
        self.plan = draw_plan(seed)
        shown = asdict(self.plan)
        del shown["options"]
        self.report = Report(seed, shown)
        self._random = Random(seed)

    def run(self) -> Report:
        with (
            DISKS[self.plan.disk](SIZE, INODES) as disk,
            Node(data_dir=disk.data_dir, environment=self.plan.options) as node,
        ):
            with node.client() as client:
                client.put_metric("calls", aggregation="count")
            with Load(node) as load:
                self._fault(disk, node, load)
                self._settle(node, load)
            self._audit(node, load, "at the end")
            node.kill9()
            node.start()
            self._audit(node, load, "after the last kill")
            self._check(node.stop() == 0, "it does not stop in order")
            self._check("Traceback" not in node.log(), f"a bug:\n{node.log()}")
        self.report.acknowledged = len(load.acknowledged)
        self.report.refused = dict(load.refused)
        self.report.duplicates = load.duplicates
        return self.report

    def _check(self, good: bool, violation: str) -> None:
        if not good:
            self.report.violations.append(violation)

    def _until(self, condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        with contextlib.suppress(AssertionError):
            eventually(condition, what, seconds)
            return
        self.report.violations.append(f"not within {seconds} s: {what}")

    def _fault(self, disk: SmallDisk, node: Node, load: Load) -> None:
        """Fill, kill, ask, make room."""
        events = self._random.randrange(200, 4_000)
        self._until(lambda: len(load.acknowledged) >= events, "events are taken")
        self._fill(disk)
        seconds = BLIND_SECONDS_MAX if self.plan.blind else 20.0
        self._until(lambda: load.refused["disk_stop"], "events are refused", seconds)
        if self.plan.victim is not None:
            self._kill(disk, node)
        with node.client(timeout=30.0) as client:
            before = len(load.acknowledged)
            found = sum(int(row.value) for row in client.accounts("calls"))
            self._check(found >= before, f"{found} counted on a full disk, {before} acknowledged")
        began = time.monotonic()
        disk.free_up()
        self._until(lambda: load.taken_since(began), "events are taken again", RESUME_SECONDS_MAX)
        self.report.resume_seconds = round(load.answered_at - began, 2)
        self._check(not load.without_wait, "disk_stop without a time to wait")

    def _fill(self, disk: SmallDisk) -> None:
        if self.plan.what == "inodes":
            disk.fill_inodes()
            return
        if self.plan.slowly:
            for left in range(40 * MIB, self.plan.left, -2 * MIB):
                disk.fill(left)
        disk.fill(self.plan.left)

    def _kill(self, disk: SmallDisk, node: Node) -> None:
        if self.plan.victim == "node":
            node.kill9()
            self._fill(disk)
            node.start()
            return
        restarts = node.page()["actors"][self.plan.victim]["restarts"]
        node.kill_actor(self.plan.victim or "")

        def back() -> bool:
            """The page may be old when there is no room for a new one: ask the node itself."""
            page = node.page()
            known = page["actors"][self.plan.victim]["restarts"] > restarts
            return (known and page["state"] == "running") or node.get("/readyz?for=read")[0] == 200

        self._until(back, f"{self.plan.victim} is back")

    def _settle(self, node: Node, load: Load) -> None:
        """Go on for a while, and until nothing is undecided."""
        events = len(load.acknowledged) + 200
        self._until(lambda: len(load.acknowledged) >= events, "events are taken for good")
        load.finish()
        self._check(load.undecided == 0, f"{load.undecided} events stay undecided")

    def _audit(self, node: Node, load: Load, when: str) -> None:
        with node.client(timeout=30.0) as client:
            found = sum(int(row.value) for row in client.accounts("calls"))
        wanted = len(load.acknowledged)
        self._check(found == wanted, f"{when}: {found} events counted, {wanted} acknowledged")

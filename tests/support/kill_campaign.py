"""Kills processes of a working node, again and again, and proves that nothing is lost or doubled.

A campaign is a list of *strokes*, drawn from a seed: one kill -9, or two of them, the second in the
next moment or while the node recovers from the first.  Victims are the actors and the supervisor;
after a supervisor's death the daemon is started again at once, while its children still have to
end by themselves.  Clients (`kill_load`) send all the time, so every stroke meets requests in
flight.  Half of the strokes come at a random moment; the other half come just after a file of the
data directory has appeared, gone or got another name, which is when rotations, segments and
checkpoints are half done.

From time to time, and at the end after a clean restart and after one more kill, the clients
settle what is undecided and everything the node says is compared with the ledger.

Every restart must be one that a kill explains: the node counts them, and so do we, by the
generation of processes that was hit.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from meterd.actors.files.disk import LocalDisk
from meterd.actors.log.wal_recovery import Owner, Recovery
from meterd.actors.node import UNITS
from meterd.client import Client
from meterd.protocol.log_format import ACTIVE_NAME, full_name, parse_file_header
from tests.support.kill_check import Check
from tests.support.kill_ledger import Ledger, put_metrics
from tests.support.kill_load import Load, Watch
from tests.support.node import Node
from tests.support.processes import is_gone
from tests.support.waiting import eventually

UNIT_OF = {kind.name: tuple(member.name for member in unit) for unit in UNITS for kind in unit}
SUPERVISOR = "supervisor"
VICTIMS = (*UNIT_OF, SUPERVISOR)
ACCOUNTS = 300
# Small, so that files become full, segments are made and checkpoints saved all the time.
ENVIRONMENT = {
    "METERD__WAL__SEGMENT_SIZE": "4MiB",
    "METERD__STORAGE__CHECKPOINT_EVENTS": "3000",
    "METERD__STORAGE__CHECKPOINT_INTERVAL": "1s",
    "METERD__LOG__LEVEL": "info",
}
# Before a stroke.
PAUSE_SECONDS_MAX = 0.8
# Between the kills of a pair: in the next moment, or during the recovery.
QUICK_SECONDS_MAX = 0.02
RECOVERY_SECONDS_MAX = 1.0
# After a change of the directory.
AIMED_SECONDS_MAX = 0.01
# A stroke waits at most so long for its moment, and for its victims to live.
MOMENT_SECONDS_MAX = 60.0
VICTIM_SECONDS_MAX = 60.0
DEATH_SECONDS_MAX = 3.0
WHOLE_SECONDS_MAX = 60.0


@dataclass(frozen=True)
class Stroke:
    """One or two kills: (victim, seconds after the one before)."""

    kills: tuple[tuple[str, float], ...]
    aimed: bool = False  # at a change of the data directory


@dataclass
class Kill:
    """What one kill did; moments are those of the monotonic clock."""

    victim: str
    pid: int
    in_flight: int  # requests that waited for their answer
    at: float
    watch: Watch | None = None  # for the first acknowledgement after it
    interrupted: bool = False  # another kill came before the node served again
    whole_at: float | None = None  # when every actor was ready, if no other kill came before
    restarted_at: float | None = None  # of a supervisor: when we had started another
    children_gone_at: float | None = None  # of a supervisor: when all its children had ended

    @property
    def served_seconds(self) -> float:
        assert self.watch is not None
        return self.watch.answered - self.at


def draw_plan(seed: int, kills_each: int) -> list[Stroke]:
    """Draw strokes that kill every victim so many times, in random order."""
    random = Random(seed)
    order = [victim for victim in VICTIMS for _ in range(kills_each)]
    random.shuffle(order)
    strokes = []
    while order:
        kills = [(order.pop(), 0.0)]
        if order and random.random() < 0.4:
            longest = random.choice((QUICK_SECONDS_MAX, RECOVERY_SECONDS_MAX))
            kills.append((order.pop(), random.random() * longest))
        strokes.append(Stroke(tuple(kills), aimed=random.random() < 0.5))
    return strokes


@dataclass
class Report:
    """What a campaign found."""

    kills: list[Kill] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    doubled: int = 0
    restarts: Counter[str] = field(default_factory=Counter)

    def of_victim(self, victim: str) -> list[Kill]:
        return [kill for kill in self.kills if kill.victim == victim]


class Campaign:
    """One node, its clients and its killer; `run` does all of it."""

    def __init__(self, node: Node, seed: int, say: Callable[[str], None]) -> None:
        self.report = Report()
        self._node = node
        self._random = Random(seed)
        self._say = say
        self._ledger = Ledger(ACCOUNTS)
        self._load = Load([node.address], self._ledger, seed)
        # Generations of processes that were hit since the supervisor was started, by unit.
        self._hit: dict[tuple[str, ...], set[tuple[int, ...]]] = defaultdict(set)
        self._counted: dict[str, int] = {}  # restarts, as the supervisor has counted them

    def run(self, plan: list[Stroke], checks: int) -> Report:
        """Carry out a plan, checking everything so many times on the way, and at the end."""
        with self._node.client() as client:
            put_metrics(client)
        self._load.start()
        try:
            every = max(1, len(plan) // (checks + 1))
            for number, stroke in enumerate(plan, 1):
                self._strike(stroke)
                if number % every == 0 and number < len(plan):
                    self._check(f"after {len(self.report.kills)} kills", whole=False)
            self._finish()
        except AssertionError as error:
            self.report.violations.append(str(error))
        finally:
            self._load.stop()
        self.report.violations += self._load.violations
        self.report.counters += self._load.counters
        self.report.counters["events acknowledged"] = self._ledger.count()
        return self.report

    # Kills

    def _strike(self, stroke: Stroke) -> None:
        time.sleep(self._random.random() * PAUSE_SECONDS_MAX)
        self._await_moment(stroke.aimed)
        kills: list[Kill] = []
        for victim, delay in stroke.kills:
            time.sleep(delay)
            kill = self._kill_supervisor() if victim == SUPERVISOR else self._kill_actor(victim)
            for before in kills:
                before.interrupted = before.served_seconds == float("inf")
            kill.watch = self._load.watch()
            kills.append(kill)
            self.report.kills.append(kill)
        self._load.probe()
        eventually(lambda: self._is_whole(kills), "all actors are ready", WHOLE_SECONDS_MAX)
        kills[-1].whole_at = time.monotonic()
        self._check_restarts()
        self._say_kills(stroke, kills)

    def _say_kills(self, stroke: Stroke, kills: list[Kill]) -> None:
        killed = ", then ".join(
            f"{kill.victim} served again after {kill.served_seconds:.3f} s" for kill in kills
        )
        self._say(
            f"{len(self.report.kills)}: {killed} ({kills[0].in_flight} in flight"
            f"{', aimed' if stroke.aimed else ''}); {self._ledger.count():,} events, "
            f"{len(self._load.violations) + len(self.report.violations)} violations"
        )

    def _await_moment(self, aimed: bool) -> None:
        """Wait until requests are in flight and, for an aimed stroke, the directory changes."""
        directory, names = self._node.data_dir, set(os.listdir(self._node.data_dir))
        give_up = time.monotonic() + MOMENT_SECONDS_MAX
        while time.monotonic() < give_up:
            if not aimed:
                time.sleep(self._random.random() * QUICK_SECONDS_MAX)
            elif set(os.listdir(directory)) == names:
                continue
            else:
                time.sleep(self._random.random() * AIMED_SECONDS_MAX)
            if self._load.in_flight():
                return
            names = set(os.listdir(directory))
        raise AssertionError("nothing happens on the node any more")

    def _kill_actor(self, victim: str) -> Kill:
        """Kill an actor as soon as it lives."""
        unit = UNIT_OF[victim]
        pids = eventually(lambda: self._living(unit), f"{victim} lives", VICTIM_SECONDS_MAX)
        kill = Kill(victim, pids[victim], self._await_flight(), time.monotonic())
        os.kill(kill.pid, signal.SIGKILL)
        self._hit[unit].add(tuple(pids.values()))
        self._await_death([kill.pid])
        return kill

    def _living(self, unit: tuple[str, ...]) -> dict[str, int]:
        """Return the processes of a unit when all of them live, else nothing."""
        actors = self._node.page().get("actors", {})
        pids = {name: actors.get(name, {}).get("pid") for name in unit}
        return pids if all(pid and not is_gone(pid) for pid in pids.values()) else {}

    def _kill_supervisor(self) -> Kill:
        """Kill the supervisor, start another at once, and see that the old actors have gone."""
        node = self._node
        assert node.process is not None
        children = [one.pid for one in psutil.Process(node.process.pid).children(recursive=True)]
        self._note_restarts()
        kill = Kill(SUPERVISOR, node.process.pid, self._await_flight(), time.monotonic())
        os.kill(kill.pid, signal.SIGKILL)
        node.process.wait()
        node.start(wait=False)
        kill.restarted_at = time.monotonic()
        self._hit.clear()
        self._await_death(children)
        kill.children_gone_at = time.monotonic()
        return kill

    def _await_flight(self) -> int:
        """Return how many requests are in flight; wait where there is none, which is rare."""
        give_up = time.monotonic() + MOMENT_SECONDS_MAX
        while not (count := self._load.in_flight()):
            assert time.monotonic() < give_up, "no client asks for anything any more"
            time.sleep(0.0005)
        return count

    def _await_death(self, pids: list[int]) -> None:
        """Wait until processes have gone; whoever stays breaks the contract."""
        give_up = time.monotonic() + DEATH_SECONDS_MAX
        while left := [pid for pid in pids if not is_gone(pid)]:
            if time.monotonic() > give_up:
                self.report.violations.append(f"still there: {left} of {pids}")
                return
            time.sleep(0.001)

    # Restarts

    def _is_whole(self, kills: list[Kill]) -> bool:
        """Is every actor ready, none of them one that was killed?"""
        process = self._node.process
        assert process is not None
        assert process.poll() is None, f"the node ended: {process.returncode}"
        page, killed = self._node.page(), [kill.pid for kill in kills]
        return page.get("state") == "running" and all(
            actor["ready"] and actor["pid"] not in killed for actor in page["actors"].values()
        )

    def _check_restarts(self) -> None:
        """Each generation of processes that was hit was restarted once, and no other was."""
        for name, actor in self._node.page()["actors"].items():
            self._counted[name] = actor["restarts"]
            explained = len(self._hit[UNIT_OF[name]])
            if actor["restarts"] != explained:
                self.report.violations.append(
                    f"{name} restarted {actor['restarts']} times, kills explain {explained}"
                )

    def _note_restarts(self) -> None:
        """Keep what a supervisor has counted, before it counts anew."""
        self.report.restarts.update(self._counted)
        self._counted.clear()

    def _check_telemetry(self) -> None:
        """The node's own page of telemetry counts the same restarts."""

        def wrong() -> dict[str, tuple[int, int]]:
            page = self._node.get("/metrics")[1]
            pairs = re.findall(r'billing_actor_restarts_total\{actor="(\w+)"\} ([\d.e+]+)', page)
            counted = {name: int(float(number)) for name, number in pairs}
            expected = {name: len(self._hit[unit]) for name, unit in UNIT_OF.items()}
            return {
                name: (counted.get(name, -1), number)
                for name, number in expected.items()
                if counted.get(name) != number
            }

        try:
            eventually(lambda: not wrong(), "restarts are in the telemetry")
        except AssertionError as error:
            self.report.violations.append(f"{error}; (counted, explained): {wrong()}")

    # Checks

    def _check(self, when: str, whole: bool) -> None:
        """Settle everything, compare all that the node says with the ledger, go on."""
        began = time.monotonic()
        self._load.pause()
        self._check_telemetry()
        with Client([self._node.address], timeout=120.0) as client:
            check = Check(client, self._ledger.expected(), self._random)
            check.run(whole)
        report = self.report
        report.counters["answers compared"] += check.comparisons
        report.missing += check.missing
        report.doubled += check.doubled
        report.violations += [f"{when}: {text}" for text in check.violations]
        self._say(
            f"checked {when}: {len(check.expected):,} events, {check.comparisons:,} answers, "
            f"{check.missing} missing, {check.doubled} doubled, "
            f"{len(check.violations)} violations, {time.monotonic() - began:.1f} s"
        )
        self._load.resume()

    def _finish(self) -> None:
        """Check all of it; again after a clean restart; and after a last kill; then the log."""
        node = self._node
        self._check("at the end", whole=True)
        self._note_restarts()
        self._stop()
        node.start()
        self._hit.clear()
        self._check("after a clean restart", whole=False)
        self._strike(Stroke(((SUPERVISOR, 0.0),)))
        self._check("after a last kill", whole=True)
        self._load.pause()
        self._note_restarts()
        self._stop()
        self._check_nothing_left()
        for name, number in check_log(node.data_dir).items():
            self.report.counters[name] = number

    def _stop(self) -> None:
        code = self._node.stop()
        if code != 0:
            self.report.violations.append(f"stopped with exit code {code}")

    def _check_nothing_left(self) -> None:
        """No process of this node's directory exists, whoever started it and whenever."""
        for process in psutil.process_iter(["pid", "cmdline"]):
            if str(self._node.data_dir) in (process.info["cmdline"] or ()):
                self.report.violations.append(f"left behind: {process}")


def check_log(data_dir: Path) -> dict[str, int]:
    """Read every log file from the first on, verifying the hash chain.  Raises Corrupt.

    The node is stopped; a log that was closed in order has no torn tail.
    """
    first = data_dir / full_name(1)
    with (first if first.exists() else data_dir / ACTIVE_NAME).open("rb") as file:
        header, _ = parse_file_header(file.read(4096))
    owner = Owner(header.node_id, header.cluster_id, header.identity_key)
    end = Recovery(LocalDisk(), str(data_dir), owner, None, lambda _: None).run()
    assert end is not None
    assert end.torn is None, end.torn
    blocks = end.place.block_seq - 1
    return {"log files": end.file_count, "records": end.groups.sequence, "blocks": blocks}

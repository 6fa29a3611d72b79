"""What happens in a scenario: for each line that says so, what it does with the engines.

`tests/sim/scenarios/README.md` says what the lines mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from meterd.core.raft.events import Damaged, ProposeChange, Read, Tick
from meterd.core.raft.settings import Settings
from meterd.core.raft.state import LEADER
from meterd.protocol.raft_messages import Configuration
from tests.support.raft_lab import Lab

# With `run` time passes in steps of so many ms.
STEP_MS = 10

Line = Callable[..., None]
LINES: list[tuple[re.Pattern[str], Line]] = []


class BadScenario(Exception):
    """A line that says nothing, or not there."""


class Unmet(AssertionError):
    """What a scenario expects has not happened."""


N, SOME = r"(\d+)", r"(\d+(?: \d+)*)"


def line(pattern: str) -> Callable[[Line], Line]:
    """Name the line that a method plays; it gets what is in the pattern's groups."""

    def register(method: Line) -> Line:
        LINES.append((re.compile(pattern), method))
        return method

    return register


def numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(word) for word in (text or "").split())


class Player:
    """What has happened so far.  Lines before the first event say what there is."""

    def __init__(self) -> None:
        self._made: Lab | None = None
        self._voters: tuple[int, ...] = (1, 2, 3)
        self._learners: tuple[int, ...] = ()
        self._logs: dict[int, list[int]] = {}
        self._terms: dict[int, int] = {}
        self._settings: dict[str, int] = {}
        self._cut: set[tuple[int, int]] = set()
        self._kept: list[Any] = []
        self._beat_at: dict[int, int] = {}

    def play(self, text: str) -> None:
        for pattern, method in LINES:
            found = pattern.fullmatch(text)
            if found:
                method(self, *found.groups())
                return
        raise BadScenario("no line is like this")

    @property
    def lab(self) -> Lab:
        if self._made is None:
            self._made = Lab(
                self._voters,
                self._learners,
                settings=Settings(**self._settings),
                logs=self._logs,
                terms=self._terms,
            )
        return self._made

    def _group(self, member: str) -> Any:
        if int(member) not in self.lab.groups:
            raise BadScenario(f"{member} is not there")
        return self.lab.groups[int(member)]

    def _before(self) -> None:
        if self._made is not None:
            raise BadScenario("this stands before everything that happens")

    # What there is.

    @line(f"voters {SOME}(?: learners {SOME})?")
    def _nodes(self, voters: str, learners: str | None) -> None:
        self._before()
        self._voters, self._learners = numbers(voters), numbers(learners)

    @line(f"log {N} {SOME}")
    def _log(self, member: str, terms: str) -> None:
        self._before()
        self._logs[int(member)] = list(numbers(terms))

    @line(f"term {N} {N}")
    def _term(self, member: str, term: str) -> None:
        self._before()
        self._terms[int(member)] = int(term)

    @line(rf"setting (\w+) {N}")
    def _setting(self, name: str, value: str) -> None:
        self._before()
        if name not in Settings.__dataclass_fields__:
            raise BadScenario("there is no such setting")
        self._settings[name] = int(value)

    # Links.  What is under way on a link that is cut is lost.

    @line(f"cut {N} - {N}")
    def _cut_both(self, one: str, other: str) -> None:
        self._cut |= {(int(one), int(other)), (int(other), int(one))}

    @line(f"cut {N} > {N}")
    def _cut_one_way(self, source: str, target: str) -> None:
        self._cut.add((int(source), int(target)))

    @line(f"cut off {N}")
    def _cut_off(self, one: str) -> None:
        for other in self.lab.configuration.members:
            self._cut_both(one, str(other))

    @line("heal")
    def _heal(self) -> None:
        self._cut.clear()

    @line("lose")
    def _lose(self) -> None:
        self.lab.drop()

    @line("keep")
    def _keep(self) -> None:
        self._kept = list(self.lab.messages)

    @line("again")
    def _again(self) -> None:
        self.lab.messages += self._kept

    def _drop_cut(self) -> None:
        if self._cut:
            self.lab.messages = [m for m in self.lab.messages if m[:2] not in self._cut]

    @line(f"deliver {N} > {N}(?: x{N})?")
    def _deliver(self, source: str, target: str, count: str | None) -> None:
        self._drop_cut()
        self.lab.deliver(int(source), int(target), int(count or 1 << 30))

    @line(f"flow(?: {SOME})?")
    def _flow(self, among: str | None = None) -> None:
        members = numbers(among) or tuple(self.lab.groups)
        moved = 1
        while moved:
            self._drop_cut()
            moved = sum([self.lab.deliver(a, b) for a in members for b in members if a != b])

    @line(f"beat {N} > {SOME}")
    def _beat(self, leader: str, followers: str) -> None:
        """Where the way back is cut no answer comes."""
        source, lab = int(leader), self.lab
        reached = [f for f in numbers(followers) if (source, f) not in self._cut]
        deaf = [f for f in reached if (f, source) in self._cut]
        heard = [f for f in reached if f not in deaf]
        lab.beat(source, *[f for f in heard if f in lab.groups])
        lab.beat(source, *[f for f in deaf if f in lab.groups], replies=False)

    # Time.

    @line(f"wait {N} ms")
    def _wait(self, ms: str) -> None:
        self.lab.wait(int(ms))

    @line(f"tick {N}")
    def _tick(self, member: str) -> None:
        self._group(member)
        self.lab.step(int(member), Tick())

    @line(f"run {N} ms")
    def _run(self, ms: str) -> None:
        lab = self.lab
        end = lab.now + int(ms)
        while lab.now < end:
            lab.wait(STEP_MS)
            for member in list(lab.groups):
                if lab.now >= lab.groups[member].deadline:
                    lab.step(member, Tick())
                self._beat_if_due(member)
            self._flow()

    def _beat_if_due(self, member: int) -> None:
        lab = self.lab
        if lab.groups[member].role == LEADER and lab.now >= self._beat_at.get(member, 0):
            self._beat_at[member] = lab.now + lab.settings.beat_ms
            followers = [str(other) for other in lab.groups if other != member]
            self._beat(str(member), " ".join(followers))

    # Nodes.

    @line(f"crash {N}")
    def _crash(self, member: str) -> None:
        self._group(member)
        self.lab.crash(int(member))

    @line(f"restart {N}")
    def _restart(self, member: str) -> None:
        self.lab.restart(int(member))

    @line(f"restart {N} now")
    def _restart_now(self, member: str) -> None:
        """For a while it votes for nobody."""
        self.lab.restart(int(member), started_at=self.lab.now)

    @line(f"restart {N} without op {N}")
    def _restart_without(self, member: str, first: str) -> None:
        """The end of its log cannot be read: it is uncertain."""
        self.lab.restart_without(int(member), int(first))

    @line(f"restart {N} without term {N}")
    def _restart_without_term(self, member: str, term: str) -> None:
        """It has forgotten that term: it is uncertain."""
        self.lab.restart_without_term(int(member), int(term))

    @line(f"slow disk {N}")
    def _slow(self, member: str) -> None:
        self.lab.slow.add(int(member))

    @line(f"sync {N}")
    def _sync(self, member: str) -> None:
        self._group(member)
        self.lab.slow.discard(int(member))
        self.lab.sync(int(member))

    @line(f"damage {N} op {N}")
    def _damage(self, member: str, index: str) -> None:
        self._group(member)
        self.lab.step(int(member), Damaged(int(index)))

    # Requests.

    @line(f"elect {N}(?: by {SOME})?")
    def _elect(self, member: str, among: str | None) -> None:
        """It campaigns, and is elected."""
        self._group(member)
        try:
            self.lab.elect(int(member), int(member), *(numbers(among) or tuple(self.lab.groups)))
        except AssertionError:
            raise Unmet("it was not elected") from None

    @line(f"propose {N}(?: x{N})?")
    def _propose(self, member: str, count: str | None) -> None:
        self._group(member)
        self.lab.propose(int(member), int(count or 1))

    @line(f"transfer {N} > {N}")
    def _transfer(self, leader: str, target: str) -> None:
        self._group(leader)
        self.lab.transfer(int(leader), int(target))

    @line(f"change {N} voters {SOME}(?: learners {SOME})?")
    def _change(self, leader: str, voters: str, learners: str | None) -> None:
        self._group(leader)
        new = Configuration(numbers(voters), numbers(learners))
        self.lab.step(int(leader), ProposeChange(new))

    @line(f"read {N}")
    def _read(self, member: str) -> None:
        self._group(member)
        self.lab.step(int(member), Read("read"))

    def leaders(self) -> list[int]:
        return [m for m, group in self.lab.groups.items() if group.role == LEADER]

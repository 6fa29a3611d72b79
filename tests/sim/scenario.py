"""Plays scenarios: schedules of one group, written as text, one thing that happens on each line.

`tests/sim/scenarios/README.md` says how to write one.  The engine is the product's; links, disks
and the clock obey the text (`tests/support/raft_lab.py`), so a scenario does the same every time.
"""

from __future__ import annotations

from pathlib import Path

from meterd.core.raft.events import ReadReady
from tests.sim.scenario_player import SOME, BadScenario, N, Player, Unmet, line, numbers

FOLDER = Path(__file__).parent / "scenarios"


class Watched(Player):
    """What has happened, held against what the scenario expects."""

    @line(f"expect leader {N}")
    def _is_leader(self, member: str) -> None:
        expect(self.leaders() == [int(member)], self.leaders())

    @line(f"expect leader among {SOME}")
    def _leads_one_of(self, members: str) -> None:
        """One leads of these, and nobody in its term besides."""
        terms = [self.lab.groups[m].term for m in self.leaders()]
        found = [m for m in self.leaders() if m in numbers(members)]
        expect(len(found) == 1 and len(set(terms)) == len(terms), self.leaders())

    @line(f"expect {N} leads")
    def _leads(self, member: str) -> None:
        expect(int(member) in self.leaders(), self.leaders())

    @line(f"expect {N} does not lead")
    def _does_not_lead(self, member: str) -> None:
        expect(int(member) not in self.leaders(), self.leaders())

    @line(f"expect {N} loses an election among {SOME}")
    def _loses(self, member: str, among: str) -> None:
        try:
            self._elect(member, among)
        except Unmet:
            return
        raise Unmet("it was elected")

    @line(f"expect term {N} = {N}")
    def _has_term(self, member: str, term: str) -> None:
        found = self._group(member).term
        expect(found == int(term), found)

    @line(f"expect log {N} = {SOME}")
    def _has_log(self, member: str, terms: str) -> None:
        self._group(member)
        found = self.lab.terms(int(member))
        expect(found == list(numbers(terms)), found)

    @line(f"expect commit {N} = {N}")
    def _has_commit(self, member: str, index: str) -> None:
        found = self._group(member).commit
        expect(found == int(index), found)

    @line(f"expect commit {N} < {N}")
    def _has_not_committed(self, member: str, index: str) -> None:
        found = self._group(member).commit
        expect(found < int(index), found)

    @line(f"expect acked {N} = {N}")
    def _has_acked(self, member: str, index: str) -> None:
        found = self._group(member).match
        expect(found == int(index), found)

    @line(f"expect {N} (certain|uncertain)")
    def _is_certain(self, member: str, how: str) -> None:
        found = self._group(member).uncertain
        expect(found == (how == "uncertain"), found)

    @line(f"expect voters {N} = {SOME}")
    def _has_voters(self, member: str, voters: str) -> None:
        found = self._group(member).log.configuration.voters
        expect(found == numbers(voters), found)

    @line(rf"expect {N} refused (\w+)")
    def _has_refused(self, member: str, reason: str) -> None:
        found = self.lab.refusals(int(member))
        expect(found[-1:] == [reason], found)

    @line(rf"expect {N} answered by (lease|round)")
    def _has_answered(self, member: str, how: str) -> None:
        found = [a.by_lease for a in self.lab.actions[int(member)] if isinstance(a, ReadReady)]
        expect(found[-1:] == [how == "lease"], found)
        self.lab.actions[int(member)].clear()

    @line(f"expect {N} not answered")
    def _has_not_answered(self, member: str) -> None:
        found = [a for a in self.lab.actions[int(member)] if isinstance(a, ReadReady)]
        expect(not found, found)

    @line(f"expect equal {SOME}")
    def _are_equal(self, members: str) -> None:
        """Their logs are the same and committed whole."""
        groups = [self._group(member) for member in members.split()]
        found = [(g.log.last, g.log.digest_at(g.log.last), g.commit) for g in groups]
        expect(len(set(found)) == 1 and found[0][0] == found[0][2], found)

    @line(f"expect different {N} {N} at {N}")
    def _are_different(self, one: str, other: str, index: str) -> None:
        found = [self._group(member).log.digest_at(int(index)) for member in (one, other)]
        expect(found[0] != found[1], found)


def expect(holds: bool, found: object) -> None:
    if not holds:
        raise Unmet(f"it is {found}")


class Scenario:
    """One file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[tuple[int, str]] = []
        self.notices: list[str] = []  # bugs with which an expectation is not met
        for number, text in enumerate(path.read_text().splitlines(), 1):
            words = " ".join(text.partition("#")[0].split())
            if words.startswith("notices "):
                self.notices += words.split()[1:]
            elif words:
                self.lines.append((number, words))

    def play(self) -> Watched:
        """Let everything happen.  Raises Unmet, BadScenario, and what the engine raises."""
        player = Watched()
        for number, text in self.lines:
            try:
                player.play(text)
            except (Unmet, BadScenario) as error:
                raise type(error)(f"{self.path.name}:{number}: {text}: {error}") from None
        return player


def scenarios() -> list[Scenario]:
    return [Scenario(path) for path in sorted(FOLDER.glob("*.txt"))]

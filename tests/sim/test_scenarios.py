"""Every scenario ends as it says, and no longer does when a bug is in that it says it notices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meterd.protocol.errors import InvariantViolation
from tests.sim.mutants import BUGS
from tests.sim.scenario import FOLDER, Scenario, Unmet, scenarios
from tests.sim.scenario_player import LINES, BadScenario

ALL = {scenario.path.stem: scenario for scenario in scenarios()}
NOTICES = [(name, bug) for name, scenario in ALL.items() for bug in scenario.notices]


@pytest.mark.parametrize("name", ALL)
def test_it_ends_as_it_says(name: str) -> None:
    ALL[name].play()


@pytest.mark.parametrize(("name", "bug"), NOTICES)
def test_it_notices_a_bug(name: str, bug: str) -> None:
    with BUGS.applied(bug), pytest.raises((Unmet, InvariantViolation)):
        ALL[name].play()


def test_each_says_what_it_is_about() -> None:
    assert len(ALL) > 10
    assert all(scenario.path.read_text().startswith("# ") for scenario in ALL.values())


def played(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.txt"
    path.write_text(text)
    Scenario(path).play()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("elect 1\n# nothing\nmake coffee\n", "some.txt:3: make coffee: no line is like this"),
        ("elect 1\nvoters 1 2\n", "some.txt:2: voters 1 2: this stands before everything"),
        ("crash 2\ntick 2\n", "some.txt:2: tick 2: 2 is not there"),
        ("elect 9\n", "some.txt:1: elect 9: 9 is not there"),
        ("setting coffee 3\n", "some.txt:1: setting coffee 3: there is no such setting"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadScenario) as refused:
        played(tmp_path, text)
    assert said in str(refused.value)


def test_what_is_not_met_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unmet, match=r"some.txt:2: expect leader 2: it is \[1\]"):
        played(tmp_path, "elect 1\nexpect leader 2\n")


def test_the_manual_has_every_line_and_no_other() -> None:
    rows = [row for row in (FOLDER / "README.md").read_text().split("\n") if row.startswith("| `")]
    told = [words for row in rows for words in re.findall("`([^`]+)`", row.split("|")[1])]
    for pattern, _ in LINES:
        assert any(pattern.fullmatch(words) for words in told), pattern
    for words in told:
        assert any(pattern.fullmatch(words) for pattern, _ in LINES), words

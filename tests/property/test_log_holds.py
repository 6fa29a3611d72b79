"""What holds a log file: the rule against a plain model, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from itertools import dropwhile

from hypothesis import given
from hypothesis import strategies as st

from meterd.core.housekeeping.log_holds import HOLDERS, Facts, LogFile, Rules, holders

NOW = 1_000
numbers = st.integers(1, 30)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[LogFile], Facts, Rules]:
    first, count = draw(numbers), draw(st.integers(0, 12))
    sealed = sorted(draw(st.lists(st.integers(0, NOW), min_size=count, max_size=count)))
    files = [LogFile(first + n, 10 + n, at) for n, at in enumerate(sealed)]
    expired = range(first, first + draw(st.integers(0, count)))
    facts = Facts(
        now=NOW,
        first_needed=draw(st.integers(0, 45)),
        covered=draw(st.dictionaries(numbers, st.integers(0, NOW))),
        archived_through=draw(st.none() | numbers),
        replicas_from=draw(st.none() | numbers),
        pins=draw(st.lists(numbers, max_size=3)),
        expired=expired,
    )
    few, many = sorted([draw(st.integers(0, 12)), draw(st.integers(0, 12))])
    rules = Rules(
        draw(st.integers(0, NOW)), draw(st.integers(0, NOW)), many, few, draw(st.integers(0, 12))
    )
    return files, facts, rules


def model(files: list[LogFile], facts: Facts, rules: Rules) -> dict[int, set[str]]:
    """The rule as its sentences say it, one after another, over all files."""
    held: dict[int, set[str]] = {file.number: set() for file in files}
    alive = [file for file in files if file.number not in facts.expired]
    for file in files:
        if not file.number < facts.first_needed:
            held[file.number].add("checkpoint")
        if facts.archived_through is not None and not file.number <= facts.archived_through:
            held[file.number].add("archive")
        for pin in facts.pins:
            if file.number in range(pin, 1_000):
                held[file.number].add("pin")
    for file in alive:
        if file.number not in facts.covered:
            held[file.number].add("uncovered")
        elif facts.covered[file.number] + rules.copy_grace > facts.now:
            held[file.number].add("grace")
    newest = [file.number for file in files][::-1]
    if facts.replicas_from is not None:
        for number in newest[: rules.replica_files_max]:
            if not number < facts.replicas_from:
                held[number].add("replica")
    for file in alive:
        if file.number in newest[: rules.files_min]:
            held[file.number].add("count")
        if file.number in newest[: rules.files_max] and file.sealed + rules.keep > facts.now:
            held[file.number].add("age")
    for file in dropwhile(lambda file: not held[file.number], files):
        held[file.number] = held[file.number] or {"older"}
    return held


@given(situations())
def test_the_rule_is_what_its_sentences_say(situation: tuple[list[LogFile], Facts, Rules]) -> None:
    found = holders(*situation)
    assert {number: set(names) for number, names in found.items()} == model(*situation)
    for names in found.values():
        assert list(names) == sorted(names, key=HOLDERS.index)


@given(situations())
def test_what_goes_is_the_oldest_piece(situation: tuple[list[LogFile], Facts, Rules]) -> None:
    held = [bool(names) for names in holders(*situation).values()]
    assert held == sorted(held)


@given(situations())
def test_no_event_goes_that_is_kept_nowhere_else(
    situation: tuple[list[LogFile], Facts, Rules],
) -> None:
    _, facts, _ = situation
    for number, names in holders(*situation).items():
        if not names:
            assert number in facts.covered or number in facts.expired
            assert number < facts.first_needed


@given(situations(), st.integers(0, NOW), st.integers(0, 30))
def test_what_may_go_may_go_later_too(
    situation: tuple[list[LogFile], Facts, Rules], passed: int, more: int
) -> None:
    """Time passes, checkpoints and archive go on, pins end: nothing is held again."""
    files, facts, rules = situation
    through = None if facts.archived_through is None else facts.archived_through + more
    later = replace(
        facts,
        now=facts.now + passed,
        first_needed=facts.first_needed + more,
        archived_through=through,
        pins=(),
    )
    then = holders(files, later, rules)
    for number, names in holders(files, facts, rules).items():
        assert names or not then[number]

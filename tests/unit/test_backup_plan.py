"""Which backups stay, which can be built on: properties that no set of backups may break."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from meterd.core.housekeeping.backup_plan import KeepRules, newest_first, parent_for, prune
from tests.support.backup_manifests import manifest

HOUR = 3_600 * 1_000_000_000
DAY = 24 * HOUR

counts = st.integers(0, 4)
rules = st.builds(KeepRules, counts, counts, counts, st.integers(1, 4))


@st.composite
def shelves(draw):
    """Backups of two nodes, some incremental, some with a base that is gone."""
    made = {}
    for number in range(draw(st.integers(0, 14))):
        node = draw(st.integers(0, 1))
        own = [one for one in made.values() if one.node_id == node]
        chain = ()
        if own and draw(st.booleans()):
            parent = draw(st.sampled_from(own))
            chain = (*parent.chain, parent.name)
        moment = number * draw(st.sampled_from([HOUR, DAY, 9 * DAY])) + number
        one = replace(manifest(f"meterd-{number}"), chain=chain, node_id=node, finished=moment)
        made[one.name] = one
    for name in draw(st.sets(st.sampled_from(sorted(made)))) if made else ():
        if draw(st.booleans()):
            del made[name]
    return made


def whole(one, shelf):
    return all(name in shelf for name in one.chain)


@given(shelves(), rules)
def test_pruning_never_breaks_a_chain_and_keeps_the_newest(shelf, rules):
    verdicts = prune(shelf, rules)
    assert sorted(one.name for one in verdicts) == sorted(shelf)
    kept = {one.name for one in verdicts if one.keep}
    for name in kept:
        assert set(shelf[name].chain) <= kept
    for node in (0, 1):
        good = [one for one in shelf.values() if one.node_id == node and whole(one, shelf)]
        if good:
            assert newest_first(good)[0].name in kept
        assert len(kept & {one.name for one in good}) >= min(rules.min_keep, len(good))
    assert all(one.reason for one in verdicts)


@given(shelves(), rules)
def test_the_newest_of_each_of_the_last_days_stays(shelf, rules):
    kept = {one.name for one in prune(shelf, rules) if one.keep}
    good = [one for one in shelf.values() if one.node_id == 0 and whole(one, shelf)]
    newest = {}
    for one in newest_first(good):
        newest.setdefault(one.finished // DAY, one.name)
    for day in sorted(newest, reverse=True)[: rules.daily]:
        assert newest[day] in kept


@given(shelves(), rules)
def test_pruning_again_deletes_nothing(shelf, rules):
    left = {one.name: shelf[one.name] for one in prune(shelf, rules) if one.keep}
    assert all(one.keep for one in prune(left, rules))


@given(shelves())
def test_a_parent_is_whole_and_of_the_same_node(shelf):
    found = parent_for(shelf, ("c" * 32, 1, 1))
    good = [one for one in shelf.values() if one.node_id == 1 and whole(one, shelf)]
    assert found == (newest_first(good)[0] if good else None)
    assert parent_for(shelf, ("c" * 32, 1, 2)) is None
    assert parent_for(shelf, ("d" * 32, 1, 1)) is None


def test_weeks_and_months():
    days = [replace(manifest(f"meterd-{day:03}"), finished=day * DAY) for day in range(70)]
    shelf = {one.name: one for one in days}
    kept = [one.name for one in prune(shelf, KeepRules(1, 3, 2, 1)) if one.keep]
    # 1970-03-11 is day 69, a Wednesday: the weeks end on days 69, 66, 59; the months on 69, 58.
    assert kept == ["meterd-069", "meterd-066", "meterd-059", "meterd-058"]

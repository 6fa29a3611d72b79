"""What a group's log says of the group: who opened a term, and whether that was a new leader."""

from __future__ import annotations

import msgpack

from meterd.core.cluster.group_facts import GroupFacts
from meterd.protocol.log_format import GROUP_COUNT
from meterd.protocol.raft_messages import Configuration

GROUP, ONE, TWO, THREE = 7, 1, 2, 3


def begun(*voters: int) -> GroupFacts:
    facts = GroupFacts()
    facts.begin([Configuration(voters)] * GROUP_COUNT)
    return facts


def restored(facts: GroupFacts, *voters: int) -> GroupFacts:
    """Return them after a checkpoint and a start."""
    packed = msgpack.unpackb(msgpack.packb(facts.packed()), strict_map_key=False)
    again = GroupFacts.unpacked(packed)
    again.begin([Configuration(voters)] * GROUP_COUNT)
    return again


def test_leaders_of_a_group_that_begins_with_several_are_counted_without_a_change_of_members():
    facts = begun(ONE, TWO, THREE)
    facts.open_term(GROUP, 1, 1)
    assert facts.view_changes[GROUP] == 0
    facts.open_term(GROUP, 2, 3)
    facts = restored(facts, ONE, TWO, THREE)
    facts.open_term(GROUP, 9, 4)
    assert facts.view_changes[GROUP] == 2


def test_a_node_that_is_alone_leads_again_whatever_is_said_of_learners():
    facts = begun(ONE)
    facts.open_term(GROUP, 1, 1)
    facts.configure(GROUP, {"voters": [ONE], "learners": [TWO]})
    facts.open_term(GROUP, 3, 2)
    facts = restored(facts, ONE)
    facts.open_term(GROUP, 4, 3)
    assert facts.view_changes[GROUP] == 0
    facts.configure(GROUP, {"voters": [ONE, TWO], "learners": []})
    facts.configure(GROUP, {"voters": [TWO], "learners": []})
    facts.open_term(GROUP, 7, 4)
    assert facts.view_changes[GROUP] == 1


def test_a_checkpoint_that_says_nothing_of_members_is_of_a_node_that_was_alone():
    older = GroupFacts()
    older.open_term(GROUP, 1, 1)
    packed = older.packed() | {"configurations": {}}
    facts = GroupFacts.unpacked(packed)
    facts.begin([Configuration((ONE,))] * GROUP_COUNT)
    facts.open_term(GROUP, 5, 2)
    assert facts.view_changes[GROUP] == 0


def test_what_the_log_has_said_of_members_holds():
    facts = begun(ONE)
    facts.configure(GROUP, {"voters": [ONE, TWO], "learners": [THREE]})
    assert restored(facts, ONE).configurations[GROUP] == Configuration((ONE, TWO), (THREE,))

"""What each group's log has said of the group itself: members, terms, and its changes of leader.

Part of the state: it changes only through ops and records of the log, so at equal applied index all
replicas of a group have the same configuration and count.  (Terms and votes are a node's own: they
are what its log has said before the position of its checkpoint.)

A view change is a no-op by which a new leader opens its term.  Two are none: the first one (index 1
or term 1), for before it there was no leader, and one in a group whose only voter was also its only
voter when the last term was opened, for that one leads again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meterd.protocol import log_facts
from meterd.protocol.log_format import GROUP_COUNT, META_GROUP, Record
from meterd.protocol.raft_messages import Configuration

OPENS_TERM = 1  # `why` of a no-op; the others are of a leader in office


# Nobody has said who the members are, so this node is alone.
ALONE = Configuration(())


class GroupFacts:
    """Change it only through `begin`, `open_term`, `configure`, `adopt` and `note_terms`.

    Those of a group come in its order, `begin` before them or behind a checkpoint.
    """

    def __init__(self) -> None:
        self.configurations: dict[int, Configuration] = {}
        # By group: the voters when its last term was opened, if there was one.
        self._openers: dict[int, tuple[int, ...]] = {}
        self.view_changes: NDArray[np.int64] = np.zeros(GROUP_COUNT, np.int64)
        self.terms: dict[int, tuple[int, int, int]] = {}  # group: term, vote, flags

    def begin(self, first: Sequence[Configuration]) -> None:
        """Say who was a member of each group where its log begins."""
        for group, configuration in enumerate(first):
            self.configurations.setdefault(group, configuration)
            if self._openers.get(group) == ALONE.voters:  # of a checkpoint that did not say it
                self._openers[group] = configuration.voters

    @property
    def changes_of_partitions(self) -> int:
        """Return how often partitions got a new leader."""
        return int(self.view_changes[:META_GROUP].sum())

    def open_term(self, group: int, index: int, term: int) -> None:
        """Apply a no-op by which a leader opens its term."""
        voters = self.configurations.get(group, ALONE).voters
        leads_again = len(voters) <= 1 and self._openers.get(group, voters) == voters
        self._openers[group] = voters
        if index > 1 and term > 1 and not leads_again:
            self.view_changes[group] += 1

    def configure(self, group: int, body: Mapping[str, Any]) -> None:
        """Apply a configuration."""
        voters, learners = tuple(body["voters"]), tuple(body["learners"])
        self.configurations[group] = Configuration(voters, learners)

    def adopt(self, other: GroupFacts, group: int) -> None:
        """Take what another replica has applied of a group; term and vote are a node's own."""
        self.configurations[group] = other.configurations[group]
        self._openers.pop(group, None)
        if group in other._openers:
            self._openers[group] = other._openers[group]
        self.view_changes[group] = other.view_changes[group]

    def note_terms(self, record: Record) -> None:
        """Take note of what a record of terms says of some groups."""
        for group, flags, term, vote in log_facts.parse_terms(record).tolist():
            self.terms[group] = (term, vote, flags)

    def packed(self) -> dict[str, Any]:
        """Return everything as plain values, for a checkpoint."""
        changed = np.flatnonzero(self.view_changes).tolist()
        return {
            "configurations": {
                group: [list(one.voters), list(one.learners)]
                for group, one in self.configurations.items()
            },
            "openers": {group: list(voters) for group, voters in self._openers.items()},
            "view_changes": {group: int(self.view_changes[group]) for group in changed},
            "terms": {group: list(terms) for group, terms in self.terms.items()},
        }

    @classmethod
    def unpacked(cls, packed: Mapping[str, Any]) -> GroupFacts:
        """Return what `packed` gave; older checkpoints say nothing."""
        facts = cls()
        for group, (voters, learners) in packed.get("configurations", {}).items():
            facts.configurations[group] = Configuration(tuple(voters), tuple(learners))
        facts._openers = {g: tuple(voters) for g, voters in packed.get("openers", {}).items()}
        for group, count in packed.get("view_changes", {}).items():
            facts.view_changes[group] = count
        facts.terms = {group: tuple(terms) for group, terms in packed.get("terms", {}).items()}
        return facts

"""Faults and operations of the second layer: the first's, and the product's rule for members.

Everybody learns the meta group (`core/cluster/members.py`): a replica applies nothing that was made
under a registry that it does not have.  So who leaves the voters of the meta group stays as a
learner, and a partition takes only members of it.
"""

from __future__ import annotations

from random import Random

from meterd.core.raft.events import Damaged, ProposeChange
from meterd.protocol.log_format import META_GROUP
from meterd.protocol.raft_messages import Configuration
from tests.sim.nemesis import Nemesis


class CoreNemesis(Nemesis):
    """See the module."""

    def _membership(self, random: Random) -> None:
        group = random.choice(self.world.groups)
        machine = self._leading(group)
        if machine is None or machine.node is None:
            return
        old = machine.live(group).log.configuration
        new = self.next_configuration(random, old, machine.member)
        if new is not None and group == META_GROUP:
            new = self._of_all(old, new)
        elif new is not None and not set(new.members) - set(old.members) <= self._learned():
            return
        if new is not None and new != old:
            self.world.cover("membership")
            self.world.tell(f"group {group}: {old} -> {new}")
            machine.request(group, ProposeChange(new, "change"))

    def _damage(self, random: Random) -> None:
        """A reader finds an op of the fragile node unreadable; its peers have it.

        Only while it runs: at a start recovery would refuse the log, so no byte is changed.
        """
        machine = self.world.machines[self.fragile]
        group = random.choice(self.world.groups)
        image = machine.disk.groups[group]
        if machine.node is None or machine.paused_until > self.world.now or not image.ops:
            return
        behind = [op.index for op in image.ops if op.index > machine.applied(group)]
        index = random.choice(behind or [image.last])
        self.damaged = True
        self.world.mark("damage", 500)
        self.world.tell(f"damage of {machine.number}: group {group}, index {index}")
        image.damaged.add(index)
        machine.request(group, Damaged(index))

    def _of_all(self, old: Configuration, new: Configuration) -> Configuration:
        """Return the next configuration of the meta group, to which everybody belongs."""
        present = set(self.world.members())
        learners = present - set(old.voters)
        if learners != set(old.learners):
            return Configuration(old.voters, tuple(sorted(learners)))
        return Configuration(new.voters, tuple(sorted(present - set(new.voters))))

    def _learned(self) -> set[int]:
        """Return the members of the meta group, as its leader knows them."""
        machine = self._leading(META_GROUP)
        if machine is None or machine.node is None:
            return set()
        return set(machine.live(META_GROUP).log.configuration.members)

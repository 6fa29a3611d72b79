"""Brings the groups that a node leads to what the plan says, a little at a time.

Around `plan_changes`: sees from the engine what there is, and does not hand leadership back at once
to a node that has only just come back.  It must have been there, with all content, for a few
seconds, and for twice as long with each time that it went away in the last minutes: who goes up and
down would take its groups up and down with it.  Who was asked to lead and did not is left alone for
a while, too: a transfer that comes to nothing stops its group for nearly a second.

Does not know: sockets, clocks, why a node went away.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from meterd.core.cluster.members import DRAINED, Members
from meterd.core.cluster.plan_changes import Change, HandOver, Led, next_steps
from meterd.core.raft.events import ProposeChange, TransferLeadership
from meterd.core.raft.node import Node, Request
from meterd.core.raft.state import LEADER
from meterd.core.raft.steady import View
from meterd.protocol.raft_messages import node_of

# A node must have been there, and have had all, for so long before it is to lead again; at most so
# long when it went away again and again, until it has stayed for a while.
HAND_BACK_MS: Final = 3_000
HAND_BACK_MAX_MS: Final = 60_000
FORGIVEN_MS: Final = 600_000
# Transfers under way at once: each stops its group for about a round trip.
HAND_OVERS_AT_ONCE: Final = 8


@dataclass
class _Presence:
    """How one member comes and goes; times are monotonic ms."""

    since: int | None = None  # there, and lacking nothing worth speaking of
    is_there: bool = False
    losses: int = 0  # how often it went away, each within FORGIVEN_MS of the one before
    lost_at: int = 0
    declines: int = 0  # how often it was asked to lead and did not, one after the other
    declined_at: int = 0

    def see(self, there: bool, whole: bool, now: int) -> None:
        if self.is_there and not there:
            self.losses = self.losses + 1 if now - self.lost_at < FORGIVEN_MS else 1
            self.lost_at = now
        self.is_there = there
        if not (there and whole):
            self.since = None
        elif self.since is None:
            self.since = now

    def answer(self, leads: bool, now: int) -> None:
        """It was asked to lead; several groups that were at the same time count once."""
        if leads:
            self.declines = 0
        elif not self.declines or now > self.declined_at:
            self.declines += 1
            self.declined_at = now

    def has_declined(self, now: int) -> bool:
        return bool(self.declines) and now - self.declined_at < _doubled(self.declines)

    def may_lead(self, now: int) -> bool:
        if self.since is None or self.has_declined(now):
            return False
        losses = self.losses if now - self.lost_at < FORGIVEN_MS else 0
        return now - self.since >= _doubled(max(losses - 1, 0))


def _doubled(times: int) -> int:
    """Return how long to wait, doubled so often."""
    return min(HAND_BACK_MS << min(times, 16), HAND_BACK_MAX_MS)


class PlanKeeper:
    """See the module."""

    def __init__(self) -> None:
        self._presences: dict[int, _Presence] = {}  # by member
        self._asked: dict[int, int] = {}  # group → member that was asked to lead it
        self.is_settled = False  # did the last look find nothing to do, now or later?

    @property
    def is_moving(self) -> bool:
        """Are groups being handed over, so that it should be looked again soon?"""
        return bool(self._asked)

    def due(
        self,
        node: Node,
        members: Members,
        now: int,
        leaving: Collection[int] = (),
        views: Mapping[int, View] | None = None,
    ) -> list[Request]:
        """Return what to ask the engine for at monotonic ms `now`.

        Call it once a second, and more often while something moves.  `leaving`: members whose
        nodes are about to stop, or late; they get nothing to lead.  `views`: the engine's, if
        they have been asked for already.
        """
        led = {
            number: view
            for number, view in (node.views() if views is None else views).items()
            if view.role == LEADER and node.groups[number].transfer is None
        }
        self._see(node, led, now, leaving)
        self._take_answers(node, led, now)
        declined = {m for m, one in self._presences.items() if one.has_declined(now)}
        self.is_settled = not (self._asked or leaving or declined)
        if not led or len(members.present) < 2 or node.member in leaving:
            return []
        able = {member for member, one in self._presences.items() if one.is_there} - declined
        facts = {number: self._led(node, number, view, able) for number, view in led.items()}
        requests = []
        steps = next_steps(members, node.member, facts)
        self.is_settled &= not steps
        for step in steps:
            if isinstance(step, Change):
                requests.append(Request(step.group, ProposeChange(step.configuration)))
            elif step.member in leaving:
                continue
            elif len(self._asked) < HAND_OVERS_AT_ONCE and self._may_hand_over(
                node, members, step, now
            ):
                self._asked[step.group] = step.member
                requests.append(Request(step.group, TransferLeadership(step.member)))
        return requests

    def see_rest(self, node: Node, now: int) -> None:
        """Do what is left of `due` while `node.rest` stays the same and all is settled."""
        self._see(node, {}, now, ())

    def _see(self, node: Node, led: dict[int, View], now: int, leaving: Collection[int]) -> None:
        """Note who is there, lacks nothing worth speaking of, and stays."""
        behind = {
            member
            for view in led.values()
            for member, match in view.matches.items()
            if view.last - match > node.settings.promotion_lag_max
        }
        for member in node.peers:
            heard = node.clocks.heard(member, now)
            there = heard is not None and heard[1] < node.settings.suspicion_ms
            presence = self._presences.setdefault(member, _Presence())
            presence.see(there, member not in behind and member not in leaving, now)

    def _take_answers(self, node: Node, led: dict[int, View], now: int) -> None:
        """See what became of the groups that were to be handed over."""
        for group, member in [*self._asked.items()]:
            if node.groups[group].transfer is not None:
                continue
            del self._asked[group]
            if member in self._presences:  # not 0: whoever is fit
                leads = group not in led and node.view(group).leader == member
                if leads or group in led:
                    self._presences[member].answer(leads, now)

    def _led(self, node: Node, number: int, view: View, able: Collection[int]) -> Led:
        """`able`: who is there; the dead may have nearly all, too, and would never lead."""
        group = node.groups[number]
        settled = group.log.configuration_index <= view.commit and view.commit >= group.term_start
        caught_up = {
            member
            for member, match in view.matches.items()
            if match > 0 and view.last - match <= node.settings.promotion_lag_max and member in able
        }
        return Led(group.log.configuration, settled, caught_up | {node.member})

    def _may_hand_over(self, node: Node, members: Members, step: HandOver, now: int) -> bool:
        own = members.nodes.get(node_of(node.member))
        leaves = own is None or own.state == DRAINED or own.member != node.member
        leaves = leaves or node.member not in members.configuration(step.group).voters
        if step.member == 0 or leaves:
            return True
        presence = self._presences.get(step.member)
        return presence is not None and presence.may_lead(now)

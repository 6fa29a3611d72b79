"""Brings the groups that a node leads to what the plan says, a little at a time.

Around `plan_changes`: sees from the engine what there is, and does not hand leadership back to a
node that has only just come back (`HAND_BACK_MS`), because who goes up and down would take its
groups up and down with it.
"""

from __future__ import annotations

from typing import Final

from meterd.core.members import DRAINED, Members
from meterd.core.plan_changes import Change, HandOver, Led, next_steps
from meterd.core.raft.events import ProposeChange, TransferLeadership
from meterd.core.raft.node import Node, Request
from meterd.core.raft.state import LEADER
from meterd.core.raft.steady import View
from meterd.protocol.raft_messages import node_of

# A node must have been there, and have had all, for so long before it is to lead again.
HAND_BACK_MS: Final = 60_000
# Transfers begun at once: each stops its group for about a round trip.
HAND_OVERS_AT_ONCE: Final = 8


class PlanKeeper:
    """See the module."""

    def __init__(self) -> None:
        self._there_since: dict[int, int] = {}  # members with no lag, and since when

    def due(self, node: Node, members: Members, now: int) -> list[Request]:
        """Return what to ask the engine for at monotonic ms `now`; call it once a second."""
        led = {
            number: view
            for number, view in node.views().items()
            if view.role == LEADER and node.groups[number].transfer is None
        }
        if not led or len(members.present) < 2:
            return []
        self._see(node, led, now)
        facts = {number: self._led(node, number, view) for number, view in led.items()}
        requests, hand_overs = [], 0
        for step in next_steps(members, node.member, facts):
            if isinstance(step, Change):
                requests.append(Request(step.group, ProposeChange(step.configuration)))
            elif hand_overs < HAND_OVERS_AT_ONCE and self._may_hand_over(node, members, step, now):
                hand_overs += 1
                requests.append(Request(step.group, TransferLeadership(step.member)))
        return requests

    def _see(self, node: Node, led: dict[int, View], now: int) -> None:
        """Note who is there and lacks nothing worth speaking of."""
        behind = {
            member
            for view in led.values()
            for member, match in view.matches.items()
            if view.last - match > node.settings.promotion_lag_max
        }
        for member in node.peers:
            heard = node.clocks.heard(member, now)
            there = heard is not None and heard[1] < node.settings.suspicion_ms
            if there and member not in behind:
                self._there_since.setdefault(member, now)
            else:
                self._there_since.pop(member, None)

    def _led(self, node: Node, number: int, view: View) -> Led:
        group = node.groups[number]
        settled = group.log.configuration_index <= view.commit and view.commit >= group.term_start
        caught_up = {
            member
            for member, match in view.matches.items()
            if match > 0 and view.last - match <= node.settings.promotion_lag_max
        }
        return Led(group.log.configuration, settled, caught_up | {node.member})

    def _may_hand_over(self, node: Node, members: Members, step: HandOver, now: int) -> bool:
        own = members.nodes.get(node_of(node.member))
        leaves = own is None or own.state == DRAINED or own.member != node.member
        leaves = leaves or node.member not in members.configuration(step.group).voters
        if step.member == 0 or leaves:
            return True
        since = self._there_since.get(step.member)
        return since is not None and now - since >= HAND_BACK_MS

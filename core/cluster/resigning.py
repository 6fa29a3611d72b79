"""Has others lead what a node leads that is about to stop.

Each group is handed to a voter that is fit, was heard lately, lacks next to nothing and does not
stop itself; those who qualify take turns, by the group's number, so that the load spreads.  A
transfer stops its group for about a round trip and two writes, and votes of many groups share
messages and writes, so nearly all groups go at once.  Who was asked and did not take over is
followed by the next one.

Does not know: sockets, clocks, why the node stops, how long it may wait.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from meterd.core.cluster.report import answers
from meterd.core.raft import transfer
from meterd.core.raft.events import TransferLeadership
from meterd.core.raft.node import Node, Request
from meterd.core.raft.state import LEADER
from meterd.core.raft.steady import View
from meterd.protocol.raft_messages import NOBODY

# Transfers under way at once: all groups of one of three nodes.
HAND_OVERS_AT_ONCE: Final = 128


class Resignation:
    """See the module.  It is over, for now, when `is_done`."""

    def __init__(self) -> None:
        self.is_done = False
        self._asked: dict[int, int] = {}  # group → how often somebody was asked to lead it

    def due(self, node: Node, leaving: Collection[int], now: int) -> list[Request]:
        """Return what to ask the engine for at monotonic ms `now`; call it again soon.

        `leaving`: members that are about to stop, too.
        """
        requests: list[Request] = []
        awaited = under_way = 0
        there = {m for m in node.peers if m not in leaving and answers(node, m, now)}
        able: dict[int, list[int]] = {}
        for number, view in node.views().items():
            if view.role != LEADER:
                awaited += number in self._asked and view.leader == NOBODY
            elif node.groups[number].transfer is not None:
                under_way += 1
            elif fit := [m for m in there if transfer.may_lead(node.groups[number], m)]:
                awaited += 1
                able[number] = [m for m in fit if _has_all(node, view, m)]
        for number, members in able.items():
            if members and under_way < HAND_OVERS_AT_ONCE:
                times = self._asked.get(number, 0)
                self._asked[number] = times + 1
                target = sorted(members)[(number + times) % len(members)]
                requests.append(Request(number, TransferLeadership(target)))
                under_way += 1
        self.is_done = not (awaited or under_way)
        return requests


def _has_all(node: Node, view: View, member: int) -> bool:
    """Does it lack so little that the group need not wait long for it?"""
    match = view.matches.get(member, 0)
    return match > 0 and view.last - match <= node.settings.promotion_lag_max

"""The part of the replication actor that operators talk to: how the cluster is, who is to lead.

It also carries the plan out (`core/cluster/plan_keeper.py`), keeps what usage says of the members,
answers nodes that have no identity yet, and gives the numbers to telemetry.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from meterd.actors.actor import Actor
from meterd.actors.frames.bundle import unbundle
from meterd.actors.frames.sockets import Frame
from meterd.actors.requests.answering import Answers
from meterd.actors.starting.founding import Respondent
from meterd.actors.starting.identity import Identity
from meterd.core.cluster import report as cluster_report
from meterd.core.cluster.members import GROUP_COUNT, Members
from meterd.core.cluster.plan_keeper import PlanKeeper
from meterd.core.cluster.report import Link
from meterd.core.raft.events import ProposeChange, Refused, RoleChanged, TransferLeadership
from meterd.core.raft.node import Node, Request
from meterd.core.raft.state import LEADER
from meterd.core.raft.steady import View
from meterd.protocol.envelope import decode_request_header
from meterd.protocol.errors import MeterdError, Starting
from meterd.protocol.messages import check_request
from meterd.protocol.raft_messages import NOBODY, node_of

RETRY_AFTER_MS = 100
# How often the plan is looked at, and telemetry renewed.
PLAN_SECONDS = 1.0
# And while replicas or leaders move; when nothing is to be done, after twice as long each time.
MOVING_SECONDS = 0.1
# A term's first leader of a new group is no change.
FIRST_TERM = 1

logger = logging.getLogger(__name__)

# Gives the engine an event and does what follows; returns what was refused.
Step = Callable[[Any], list[Refused]]


class ClusterRequests:
    """See the module."""

    def __init__(self, actor: Actor, who: Identity) -> None:
        """Raises BootFailed."""
        self._actor = actor
        self._own = who.node_id
        self.members = who.beginning
        self.respondent = Respondent(actor.options.node.data_dir, who)
        self._keeper = PlanKeeper()
        self._answers = Answers(actor)
        self._plan_due = 0.0
        self._pause = PLAN_SECONDS
        # How everything was when there was nothing to do: then there is nothing to do again.
        self._rest: tuple[int, Members, list[bool]] | None = None
        self.view_changes = np.zeros(GROUP_COUNT, np.int64)
        self.applied = np.zeros(GROUP_COUNT, np.int64)
        self.respondent.copies.applied = self.applied.tobytes

    def take_members(self, packed: bytes) -> None:
        """Take what usage says."""
        self.members = self.respondent.members = Members.from_bytes(packed)

    def take_applied(self, groups: Any, index: Any) -> None:
        """Note up to where usage has applied groups."""
        self.applied[groups] = np.maximum(self.applied[groups], index)

    def note(self, action: Any) -> None:
        """Count a group that this node leads from now on."""
        if isinstance(action, RoleChanged) and action.role == LEADER and action.term > FIRST_TERM:
            self.view_changes[action.group] += 1

    # Requests

    def take(
        self,
        frames: list[bytes],
        node: Node | None,
        links: Mapping[int, Link],
        now: int,
        step: Step,
        leaving: Collection[int],
    ) -> None:
        """Answer a message of requests; `node` is None until the log is open.

        `leaving`: members whose nodes are about to stop, or late.
        """
        for rid, raw_header, body in unbundle(frames[1:]):
            self._on_request(rid, raw_header, body, (node, links, now, step, leaving))
        self._answers.send()

    def _on_request(self, rid: bytes, raw_header: bytes, body: Frame, given: Any) -> None:
        header = decode_request_header(raw_header)  # the router has checked it
        node, links, now, step, leaving = given
        try:
            fields = check_request(header.kind, body, header.lz4_size)
            if node is None:
                raise Starting(retry_after_ms=RETRY_AFTER_MS)
            if header.kind == "cluster_status":
                result = cluster_report.report(
                    self._own,
                    node,
                    self.members,
                    links,
                    self.applied.tolist(),
                    self.view_changes.tolist(),
                    now,
                )
            else:
                result = self._transfer(node, fields, step, leaving)
            self._answers.result(rid, header.id, header.kind, result)
        except MeterdError as error:
            self._answers.error(rid, header.id, header.kind, error)

    def _transfer(
        self, node: Node, fields: Mapping[str, Any], step: Step, leaving: Collection[int]
    ) -> dict[str, Any]:
        """Begin to hand groups over."""
        wanted = self.members.nodes.get(fields["node"])
        target = wanted.member if wanted is not None else NOBODY
        refused: dict[str, str] = {}
        begun = []
        for group in fields["groups"]:
            view = node.view(group)
            unfit = wanted is None or target == node.member or target in leaving
            if fields["node"] and unfit:
                refused[str(group)] = "unfit"
                continue
            said = step(Request(group, TransferLeadership(target)))
            if said:
                leader = node_of(view.leader)
                refused[str(group)] = said[0].reason + (f": node {leader} leads" if leader else "")
            else:
                begun.append(group)
        return {"begun": begun, "refused": refused}

    # Once a second

    def turn(self, node: Node, now: int, step: Step, leaving: Collection[int]) -> None:
        """Carry the plan out, and tell telemetry how things are, when that is due.

        `leaving`: members whose nodes are about to stop, or late.
        """
        if now < self._plan_due:
            return
        if self._rests(node, now, leaving):
            self._keeper.see_rest(node, now)
            self._plan_due = now + PLAN_SECONDS * 1000
            self._tell_peers(node, now)
            return
        views = node.views()
        requests = self._keeper.due(node, self.members, now, leaving, views)
        changes = any(isinstance(request.event, ProposeChange) for request in requests)
        moving = changes or self._keeper.is_moving
        self._pause = MOVING_SECONDS if moving else min(2 * self._pause, PLAN_SECONDS)
        self._plan_due = now + self._pause * 1000
        for request in requests:
            refused = step(request)
            for one in refused:
                logger.debug("group %d: %s", one.group, one.reason)
        self._tell(node, now, views)
        rest = node.rest if self._keeper.is_settled else None
        self._rest = None if rest is None else (rest, self.members, there(node, now))

    def _rests(self, node: Node, now: int, leaving: Collection[int]) -> bool:
        """Is everything as it was when there was nothing to do?"""
        known = self._rest
        if known is None or leaving or known[1] is not self.members:
            return False
        return known[0] == node.rest and known[2] == there(node, now)

    def _tell(self, node: Node, now: int, views: Mapping[int, View]) -> None:
        """Tell telemetry how things are; `views`: as they were a moment ago."""
        summary = cluster_report.group_summary(node, self.view_changes.tolist(), now, views)
        telemetry = self._actor.telemetry
        telemetry.set("partition_leader", summary.leads)
        telemetry.set("groups_held", summary.members)
        telemetry.set("partitions_without_leader", summary.leaderless)
        telemetry.set("partitions_leader_silent", summary.unanswered)
        telemetry.set("term", summary.term)
        telemetry.set("membership_version", self.members.version)
        telemetry.set("peers", len(self.members.present) - 1)
        for number, lag in summary.lag_ops.items():
            telemetry.set(f'replication_lag_ops{{peer="{number}"}}', lag)
        self._tell_peers(node, now)

    def _tell_peers(self, node: Node, now: int) -> None:
        telemetry = self._actor.telemetry
        for member in node.peers:
            number = node_of(member)
            heard, offset = node.clocks.heard(member, now), node.clocks.offset(member, now)
            up = heard is not None and heard[1] < node.settings.suspicion_ms
            telemetry.set(f'peer_up{{peer="{number}"}}', int(up))
            if heard is not None:
                telemetry.set(f'peer_round_trip_seconds{{peer="{number}"}}', heard[0] / 1000)
            if offset is not None:
                telemetry.set(f'clock_offset_seconds{{peer="{number}"}}', offset / 1000)


def there(node: Node, now: int) -> list[bool]:
    """Return which peers have answered lately."""
    return [cluster_report.answers(node, member, now) for member in node.peers]

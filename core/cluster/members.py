"""Holds who belongs to the cluster and who is to have which replicas: state of the meta group.

Changed only by commands of the log (`apply`), so it is the same on every replica.  Nodes are named
by number; what a group of the engine knows as a member is a node in one incarnation.

The *plan* says what is to be: the voters of each group and who of them should lead.  What is,
stands in the groups' own logs as configurations; leaders bring it to what the plan says
(`plan_changes.py`).  The plan of the beginning follows from the list of nodes alone (`first`), and
so does the first configuration of every group.

States of a node: learner (gets the meta group, votes nowhere), voter (may be in the plan), drained
(may be, and shall not lead), removed (comes back as a new incarnation only).
Invariants:
  * every node of the plan is there, and voter or drained
  * a group has one to `VOTERS_MAX` voters, and its preferred leader is one of them
  * an incarnation is given to one directory, for ever; a node's incarnation never falls
  * a command that changes nothing leaves `version` as it is; every other adds one
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from meterd.protocol.errors import ChangeRefused
from meterd.protocol.limits import NODE_MAX, PARTITION_COUNT, VOTERS_MAX
from meterd.protocol.log_format import META_GROUP
from meterd.protocol.raft_messages import Configuration, member_id

GROUP_COUNT: Final = PARTITION_COUNT + 1
FORMAT_VERSION: Final = 1
# The first incarnation of a node; that of a single node, too.
FIRST_INCARNATION: Final = 1
REPLICAS: Final = 3
# Of the metric registry and of the nodes: the more voters, the more nodes may fail.
META_VOTERS_MAX: Final = 5
# Everybody learns the meta group, and a record of its members holds some more than these.
NODES_MAX: Final = 60
CLUSTER_VERSION: Final = 1
# Stands for the directories of the first nodes: the founder knows their ids (`founding.py`).
FIRST_DIRECTORY: Final = "first"

LEARNER, VOTER, DRAINED, REMOVED = "learner", "voter", "drained", "removed"
# What `node_state` may do.
CHANGES: Final = {
    (LEARNER, VOTER),
    (VOTER, LEARNER),
    (VOTER, DRAINED),
    (DRAINED, VOTER),
    (LEARNER, REMOVED),
    (VOTER, REMOVED),
    (DRAINED, REMOVED),
}
OPS: Final = ("node_add", "node_recover", "node_state", "plan_move", "cluster_version")


class Member(NamedTuple):
    """A node as the cluster knows it."""

    node: int  # 1..255; a single node may have any number
    incarnation: int
    peer_address: str  # HOST:PORT of replication
    client_address: str  # HOST:PORT of the application
    state: str
    directory: str = ""  # id of the directory that has this incarnation; empty: none yet

    @property
    def member(self) -> int:
        """What the engine calls it; it counts incarnations from 0."""
        return member_id(self.node, self.incarnation - FIRST_INCARNATION)


class Seat(NamedTuple):
    """What the plan says of one group."""

    voters: tuple[int, ...]  # node numbers, ascending
    leader: int  # the one that should lead


class Members:
    """See the module."""

    def __init__(self, nodes: Iterable[Member] = (), plan: Sequence[Seat] = ()) -> None:
        self.nodes: dict[int, Member] = {one.node: one for one in nodes}
        self.plan: list[Seat] = list(plan)
        self.founder = min(self.nodes, default=0)  # who made the cluster
        self.version = 0  # grows by one with every change
        self.cluster_version = CLUSTER_VERSION

    # Commands

    def apply(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out a command of the log; return what to answer.

        Raises ChangeRefused, and changes nothing then.
        """
        changed, answer = _COMMANDS[command["op"]](self, command)
        self.version += changed
        return {**answer, "members_version": self.version}

    def _node_add(self, command: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Take a node in as a learner, or give its directory the incarnation that waits for it."""
        number, directory = command["node"], command["directory"]
        known = self.nodes.get(number)
        if 0 in self.nodes:
            raise ChangeRefused(
                "node 0 stands alone and has no replication port; a node that others shall join is"
                f" made with a number from 1 to {NODE_MAX} and --peers"
            )
        if known is None or known.state == REMOVED:
            if not 1 <= number <= NODE_MAX:
                raise ChangeRefused(f"nodes of a cluster have numbers from 1 to {NODE_MAX}")
            if len(self.present) >= NODES_MAX:
                raise ChangeRefused(f"a cluster has at most {NODES_MAX} nodes")
            incarnation = FIRST_INCARNATION if known is None else known.incarnation + 1
            new = Member(number, incarnation, *_addresses(command), LEARNER, directory)
        elif not directory or not known.directory or known.directory == directory:
            addresses = _addresses(command)
            new = known._replace(peer_address=addresses[0], client_address=addresses[1])
            new = new._replace(directory=known.directory or directory)
        else:
            raise ChangeRefused(
                f"node {number} has another directory; if that is lost, say"
                f" meterctl node recover {number}, and start it again"
            )
        self._refuse_shared_address(new)
        self.nodes[number] = new
        return new != known, _answer(new)

    def _node_recover(self, command: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Let a node whose directory is lost come back: another member for the engine."""
        known = self._known(command["node"])
        if known.directory:
            new = known._replace(incarnation=known.incarnation + 1, directory="")
            self.nodes[known.node] = new
            return True, _answer(new)
        return False, _answer(known)  # it has been said before, and nobody has come

    def _node_state(self, command: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        state = command["state"]
        gone = self.nodes.get(command["node"])
        if gone is not None and gone.state == state:
            return False, _answer(gone)
        known = self._known(command["node"])
        if (known.state, state) not in CHANGES:
            raise ChangeRefused(f"node {known.node} is {known.state} and cannot become {state}")
        if state in (LEARNER, REMOVED):
            held = sum(known.node in seat.voters for seat in self.plan)
            if held:
                raise ChangeRefused(
                    f"node {known.node} has replicas of {held} groups by the plan; move them first"
                )
        new = self.nodes[known.node] = known._replace(state=state)
        return True, _answer(new)

    def _plan_move(self, command: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Change the plan: `moves` are [group, voters, leader], all or none."""
        plan = list(self.plan)
        for group, voters, leader in command["moves"]:
            if not 0 <= group < len(plan):
                raise ChangeRefused(f"there is no group {group}")
            plan[group] = self._checked(Seat(tuple(sorted(voters)), leader), group)
        changed = plan != self.plan
        self.plan = plan
        return changed, {"moves": len(command["moves"])}

    def _cluster_version(self, command: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Allow what all nodes can since a version; there is no way back."""
        version = command["version"]
        changed = version > self.cluster_version
        self.cluster_version = max(self.cluster_version, version)
        return changed, {"cluster_version": self.cluster_version}

    def _known(self, number: int) -> Member:
        known = self.nodes.get(number)
        if known is None:
            raise ChangeRefused(f"there is no node {number}")
        if known.state == REMOVED:
            raise ChangeRefused(f"node {number} is removed")
        return known

    def _refuse_shared_address(self, new: Member) -> None:
        for other in self.nodes.values():
            same = other.peer_address == new.peer_address and other.node != new.node
            if same and other.state != REMOVED:
                raise ChangeRefused(f"node {other.node} has the address {new.peer_address}")

    def _checked(self, seat: Seat, group: int) -> Seat:
        voters = seat.voters
        if not 1 <= len(voters) <= VOTERS_MAX or len(set(voters)) != len(voters):
            raise ChangeRefused(f"group {group}: one to {VOTERS_MAX} different voters")
        for number in voters:
            member = self.nodes.get(number)
            if member is None or member.state not in (VOTER, DRAINED):
                raise ChangeRefused(f"group {group}: node {number} is no voter")
        if seat.leader not in voters:
            raise ChangeRefused(f"group {group}: its leader, node {seat.leader}, is no voter of it")
        return seat

    # What follows from it

    @property
    def present(self) -> list[Member]:
        """The nodes that are not removed, by number."""
        return [self.nodes[n] for n in sorted(self.nodes) if self.nodes[n].state != REMOVED]

    def configuration(self, group: int) -> Configuration:
        """Return what a group's configuration is to be: everybody learns the meta group."""
        voters = self.plan[group].voters
        learners = [one for one in self.present if one.directory and one.node not in voters]
        return Configuration(
            tuple(sorted(self.nodes[number].member for number in voters)),
            tuple(sorted(one.member for one in learners)) if group == META_GROUP else (),
        )

    @property
    def configurations(self) -> list[Configuration]:
        """Return what the configuration of each group is to be."""
        return [self.configuration(group) for group in range(len(self.plan))]

    def held(self, node: int) -> list[int]:
        """Return the partitions of which a node has a replica by the plan."""
        return [group for group in range(PARTITION_COUNT) if node in self.plan[group].voters]

    def to_map(self) -> dict[str, Any]:
        """Return everything as plain values, the same for the same history."""
        seats: dict[Seat, int] = {}
        places = [seats.setdefault(seat, len(seats)) for seat in self.plan]
        return {
            "format": FORMAT_VERSION,
            "version": self.version,
            "cluster_version": self.cluster_version,
            "founder": self.founder,
            "nodes": [list(self.nodes[number]) for number in sorted(self.nodes)],
            "seats": [[list(seat.voters), seat.leader] for seat in seats],
            "plan": places,  # of each group in `seats`
        }

    @classmethod
    def from_map(cls, fields: Mapping[str, Any]) -> Members:
        """Read what `to_map` gave.  Raises ValueError for a format that is not known."""
        if fields["format"] != FORMAT_VERSION:
            raise ValueError(f"members format {fields['format']} is not known")
        seats = [Seat(tuple(voters), leader) for voters, leader in fields["seats"]]
        made = cls((Member(*row) for row in fields["nodes"]), [seats[n] for n in fields["plan"]])
        made.version, made.cluster_version = fields["version"], fields["cluster_version"]
        made.founder = fields["founder"]
        return made

    def to_bytes(self) -> bytes:
        """Return `to_map` as bytes, the same for the same history."""
        return bytes(msgpack.packb(self.to_map()))

    @classmethod
    def from_bytes(cls, packed: bytes) -> Members:
        """Read what `to_bytes` gave."""
        return cls.from_map(msgpack.unpackb(packed))


_COMMANDS = {
    "node_add": Members._node_add,
    "node_recover": Members._node_recover,
    "node_state": Members._node_state,
    "plan_move": Members._plan_move,
    "cluster_version": Members._cluster_version,
}


def _addresses(command: Mapping[str, Any]) -> tuple[str, str]:
    return command["peer_address"], command["client_address"]


def _answer(member: Member) -> dict[str, Any]:
    return {"node": member.node, "incarnation": member.incarnation, "state": member.state}


def first(nodes: Iterable[tuple[int, str, str]]) -> Members:
    """Return members and plan of a new cluster of (number, peer address, client address).

    Up to three nodes have everything.  More form rings: partitions lie on three nodes that follow
    each other, so that few sets of three can lose a partition together.  Leaders are spread so that
    no node leads two more than another.
    """
    members = [
        Member(number, FIRST_INCARNATION, peer, client, VOTER, FIRST_DIRECTORY)
        for number, peer, client in sorted(nodes)
    ]
    numbers = [one.node for one in members]
    plan = [_seat(numbers, group, min(REPLICAS, len(numbers))) for group in range(PARTITION_COUNT)]
    return Members(members, [*plan, _seat(numbers, 0, meta_size(len(numbers)))])


def meta_size(nodes: int) -> int:
    """Return how many voters the meta group of so many nodes has: an odd number, if it can be."""
    return min(META_VOTERS_MAX if nodes > REPLICAS + 1 else REPLICAS, nodes)


def _seat(numbers: Sequence[int], place: int, replicas: int) -> Seat:
    """Return the seat of the group at a place of the ring."""
    ring = [numbers[(place + step) % len(numbers)] for step in range(replicas)]
    return Seat(tuple(sorted(ring)), ring[0])


def balanced_leaders(members: Members) -> list[list[Any]]:
    """Return moves of a plan that spread the leaders evenly and move nothing else.

    A node leads at most one more than another that could take over from it, and as few as possible
    change; drained nodes lead nothing that anybody else can.
    """
    able = [one.node for one in members.present if one.state == VOTER]
    count = dict.fromkeys(able, 0)
    leaders: dict[int, int] = {}
    homeless = []
    for group in range(PARTITION_COUNT):
        seat = members.plan[group]
        if seat.leader in count:
            leaders[group] = seat.leader
            count[seat.leader] += 1
        elif set(seat.voters) & set(able):
            homeless.append(group)
    for group in homeless:
        to = min((n for n in members.plan[group].voters if n in count), key=lambda n: (count[n], n))
        leaders[group] = to
        count[to] += 1
    while _shift(members, leaders, count):
        pass
    return [
        [group, list(members.plan[group].voters), leader]
        for group, leader in sorted(leaders.items())
        if leader != members.plan[group].leader
    ]


def _shift(members: Members, leaders: dict[int, int], count: dict[int, int]) -> bool:
    """Move one leader to a voter that leads two less or fewer; return whether there was one."""
    for group, leader in leaders.items():
        others = [n for n in members.plan[group].voters if n in count]
        to = min(others, key=lambda n: (count[n], n))
        if count[leader] - count[to] >= 2:
            leaders[group] = to
            count[leader] -= 1
            count[to] += 1
            return True
    return False

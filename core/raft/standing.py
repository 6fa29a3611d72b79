"""Whether a node that has started may promise anything: peers confirm that it has not gone back.

Every envelope says how far its sender's log is durable.  Who has heard of a later block than a
started node has knows that its directory is an older copy, which has forgotten votes and acks.

A group needs the word of a majority of its voters, this node included: then nobody can have lost
more than this node's own word.  Where the configuration does not name this node it may only be
where the log of others begins, whose members may all have been replaced since: then all but one of
the other nodes that there are do as well.  With those is a majority of any group that this node has
become a member of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meterd.protocol.raft_messages import Configuration, node_of

# Of a member: its boot, its block in that, its highest block in all boots before.
Heard = tuple[int, int, int]


class Standing:
    """Of one node, since its start."""

    def __init__(
        self, member: int, block: int, heard: Mapping[int, Heard], others: Iterable[int] = ()
    ) -> None:
        """`block`: the last durable one at the start; `heard`: before it, as far as it is known.

        others: the members that there were when this one came.
        """
        self.block = block
        self._member = member
        self.meet(others)
        self._confirmed_by = {member: None}
        self.heard = dict(heard)  # bounded by the members there are

    def meet(self, members: Iterable[int]) -> None:
        """These are the members that there are."""
        self._others = {node_of(one) for one in members} - {node_of(self._member)}

    def hear(self, member: int, boot: int, block: int) -> None:
        """Remember how far a member's log was durable."""
        last_boot, last, before = self.heard.get(member, (boot, 0, 0))
        if boot != last_boot:  # a later one, or that of an older copy whose clock was put back
            before = max(before, last)
            last = 0
        self.heard[member] = (boot, max(block, last), before)

    def heard_of(self, member: int) -> int:
        """Return the highest block that a member told of before its last start, 0 for none."""
        return self.heard[member][2] if member in self.heard else 0

    def confirm(self, peer: int, heard: int) -> bool:
        """Take a peer's answer; return False when it has heard of a later block than there is."""
        if heard > self.block:
            return False
        self._confirmed_by[peer] = None
        return True

    def is_confirmed(self, configuration: Configuration) -> bool:
        """Whether a replica with this configuration may vote and ack."""
        count = sum(voter in self._confirmed_by for voter in configuration.voters)
        if configuration.voters and count >= configuration.quorum:
            return True
        if self._member in configuration.members:
            return False
        nodes = {node_of(one) for one in self._confirmed_by if one != self._member}
        known = nodes & self._others if self._others else nodes
        return len(known) >= max(1, len(self._others) - 1)

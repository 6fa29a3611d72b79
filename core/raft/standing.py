"""Whether a node that has started may promise anything: peers confirm that it has not gone back.

Every envelope says how far its sender's log is durable.  Who has heard of a later block than a
started node has knows that its directory is an older copy, which has forgotten votes and acks.
"""

from __future__ import annotations

from collections.abc import Sequence


class Standing:
    """Of one node, since its start."""

    def __init__(self, block: int, peers: Sequence[int]) -> None:
        """`block`: the last durable one at the start."""
        self.block = block
        self._peers = list(peers)
        self._confirmed_by: dict[int, None] = {}
        self._heard: dict[int, int] = {}  # member -> highest block; bounded by the members known

    @property
    def confirmed(self) -> bool:
        """Whether a majority of all nodes, this one included, knows of nothing later."""
        count = len([peer for peer in self._peers if peer in self._confirmed_by])
        return count + 1 > (len(self._peers) + 1) // 2

    def expect(self, peers: Sequence[int]) -> None:
        """Take note of who the peers are."""
        self._peers = list(peers)

    def hear(self, member: int, block: int) -> None:
        """Remember how far a member's log was durable."""
        self._heard[member] = max(block, self._heard.get(member, 0))

    def heard_of(self, member: int) -> int:
        """Return the highest block a member ever told of, 0 when it told nothing."""
        return self._heard.get(member, 0)

    def confirm(self, peer: int, heard: int) -> bool:
        """Take a peer's answer; return False when it has heard of a later block than there is."""
        if heard > self.block:
            return False
        self._confirmed_by[peer] = None
        return True

"""Where the other nodes are: as the cluster says, or as the operator does, whichever is there.

The cluster's own word is a part of its state, which cannot change while it has no quorum.  When all
nodes have moved, to other addresses or ports, only the operator's list (`node.peers`) is true; when
one has moved since that was written, only the state is.  So where the two differ each is tried for
a while, until there is a connection.

Sans-I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

# Without a connection for so long, the other address is tried.
TRY_SECONDS: Final = 3.0


class PeerAddresses:
    """Ask `choose` now and then; it returns what to connect to."""

    def __init__(self, listed: Mapping[int, str]) -> None:
        """`listed`: by the operator, by node."""
        self._listed = dict(listed)
        self._turns: dict[int, int] = {}  # how often another address was chosen
        self._since: dict[int, float] = {}  # when this one was, or there was a connection last

    def choose(
        self, known: Mapping[int, str], connected: Collection[int], now: float
    ) -> dict[int, str]:
        """Return the address of each node.

        known: by the members; connected: the nodes that there is a connection to now.
        """
        chosen = {}
        for node in sorted({*self._listed, *known}):
            found = [one for one in (known.get(node), self._listed.get(node)) if one]
            if node in connected or node not in self._since:
                self._since[node] = now
            elif now - self._since[node] >= TRY_SECONDS:
                self._since[node] = now
                self._turns[node] = self._turns.get(node, 0) + 1
            if found:
                chosen[node] = found[self._turns.get(node, 0) % len(found)]
        return chosen

"""Has other nodes lead before this one stops, and knows who declines to lead.

Who is asked, and for what, says `core/cluster/resigning.py`.

The supervisor asks for it with SIGUSR1 and waits for ``handed_over`` on the lifeline.  Meanwhile,
and until it ends, the node tells all others `leaving`: whoever leads instead would soon hand back
what the plan wants to be led here.  A node whose usage is late (`lateness.py`) says the same, and
has others lead, too, where it is stranded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from meterd.core.cluster.members import Members
from meterd.core.cluster.resigning import Resignation
from meterd.core.raft.events import Refused
from meterd.core.raft.node import Node

# The note to the other nodes; it has no other frame.
LEAVING: Final = b"leaving"
REPEAT_SECONDS: Final = 0.5
# Who has said so is given nothing to lead for so long after it last did.
LEAVING_SECONDS: Final = 3.0
# How often it is looked at what has become of the transfers.
TURN_SECONDS: Final = 0.02

Step = Callable[[Any], list[Refused]]
SendSmall = Callable[[int, list[bytes]], bool]


class HandingOver:
    """See the module.  Times are monotonic seconds."""

    def __init__(self, own: int, send_small: SendSmall, say: Callable[[str], None]) -> None:
        """`own`: this node's member; `say` tells the supervisor."""
        self._own = own
        self._send_small = send_small
        self._say = say
        self._resignation = Resignation()
        self._relief = Resignation()
        self._tell_due = 0.0
        self._said = False
        self._leaving: dict[int, float] = {}  # member → when it last said so

    def take(self, member: int, now: float) -> None:
        """A member of another node is about to stop, or late."""
        self._leaving[member] = now

    def leaving(self, now: float) -> Collection[int]:
        """Return the members that are to be given nothing to lead, this one too when it stops."""
        self._leaving = {m: at for m, at in self._leaving.items() if now - at < LEAVING_SECONDS}
        return self._leaving.keys()

    def decline(self, members: Members, now: float) -> None:
        """Tell the others, when that is due, that they should give this node nothing to lead."""
        if now >= self._tell_due:
            self._tell_due = now + REPEAT_SECONDS
            for other in members.present:
                if other.member != self._own:
                    self._send_small(other.node, [LEAVING])

    def relieve(self, node: Node, now: float, step: Step) -> None:
        """Have others lead, who are not late: this node goes on, and can answer nothing."""
        self.take(self._own, now)
        for request in self._relief.due(node, self.leaving(now), int(now * 1000)):
            step(request)

    def turn(self, node: Node, members: Members, now: float, step: Step) -> None:
        """Do what is due because this node is about to stop; call it every `TURN_SECONDS`."""
        self.take(self._own, now)
        self.decline(members, now)
        for request in self._resignation.due(node, self.leaving(now), int(now * 1000)):
            step(request)
        if self._resignation.is_done and not self._said:
            self._said = True
            self._say("handed_over")

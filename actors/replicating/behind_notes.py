"""What a leader says to a node that lacks ops which no log has any more, and what that one does.

Only a copy of a peer helps.  The node notes whose, and has it fetched
(`housekeeping/peer_copies.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from meterd.actors.frames.sockets import Frame
from meterd.actors.starting import peer_copy
from meterd.core.raft.events import FollowerBehind
from meterd.core.raft.node import Node
from meterd.protocol.errors import DiskFull
from meterd.protocol.raft_messages import node_of

BEHIND: Final = b"behind"
# How often it is logged that a node lacks such ops, and how often it is told that node.
LOG_SECONDS: Final = 60.0
TELL_SECONDS: Final = 1.0
# What is damaged here, and gone on its leader, any other node may have: all are asked meanwhile.
REPAIR_SECONDS: Final = 3.0
# When that was said so long ago, it was about something else.
REPAIR_PAUSE_SECONDS: Final = 10.0

logger = logging.getLogger(__name__)


class BehindNotes:
    """See the module."""

    def __init__(
        self,
        directory: str,
        send: Callable[[int, Sequence[Frame]], bool],
        fetch: Callable[[], None],
    ) -> None:
        """`send`: to a node, past whatever waits for it; `fetch`: a copy of who was noted."""
        self._directory = directory
        self._send, self._fetch = send, fetch
        self._told: dict[int, float] = {}  # by node
        self._logged: dict[int, float] = {}
        self._damaged_since = self._damaged_at = float("-inf")

    def tell(self, action: FollowerBehind) -> None:
        """Tell the node of a member, if it was not told just now."""
        node, now = node_of(action.to), time.monotonic()
        if now - self._logged.get(node, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged[node] = now
            logger.warning("node %d lacks ops that no log file has any more", node)
        if now - self._told.get(node, -TELL_SECONDS) >= TELL_SECONDS:
            self._told[node] = now
            place = action.group.to_bytes(2, "little") + action.first.to_bytes(8, "little")
            self._send(node, [BEHIND, place])

    def take(self, source: int, frames: Sequence[Frame], node: Node) -> None:
        """Heed what the node `source` says, if it is still so.  Raises OSError.

        It may be late: then the op is committed here by now.  (Not: in the log.  What is there may
        be what the leader's log contradicts.)
        """
        place = bytes(frames[1]) if len(frames) == 2 else b""
        if len(place) != 10:
            return
        group, first = int.from_bytes(place[:2], "little"), int.from_bytes(place[2:], "little")
        if group not in node.groups:
            return
        hole = node.groups[group].log.first_hole  # 0: there is none
        if hole and first == hole:
            if not self._others_were_asked(time.monotonic()):
                return
        elif first <= node.view(group).commit:
            return
        if not peer_copy.behind_whom(self._directory):  # else it has been said before
            logger.warning("this node lacks ops that no log has any more, says node %d", source)
            with suppress(DiskFull):  # it will be said again
                peer_copy.note_behind(self._directory, source, group)
        self._fetch()

    def _others_were_asked(self, now: float) -> bool:
        if now - self._damaged_at >= REPAIR_PAUSE_SECONDS:
            self._damaged_since = now
        self._damaged_at = now
        return now - self._damaged_since >= REPAIR_SECONDS

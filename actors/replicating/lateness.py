"""Knows whether usage is late: it has not applied what was committed a while ago.

A node that was away has its log in seconds, and may apply it for many more.  What it led meanwhile
would wait for that: its usage would not even know yet that it leads.  So such a node tells the
others that it declines to lead (`handing_over.py`).  It counts as late until it is seen not to be.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from meterd.core.raft.steady import View
from meterd.protocol.log_format import GROUP_COUNT
from meterd.protocol.raft_messages import NOBODY

# How long usage may take; it says only a few times a second how far it is.
LATE_SECONDS: Final = 2.0


class Lateness:
    """Told what is committed; asked about what is applied.  Indexes are by group."""

    def __init__(self, now: float) -> None:
        """`now`, here and below: monotonic seconds."""
        self._committed = np.zeros(GROUP_COUNT, np.int64)
        self._before: Any = None  # the same, at the last look
        self._look_due = now + LATE_SECONDS
        self._is_late = True

    def commit(self, groups: Any, index: Any) -> None:
        """Groups are committed up to here."""
        self._committed[groups] = np.maximum(self._committed[groups], index.astype(np.int64))

    def look(self, applied: Any, now: float) -> bool:
        """Is usage late, which has applied so much?"""
        if now >= self._look_due:
            self._look_due = now + LATE_SECONDS
            if self._before is not None:
                self._is_late = bool((applied < self._before).any())
            self._before = self._committed.copy()
        return self._is_late


class Stranded:
    """Knows whether usage is late because nothing comes of the meta group.

    A slice waits for the registry that it was made under.  Where the link to the leader of the meta
    group is broken, and to others is not, this node goes on to lead and to commit what it cannot
    apply: nobody else would take over from it, and it answers nothing.
    """

    def __init__(self) -> None:
        self._since: float | None = None

    def look(self, is_late: bool, meta: View, now: float) -> bool:
        """Has that been so for a while?  `meta`: the group's view.

        What is here and not applied does not count: a node that is busy gets on.
        """
        lacks = is_late and (meta.leader == NOBODY or meta.last < meta.leader_commit)
        if not lacks:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since >= LATE_SECONDS

"""Says which log files followers may still need: the rule of retention named `replica`.

Of each file that becomes full, the last index of every group in the log so far is kept.  A
follower needs the first file whose end it has not reached in some group.  What lies before this
process began is not known by file, so who is behind that may need all of it.

Memory: 2 KiB a file, `FILES_MAX` files; of older ones the oldest that is known stands for all.

Does not know: files, followers, how far they are.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

FILES_MAX: Final = 1_000
# No file has this number.
NOBODY_BEHIND: Final = (1 << 64) - 1

Indices = NDArray[np.uint64]  # of each group


class FollowerFiles:
    """Change it only through `rotated`."""

    def __init__(self, last: Indices) -> None:
        """`last`: where each group ends in the log when this process begins."""
        self._before = last.copy()
        self._ends: deque[tuple[int, Indices]] = deque(maxlen=FILES_MAX)

    def rotated(self, file_number: int, last: Indices) -> None:
        """A file has become full; `last`: where each group ends in the log up to its end."""
        if len(self._ends) == FILES_MAX:
            self._before = self._ends[0][1]
        self._ends.append((file_number, last.copy()))

    def first_needed(self, match: Indices) -> int:
        """Return the oldest full file that is needed by who has each group up to `match`.

        0: all there are; NOBODY_BEHIND: none.  A group that nobody follows: 2^64 - 1.
        """
        if (match < self._before).any():
            return 0
        for number, last in self._ends:
            if (match < last).any():
                return number
        return NOBODY_BEHIND

"""Gives back the pages of files that only loading needed.

To load compiled kernels takes the compiler's library, some fifty megabytes of it.  The supervisor
needs none of that again, but its pages stay mapped, and count as its memory, until somebody says
so.  Who needs one after all finds it in the page cache.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

SMAPS = Path("/proc/self/smaps")
MADV_DONTNEED = 4
# Start, end and permissions of a mapping, and the file that it shows.
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+\s+(/.*)?")


def give_back() -> int:
    """Have the clean pages of files forgotten that are mapped and not writable; return the bytes.

    A page that was written to once (relocated addresses, then protected) is no page of the file
    any more, so mappings with such pages are left alone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    given = 0
    for start, end, resident in clean_mappings(SMAPS.read_text().splitlines()):
        # Advice: where it cannot be taken the pages stay, and nothing else is different.
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED) == 0:
            given += resident
    return given


def clean_mappings(lines: Iterable[str]) -> Iterator[tuple[int, int, int]]:
    """Yield start, end and resident bytes of mappings that hold only what their file holds."""
    found: tuple[int, int] | None = None
    resident = 0
    for line in lines:
        mapping = _MAPPING.match(line)
        if mapping is not None:
            start, end, permissions, path = mapping.groups()
            from_file = path is not None and "w" not in permissions and permissions.endswith("p")
            found = (int(start, 16), int(end, 16)) if from_file else None
        elif line.startswith("Rss:"):
            resident = 1024 * int(line.split()[1])
        elif line.startswith("Anonymous:") and found is not None:
            if int(line.split()[1]) == 0 and resident:
                yield *found, resident
            found = None

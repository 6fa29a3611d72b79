"""Measures what uses the space of a data directory, by kind of file and by directory."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

# The first pattern that fits names the kind.  `reserve` is what is allocated ahead and empty.
KINDS = (
    ("*.spare", "reserve"),
    ("ballast", "reserve"),
    ("*.tmp", "temporary"),
    ("wal.log", "log"),
    ("wal-*.log", "log"),
    ("wal-*.open", "log"),  # a second name, which may be met first
    ("*.seg", "segments"),
    ("*.idx", "segments"),
    ("*.props", "segments"),
    ("*.tot", "totals"),
    ("ids-*", "ids"),
    ("checkpoint*.bin", "checkpoints"),
    ("refused*.log", "refused"),
)
OTHER = "other"
NAMES = tuple(dict.fromkeys([kind for _, kind in KINDS] + [OTHER]))
# Files beyond this are not looked at: nobody waits for minutes to hear that a disk is full.
FILES_MAX = 200_000
BLOCK_SIZE = 512  # of st_blocks


@dataclass
class Part:
    """Files of one kind, or of one directory."""

    files: int = 0
    bytes: int = 0  # as allocated

    def add(self, size: int) -> None:
        self.files += 1
        self.bytes += size


@dataclass
class DirectoryUsage:
    """What was found.  Files with several names count once."""

    kinds: dict[str, Part] = field(default_factory=lambda: {name: Part() for name in NAMES})
    directories: dict[str, Part] = field(default_factory=dict)
    complete: bool = True  # False: there are more than FILES_MAX files

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.kinds.values())


def kind_of(name: str) -> str:
    """Return the kind of a file in the data directory by its name."""
    return next((kind for pattern, kind in KINDS if fnmatchcase(name, pattern)), OTHER)


def measure(directory: str) -> DirectoryUsage:
    """Look at every file below a directory.  Raises OSError when it cannot be read."""
    usage = DirectoryUsage()
    seen: set[tuple[int, int]] = set()
    waiting, looked = [(directory, ".")], 0
    while waiting:
        path, shown = waiting.pop()
        part = usage.directories.setdefault(shown, Part())
        with os.scandir(path) as entries:
            for entry in entries:
                looked += 1
                if looked > FILES_MAX:
                    usage.complete = False
                    return usage
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, os.path.join(shown, entry.name)))
                    part.add(0)
                else:
                    _add(usage, part, entry, seen, shown == ".")
    return usage


def _add(
    usage: DirectoryUsage,
    part: Part,
    entry: os.DirEntry[str],
    seen: set[tuple[int, int]],
    is_own: bool,
) -> None:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return  # replaced or deleted meanwhile
    identity = (found.st_dev, found.st_ino)
    if identity in seen:
        return
    seen.add(identity)
    size = found.st_blocks * BLOCK_SIZE
    part.add(size)
    usage.kinds[kind_of(entry.name) if is_own else OTHER].add(size)

"""Makes one run of identities from several, without looking at the identities.

A run is a checkpoint container whose sections hold identities and whose state says of each section
the day after which all of them have expired (`days`).  So a merge copies sections as they are, with
the checksums they have, and leaves out those that have expired; which identities of the rest have,
a start sees for itself.  The bytes pass through memory that is used again for each piece, around
the page cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from crc32c import crc32c

from meterd.actors.direct_file import PIECE_SIZE, Window, begin_direct
from meterd.protocol import checkpoint_format
from meterd.protocol.checkpoint_format import HEAD_SIZE, Section
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import Bytes, Damaged


def run_state(days: list[int]) -> dict[str, Any]:
    """Return the state of a run whose sections expire after these days."""
    return {"kind": "identities", "days": days}


class _Source(NamedTuple):
    """A section of a run that is merged."""

    path: Path
    descriptor: int
    section: Section
    day: int


class Merge:
    """One merge: the runs are open while it is entered.

    `buffers` is to be read once, to its end.
    """

    def __init__(self, runs: list[tuple[Path, int]], horizon_day: int) -> None:
        """Of each run: where it is, and how many identities it has."""
        self._runs = runs
        self._horizon_day = horizon_day
        self._window = Window()
        self._sources: list[_Source] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Open the runs.  Raises Corrupt, OSError."""
        try:
            for path, count in self._runs:
                self._add(path, count)
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def count(self) -> int:
        """How many identities the new run has."""
        return sum(source.section.shape[0] for source in self._sources)

    def buffers(self) -> Iterator[Bytes]:
        """Yield the new run; each buffer is valid until the next.  Raises Corrupt, OSError."""
        sections = [
            source.section._replace(name=f"identities.{place}")
            for place, source in enumerate(self._sources)
        ]
        days = [source.day for source in self._sources]
        yield checkpoint_format.encode_front(run_state(days), sections)
        for source in self._sources:
            yield from self._checked(source)
            yield checkpoint_format.padding(source.section)

    def _add(self, path: Path, count: int) -> None:
        """Open a run and note which of its sections stay."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise Corrupt(str(path), 0, "a checkpoint names it, and it is missing") from error
        self._open.callback(os.close, descriptor)
        begin_direct(descriptor)
        try:
            size = checkpoint_format.front_size(self._window.read(descriptor, 0, HEAD_SIZE))
            front = self._window.read(descriptor, 0, size)
            state, sections = checkpoint_format.read_front(front)
            if sum(section.shape[0] for section in sections) != count:
                raise Damaged(0, f"a checkpoint says it has {count} identities")
        except Damaged as damage:
            raise Corrupt(str(path), damage.offset, damage.reason) from damage
        for section, day in zip(sections, state["days"], strict=True):
            if day >= self._horizon_day:
                self._sources.append(_Source(path, descriptor, section, day))

    def _checked(self, source: _Source) -> Iterator[Bytes]:
        """Yield a section in pieces; raises Corrupt behind the last one if they do not check."""
        section, crc = source.section, 0
        end = section.offset + section.size
        for at in range(section.offset, end, PIECE_SIZE):
            piece = self._window.read(source.descriptor, at, min(PIECE_SIZE, end - at))
            crc = crc32c(piece, crc)
            yield piece
        if crc != section.crc:
            damage = checkpoint_format.damaged_section(section)
            raise Corrupt(str(source.path), damage.offset, damage.reason)

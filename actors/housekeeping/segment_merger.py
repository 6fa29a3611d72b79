"""Merges segments on disk: reads the parts, writes the whole, proves it, and only then names it.

`.idx` is written last, as for every segment: before it the parts count, after it the whole does,
and nothing in between.  The parts stay where they are; others delete them later.  What is given up
(cancelled, no room, damage) leaves no file behind; what a crash leaves is litter without `.idx`.

Rows of erased accounts are left out.  One segment alone is written again for that, as its next
generation; and so, in another directory, without rows of some groups or with no others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meterd.actors.files.direct_file import PIECE_SIZE, Staging
from meterd.actors.files.disk import atomic_write
from meterd.actors.files.mapped import map_file
from meterd.core.segments.encoder import SegmentEncoder, SegmentLog
from meterd.core.segments.merging import Facts, Merge, joined_log, log_of_groups, same_log
from meterd.core.segments.reader import SegmentReader
from meterd.core.state.erasures import Erasures
from meterd.protocol.errors import Corrupt, InvariantViolation
from meterd.protocol.log_format import Bytes, Damaged
from meterd.protocol.segment_format import FileHeader, SegmentName, parse_index

# How much of the work is done when the whole is written, and its proof begins.
WRITTEN = 0.75
COMPANIONS = (".seg", ".props")

# Told how much is done, 0 to 1, and how many bytes were read and written since it was told last;
# may wait, and ends the work by raising.
Pace = Callable[[float, int], None]


class Merged(NamedTuple):
    """What became of a merge."""

    name: SegmentName
    parts: int
    rows: int
    erased: int  # rows left out
    read: int  # bytes
    written: int


class SegmentMerger:
    """Merges segments of one directory, one merge at a time; may be used in a thread of its own."""

    def __init__(self, directory: str, target: str | None = None) -> None:
        """`target`: the directory to write to, by default the same."""
        self._directory, self._target = directory, target or directory
        self._staging = Staging()

    def merge(self, names: Sequence[SegmentName], erasures: Erasures | None, pace: Pace) -> Merged:
        """Merge complete segments that follow each other, or write one again, durably.

        Raises Corrupt, DiskFull, FsyncFailed, OSError, and what `pace` raises.
        """
        name = SegmentName(names[0].first, names[-1].last)
        if len(names) == 1:
            name = name._replace(generation=names[0].generation + 1)
        if not names[1:] and not erasures:
            raise InvariantViolation("nothing in a segment alone is to be left out")
        if any(a.last + 1 != b.first for a, b in pairwise(names)):
            raise InvariantViolation("segments that are merged do not follow each other")
        parts = [self._open(one) for one in names]
        log = joined_log([part.log() for part in parts])
        return self._write(name, Merge(parts, _key(), erasures), parts, log, pace)

    def choose(
        self,
        names: Sequence[SegmentName],
        groups: NDArray[np.bool_],
        name: SegmentName,
        files: NDArray[np.void] | None = None,
    ) -> Merged:
        """Write what complete segments hold of some groups (bool[257]) as a segment, durably.

        files: of the log that it says it covers (segment_format.FILE); by default those of `names`.
        Raises Corrupt, DiskFull, FsyncFailed, OSError.
        """
        parts = [self._open(one) for one in names]
        log = log_of_groups(joined_log([part.log() for part in parts]), groups)
        if files is not None:
            log = log._replace(files=files)
        merge = Merge(parts, _key(), None, groups)
        return self._write(name, merge, parts, log, lambda _done, _moved: None)

    def _write(
        self,
        name: SegmentName,
        merge: Merge,
        parts: list[SegmentReader],
        log: SegmentLog,
        pace: Pace,
    ) -> Merged:
        """Write the three files, `.idx` when the others have proved good."""
        with self._leaving_nothing(name):
            set_id = int.from_bytes(os.urandom(8), "little")
            header = FileHeader(set_id, name.first, name.last, time.time_ns())
            encoder = SegmentEncoder(header, name.generation)
            self._replace(name, ".seg", _paced(merge, encoder, pace))
            facts = merge.facts()
            has_erased = any(part.header.has_erased for part in parts)
            has_erased |= facts.erased > 0 and not merge.of_some_groups
            encoded = encoder.finish(log, has_erased)
            self._replace(name, ".props", _slowly(encoded.props, WRITTEN, pace))
            counted = facts.rows + facts.erased, encoded.header.row_count
            if counted != (merge.row_count, facts.rows):
                raise InvariantViolation("rows were lost in a merge of segments")
            index = b"".join(encoded.idx)
            whole = self._read(self._target, name, index)
            if not same_log(whole.log(), log):
                raise Corrupt(self._path(name, ".idx"), 0, "it does not keep the log of its parts")
            read = self._prove(Merge([whole], merge.key), facts, pace)
            self._replace(name, ".idx", _slowly([index], 1.0, pace))
            written = encoded.header.seg_size + encoded.header.props_size + len(index)
            read += merge.bytes_read
            return Merged(name, len(parts), facts.rows, facts.erased, read, written)

    @contextmanager
    def _leaving_nothing(self, name: SegmentName) -> Iterator[None]:
        """What is given up leaves no file, for the space may be needed."""
        try:
            yield
        except BaseException:
            if not os.path.exists(self._path(name, ".idx")):  # nothing named them yet
                for suffix in COMPANIONS:
                    with suppress(FileNotFoundError):
                        os.unlink(self._path(name, suffix))
            raise

    def _prove(self, whole: Merge, facts: Facts, pace: Pace) -> int:
        """Read the whole back; return how many bytes.  Raises Corrupt when it has other rows."""
        read = 0
        for done in whole.read_all():
            pace(WRITTEN + (1 - WRITTEN) * done, whole.bytes_read - read)
            read = whole.bytes_read
        found = whole.facts()
        if found != facts._replace(erased=0):
            path = self._path(whole.name, ".seg")
            raise Corrupt(path, 0, f"{found.rows} rows that are not the {facts.rows} of its parts")
        return whole.bytes_read

    def _open(self, name: SegmentName) -> SegmentReader:
        path = os.path.join(self._directory, name.file(".idx"))
        return self._read(self._directory, name, map_file(path).data)

    def _read(self, directory: str, name: SegmentName, index: Bytes) -> SegmentReader:
        path, *others = (os.path.join(directory, name.file(one)) for one in (".idx", *COMPANIONS))
        try:
            seg, props = map(map_file, others)
            return SegmentReader(parse_index(index), seg, props)
        except Damaged as damage:
            raise Corrupt(path, damage.offset, damage.reason) from damage

    def _replace(self, name: SegmentName, suffix: str, data: bytes | Iterable[Bytes]) -> None:
        atomic_write(self._path(name, suffix), data, self._staging)

    def _path(self, name: SegmentName, suffix: str) -> str:
        return os.path.join(self._target, name.file(suffix))


def _key() -> NDArray[np.uint64]:
    """Return a random key: nobody can foresee the hashes of a merge."""
    return np.frombuffer(os.urandom(16), np.uint64).copy()


def _slowly(pieces: Iterable[Bytes], done: float, pace: Pace) -> Iterator[Bytes]:
    """Yield the same bytes, at the pace that is given."""
    for piece in pieces:
        view = memoryview(piece)
        for at in range(0, len(view), PIECE_SIZE):
            part = view[at : at + PIECE_SIZE]
            pace(done, len(part))
            yield part


def _paced(merge: Merge, encoder: SegmentEncoder, pace: Pace) -> Iterator[Bytes]:
    """Yield the bytes of `.seg`, at the pace that is given."""
    read = taken = 0
    yield encoder.begin()
    for batch in merge.batches():
        for piece in encoder.add(batch):
            moved, read = len(piece) + merge.bytes_read - read, merge.bytes_read
            pace(WRITTEN * taken / max(merge.row_count, 1), moved)
            yield piece
        taken += len(batch.rows)

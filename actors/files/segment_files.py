"""The segments of a data directory: which are complete, and the open ones.

The names carry the truth.  A segment counts when its `.idx` checks and the headers of its two other
files say the same; one whose log files another complete one covers as well, or a later generation
of it, is superseded and is not read, it only stays for a while.  One that does not check is
remembered with what is wrong: whoever needs its range gets that error, and never an answer without
it.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from meterd.actors.files.mapped import JustDeleted, map_file
from meterd.core.segments.reader import SegmentReader
from meterd.protocol import segment_format as fmt
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import Damaged
from meterd.protocol.segment_format import SegmentHeader, SegmentName

logger = logging.getLogger(__name__)

# Segments that are mapped; each takes three mappings of the 65,530 a process may have.
SEGMENTS_OPEN_MAX = 256


@dataclass(frozen=True, slots=True)
class Segment:
    """A complete segment."""

    name: SegmentName
    header: SegmentHeader
    made_at: int  # UTC ns: when its index was written
    size: int  # bytes of its three files


class SegmentFiles:
    """Finds and opens the segments of a directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._known: dict[SegmentName, tuple[tuple[int, int], Segment | Corrupt]] = {}
        self._open: OrderedDict[SegmentName, tuple[int, SegmentReader]] = OrderedDict()

    def refresh(self, names: Iterable[str]) -> None:
        """Take note of what is in the directory."""
        found = {
            parsed[0] for parsed in map(fmt.parse_name, names) if parsed and parsed[1] == ".idx"
        }
        for name in set(self._known) - found:
            del self._known[name]
            self._open.pop(name, None)
        for name in found:
            self._look(name)

    def complete(self) -> list[Segment]:
        """Return all complete segments, also superseded ones, by range."""
        found = [one for _, one in self._known.values() if isinstance(one, Segment)]
        return sorted(found, key=lambda segment: segment.name)

    def chosen(self, before: int, through: int = 0) -> list[Segment]:
        """Return the segments that cover log files between two numbers, by range.

        None of them is superseded by another one.
        """
        found = [
            one for one in self.complete() if through < one.name.first <= one.name.last < before
        ]
        found.sort(key=lambda one: (one.name.first, -one.name.last, -one.name.generation))
        kept: list[Segment] = []
        for segment in found:
            if not kept or segment.name.last > kept[-1].name.last:
                kept.append(segment)
        return kept

    def damage_at(self, number: int) -> Corrupt | None:
        """Return what is wrong with a segment that should cover a log file."""
        for name, (_, found) in self._known.items():
            if isinstance(found, Corrupt) and name.first <= number <= name.last:
                return found
        return None

    def lost(self, logs: Iterable[int]) -> Corrupt | None:
        """Return what is wrong with a segment whose events are nowhere else.

        `logs`: the log files that are there, or that totals files stand for.
        """
        held = set(logs)
        for one in self.complete():
            held |= set(range(one.name.first, one.name.last + 1))
        for name, (_, found) in self._known.items():
            if isinstance(found, Corrupt) and not held >= set(range(name.first, name.last + 1)):
                return found
        return None

    def damaged(self) -> list[Corrupt]:
        """Return what is wrong with all segments that do not check, by range."""
        return [one for _, (_, one) in sorted(self._known.items()) if isinstance(one, Corrupt)]

    def open(self, segment: Segment) -> SegmentReader:
        """Return the reader of a segment.  Raises Corrupt; JustDeleted when it has gone."""
        known = self._open.get(segment.name)
        if known is None or known[0] != segment.header.set_id:
            known = self._open[segment.name] = (segment.header.set_id, self._read(segment.name))
            if len(self._open) > SEGMENTS_OPEN_MAX:
                self._open.popitem(last=False)
        self._open.move_to_end(segment.name)
        return known[1]

    def _read(self, name: SegmentName) -> SegmentReader:
        try:
            return read_segment(self._directory, name)
        except FileNotFoundError:
            raise JustDeleted("a part of the range has just expired; ask again") from None

    def _look(self, name: SegmentName) -> None:
        """Read the headers of a segment, unless its index is the one that is known."""
        path = self._path(name, ".idx")
        try:
            found = os.stat(path)
            stamp = (found.st_ino, found.st_mtime_ns)
            if name in self._known and self._known[name][0] == stamp:
                return
            with open(path, "rb") as file:
                header = fmt.parse_header(file.read(fmt.INDEX_HEADER_SIZE))
            self._check(name, header)
        except FileNotFoundError:  # of the index: it has gone this moment
            self._known.pop(name, None)
            return
        except Damaged as damage:
            corrupt = Corrupt(path, damage.offset, damage.reason)
            logger.error("segment is damaged: %s", corrupt)
            self._known[name] = (stamp, corrupt)
            return
        size = header.seg_size + header.props_size + found.st_size
        self._known[name] = (stamp, Segment(name, header, found.st_mtime_ns, size))

    def _check(self, name: SegmentName, header: SegmentHeader) -> None:
        """Raise Damaged when the three files do not belong together."""
        if header.name != name:
            raise Damaged(0, "the index belongs to another segment")
        wanted = ((".seg", header.seg_size, header.seg_crc),)
        for suffix, size, crc in (*wanted, (".props", header.props_size, header.props_crc)):
            try:
                with open(self._path(name, suffix), "rb") as file:
                    found, found_crc = fmt.parse_file_header(suffix, file.read(fmt.HEADER_SIZE))
                    found_size = os.fstat(file.fileno()).st_size
            except FileNotFoundError:
                if not os.path.exists(self._path(name, ".idx")):
                    raise
                raise Damaged(0, f"{name.file(suffix)} is missing") from None
            if (found.set_id, found_crc, found_size) != (header.set_id, crc, size):
                raise Damaged(0, f"{name.file(suffix)} does not belong to it")

    def _path(self, name: SegmentName, suffix: str) -> str:
        return os.path.join(self._directory, name.file(suffix))


def read_segment(directory: str, name: SegmentName) -> SegmentReader:
    """Return the reader of a segment.  Raises Corrupt, FileNotFoundError."""
    paths = [os.path.join(directory, name.file(suffix)) for suffix in (".idx", ".seg", ".props")]
    index, seg, props = (map_file(path, random=True) for path in paths)
    try:
        return SegmentReader(fmt.parse_index(index.data), seg, props)
    except Damaged as damage:
        raise Corrupt(paths[0], damage.offset, damage.reason) from damage

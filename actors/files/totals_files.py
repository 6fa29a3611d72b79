"""The totals files of a data directory: which stand for the log, making them, replacing them.

`totals-<a>-<b>.tot` covers log files a to b.  Those that stand cover one unbroken run from log file
1 on, which is then read from them and not from the log; a file within another one is superseded.
Log file 0, before the first, stands for what was taken over of peers (`adopting/`).
Every change is one atomic write of one name, so there is nothing to recover.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from meterd.actors.files.disk import atomic_write, sync_directory
from meterd.actors.files.mapped import JustDeleted, map_file
from meterd.actors.files.segment_files import read_segment
from meterd.core.log.slice_places import Ints, of_segment
from meterd.core.questions.folded import Folded, fold_question, folded, merged
from meterd.core.questions.gathering import Gathering
from meterd.core.questions.totals_file import SPAN_CELLS, TotalsFile, TotalsWriter
from meterd.core.segments.reader import SegmentReader
from meterd.core.state.erasures import Erasures
from meterd.core.state.registry import Registry
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import Corrupt, Internal, StorageError
from meterd.protocol.log_format import Damaged
from meterd.protocol.segment_format import SegmentName

_NAME = re.compile(r"totals-(\d{12})-(\d{12})\.tot")
# The log file that stands for what was taken over of peers.
ADOPTED = 0
# Rows folded in one go.
FOLD_ROWS = 1 << 18
# Files of about the same size that become one, and what a file may grow to.
MERGE_FILES = 4
CELLS_MAX = 50_000_000

logger = logging.getLogger(__name__)


class Covered(NamedTuple):
    """The log files that a totals file covers."""

    first: int
    last: int

    @property
    def name(self) -> str:
        return f"totals-{self.first:012d}-{self.last:012d}.tot"


def covered_by(name: str) -> Covered | None:
    """Return what a file covers, or None when its name is not that of a totals file."""
    match = _NAME.fullmatch(name)
    return Covered(int(match[1]), int(match[2])) if match else None


def standing(names: Iterable[str]) -> list[Covered]:
    """Return what the files that stand for the log cover, rising: none lies within another."""
    found = sorted(
        (one for one in map(covered_by, names) if one is not None),
        key=lambda one: (one.first, -one.last),
    )
    stand: list[Covered] = []
    for one in found:
        if not stand or one.last > stand[-1].last:
            stand.append(one)
    return stand


def through(directory: str) -> int:
    """Return the last log file that totals files stand for, by their names."""
    stand = standing(os.listdir(directory))
    return stand[-1].last if stand else 0


class TotalsFiles:
    """Opens totals files; each stays open until it is replaced or superseded."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._open: dict[Covered, tuple[int, TotalsFile]] = {}  # with the number of the inode

    def snapshot(self, names: Iterable[str]) -> tuple[TotalsFile, ...]:
        """Return the files that stand, given the names in the directory.

        Raises Internal when one is damaged or does not follow the one before, JustDeleted when
        one has just been superseded.
        """
        stand = standing(names)
        opened: dict[Covered, tuple[int, TotalsFile]] = {}
        files = []
        expected = ADOPTED if stand and stand[0].first == ADOPTED else 1
        for covered in stand:
            if covered.first != expected:
                raise Internal(f"no totals file covers log file {expected}")
            expected = covered.last + 1
            opened[covered] = self._opened(covered)
            files.append(opened[covered][1])
        self._open = opened
        return tuple(files)

    def _opened(self, covered: Covered) -> tuple[int, TotalsFile]:
        path = os.path.join(self._directory, covered.name)
        try:
            inode = os.stat(path).st_ino
            known = self._open.get(covered)
            if known is not None and known[0] == inode:
                return known
            return inode, read_totals(path)
        except FileNotFoundError:
            raise JustDeleted("a part of the range has just expired; ask again") from None
        except Corrupt as damage:
            logger.error("%s", damage)
            raise Internal(f"{covered.name} is damaged") from damage


def read_totals(path: str) -> TotalsFile:
    """Return a totals file, all of whose bytes have checked.  Raises Corrupt, FileNotFoundError."""
    try:
        return TotalsFile(*checkpoint_format.decode(map_file(path).data))
    except Damaged as damage:
        raise Corrupt(path, damage.offset, damage.reason) from damage


class Making(NamedTuple):
    """What is applied to every totals file that is made."""

    horizon: int  # of totals
    erasures: Erasures


def fold(
    directory: str,
    name: SegmentName,
    registry: Registry,
    making: Making,
    step: Callable[[], None] = lambda: None,
) -> int:
    """Make the totals file of one segment, durably; return the events in it.

    step: called now and then; what it raises ends the work.  Raises Corrupt; StorageError when not
    every stored row could be counted, or the segment has just gone.  Nothing is made then.
    """
    try:
        reader = read_segment(directory, name)
    except FileNotFoundError as error:
        raise StorageError(f"{name.file('.seg')} was merged meanwhile, and has gone") from error
    stored = reader.header.row_count
    parts: list[Folded] = []
    erased = 0
    if stored:
        for gathering in _gathered(reader, registry, making, step):
            parts.append(folded(gathering.partial()))
            erased += gathering.erased
    whole = merged(parts).coarsened(making.horizon) if parts else None
    counted = 0 if whole is None else whole.count
    if counted + erased != stored:
        raise StorageError(
            f"{name.file('.seg')} has {stored} events, {counted} could be folded by"
            f" {len(registry.entries)} metrics; it stays"
        )
    covered = Covered(name.first, name.last)
    reached = of_segment(reader.all_slices()).bounds()[1]
    return write(directory, covered, making, [] if whole is None else [whole], reached)


def _gathered(
    reader: SegmentReader, registry: Registry, making: Making, step: Callable[[], None]
) -> Iterator[Gathering]:
    """Yield all rows of a segment, about `FOLD_ROWS` at once."""
    header, entries = reader.header, registry.entries
    question = fold_question(entries, header.min_timestamp, header.max_timestamp)
    gathering, rows = Gathering(question, entries, making.erasures.key, making.erasures), 0
    for runs in reader.runs(gathering.wanted):
        for chunk in reader.chunks(runs, gathering.wanted, gathering.needs_properties, True):
            rows += len(chunk.matches)
            gathering.count_matches(chunk.heap, chunk.matches)
            step()
            if rows >= FOLD_ROWS:
                yield gathering
                gathering = Gathering(question, entries, making.erasures.key, making.erasures)
                rows = 0
    yield gathering


def write(
    directory: str, covered: Covered, making: Making, parts: Iterable[Folded], reached: Ints
) -> int:
    """Write a totals file, durably, replacing one of the same name; return its events."""
    writer = TotalsWriter(*covered, making.horizon, making.erasures.latest, reached)
    for part in parts:
        writer.add(part)
    path = os.path.join(directory, covered.name)
    atomic_write(path, checkpoint_format.encode(*writer.finish()))
    sync_directory(directory)
    return writer.events


class Source(NamedTuple):
    """A totals file of which a new one is made, and what is left out of it."""

    file: TotalsFile
    newer: Erasures  # that are not applied to it yet
    leaves_out: Callable[[str], bool] | None = None  # which accounts besides


def rewrite(directory: str, files: Sequence[TotalsFile], making: Making) -> None:
    """Make one totals file of neighbours: merged, coarsened, without erased accounts.

    Raises StorageError when it would count more or less than they do.
    """
    sources = [Source(file, making.erasures.since(file.applied)) for file in files]
    join(directory, Covered(files[0].first, files[-1].last), sources, making)


def join(directory: str, covered: Covered, sources: Sequence[Source], making: Making) -> int:
    """Make one totals file of others, durably; return its events.

    What was an opening state stays one, also when a partition has come whose horizon is older.
    Raises StorageError when it would count more or less than they do.
    """
    files = [source.file for source in sources]
    making = making._replace(horizon=max(making.horizon, *(file.horizon for file in files)))
    dropped = [0]
    writer = TotalsWriter(*covered, making.horizon, making.erasures.latest, reached_by(files))
    for part in _joined_parts(sources, making, dropped):
        writer.add(part)
    if writer.events + dropped[0] != sum(file.events for file in files):
        raise StorageError(f"{covered.name} would not count what its parts do")
    path = os.path.join(directory, covered.name)
    atomic_write(path, checkpoint_format.encode(*writer.finish()))
    return writer.events


def reached_by(files: Sequence[TotalsFile]) -> Ints | None:
    """Return the greatest index of an op with rows of each partition; None: one does not say."""
    said = [file.reached for file in files]
    known = [one for one in said if one is not None]
    return np.maximum.reduce(known) if known and len(known) == len(said) else None


def _joined_parts(
    sources: Sequence[Source], making: Making, dropped: list[int]
) -> Iterator[Folded]:
    """Yield what files hold, by ranges of accounts that take a bounded memory."""
    for low, high in _account_ranges([source.file for source in sources]):
        parts = []
        for file, newer, leaves_out in sources:
            span = (file.place_of(low), file.account_count if high is None else file.place_of(high))
            part = file.read(span)
            before = part.count
            if len(newer):
                part = part.behind(newer.floor)
            if leaves_out is not None:
                part = part.without(leaves_out)
            dropped[0] += before - part.count
            parts.append(part)
        yield merged(parts).coarsened(making.horizon)


def _account_ranges(files: Sequence[TotalsFile]) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield ranges of accounts in each of which no file has more than two spans of cells."""
    edges = {file.account(low) for file in files for low, _ in file.spans("", False)}
    rising = sorted(edges)
    low = b""
    for high in rising[1:]:
        yield low, high
        low = high
    yield low, None


def to_merge(files: Sequence[TotalsFile]) -> Sequence[TotalsFile]:
    """Return neighbours that are worth merging, or none.

    From the newest on, a file joins while it is at most twice as large as those behind it together:
    so each cell is written a logarithmic number of times, and few files are left to be read.
    """
    first, total = len(files), 0
    while first > 0:
        size = files[first - 1].cell_count
        if (first < len(files) and size > 2 * total + SPAN_CELLS) or total + size > CELLS_MAX:
            break
        total += size
        first -= 1
    chosen = files[first:]
    return chosen if len(chosen) >= MERGE_FILES else ()


def remove_superseded(directory: str, stand: Sequence[Covered], grace: float) -> list[str]:
    """Delete totals files that lie within those that have stood for `grace` seconds.

    A copy that is being made may have listed them.  Returns their names.
    """
    gone = []
    now = time.time()
    for path in Path(directory).glob("totals-*.tot"):
        covered = covered_by(path.name)
        if covered is None or covered in stand:
            continue
        cover = next(
            (s for s in stand if s.first <= covered.first and covered.last <= s.last), None
        )
        if cover is None:
            continue
        age = now - (Path(directory) / cover.name).stat().st_mtime
        if age >= grace:
            path.unlink()
            gone.append(path.name)
    if gone:
        sync_directory(directory)
    return gone

"""Rebuilds the identities of a data directory, when runs or parts of them are lost.

A checkpoint without its identities cannot be used: a node would count an event twice.  Everything
that an identity is made of lies in segments and log files, so they are read up to the position of
the checkpoint, and new runs are written and a checkpoint that names them, which takes the place of
both that could not be used.  Nothing else changes.

Done only when asked for (`meterctl fsck --rebuild-identities`), never by a start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lz4.block
import numpy as np
from numpy.typing import NDArray

from meterd.actors.files import disk
from meterd.actors.files.mapped import map_file
from meterd.actors.keeping import identity_store, run_files
from meterd.actors.keeping.checkpoints import CURRENT, PREVIOUS
from meterd.actors.log.replay import Position
from meterd.actors.questions.log_files import LogFiles
from meterd.actors.starting import identity
from meterd.core.log.scan import FileScan
from meterd.core.state import identity_rebuild, identity_runs
from meterd.core.state.identity_rebuild import BATCH, IdentityRebuild, Rows
from meterd.core.state.identity_runs import memory_source
from meterd.core.state.registry import Registry
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import Corrupt, NotNeeded
from meterd.protocol.limits import I64_MAX
from meterd.protocol.log_format import ACTIVE_NAME, EVENTS, Damaged, full_name

State = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


class Rebuilt(NamedTuple):
    """What was done."""

    damage: Corrupt  # why
    checkpoint: str  # whose position counts
    identities: int
    named: int  # identities of the lost ones, those that had expired included
    files: list[str]  # the new runs
    lacks_erased: bool  # events of erased accounts are gone, and so are their identities


class _Found(NamedTuple):
    """A checkpoint whose identities are lost."""

    name: str
    state: State
    arrays: Arrays
    damage: Corrupt


def rebuild(directory: str, report: Callable[[str], None], batch: int = BATCH) -> Rebuilt:
    """Rebuild the identities of the newest checkpoint that can be read; the caller has the lock.

    Raises NotNeeded when a node would start as it is, Corrupt, DiskFull, FsyncFailed, OSError.
    """
    found, names = _find(Path(directory))
    state = found.state
    key = identity.read(directory).identity_key
    words = (int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))
    registry = Registry.from_bytes(state["registry"])
    work = IdentityRebuild(words, registry, state["leader_time"], state["horizon"], batch)
    number = identity_store.next_number(names)
    runs: list[list[Any]] = []
    files = LogFiles(directory, key)
    for rows in _rows(directory, files, state, report):
        work.take(rows)
        if work.full:
            runs.append(_write(Path(directory), number + len(runs), work))
    if work.count:
        runs.append(_write(Path(directory), number + len(runs), work))
    count = sum(size for _, _, size in runs)
    named = sum(size for kind in ("runs", "parts") for _, _, size in state[kind])
    if count > named:
        path = os.path.join(directory, found.name)
        raise Corrupt(path, 0, f"it names {named} identities, and the log has {count}")
    state = state | {"runs": runs, "parts": []}
    encoded = checkpoint_format.encode(state, found.arrays)
    for name in (CURRENT, PREVIOUS):  # neither could be used as it was
        disk.atomic_write(os.path.join(directory, name), encoded)
    lacks_erased = any(one.header.has_erased for one in files.segments.chosen(I64_MAX))
    made = [name for name, _, _ in runs]
    return Rebuilt(found.damage, found.name, count, named, made, lacks_erased)


def _find(directory: Path) -> tuple[_Found, list[str]]:
    """Return the checkpoint to mend, and all names of identities that are or were in use."""
    names = [path.name for path in directory.glob("ids-*")]
    first: _Found | None = None
    damage: Corrupt | None = None
    for name in (CURRENT, PREVIOUS):
        path = directory / name
        try:
            state, arrays = checkpoint_format.decode(path.read_bytes())
        except FileNotFoundError:
            continue
        except Damaged as error:
            damage = Corrupt(str(path), error.offset, error.reason)
            continue
        names += [file[0] for kind in ("runs", "parts") for file in state[kind]]
        try:
            identity_store.open_named(directory, state)
        except Corrupt as error:
            first = first or _Found(name, state, arrays, error)
        else:
            raise NotNeeded(f"{name} and the identities that it names are whole")
    if first is None:
        raise damage or NotNeeded("there is no checkpoint: a start reads the whole log")
    return first, names


def _write(directory: Path, number: int, work: IdentityRebuild) -> list[Any]:
    """Write what was taken as a run; return its name, level and count."""
    entries = work.take_entries()
    facts = identity_runs.facts_of_entries(entries)
    name = f"ids-{number:012d}.run"
    source = memory_source(entries, facts, np.empty_like(entries))
    return [name, 0, run_files.write_run(directory / name, facts, source)]


def _rows(
    directory: str, files: LogFiles, state: State, report: Callable[[str], None]
) -> Iterator[Rows]:
    """Yield all stored rows up to the checkpoint's position.  Raises Corrupt, Internal."""
    position = Position(*state["position"])
    refused = {number: (packed, count) for number, (packed, count) in state["refused"].items()}
    ends = [segment.name.last for segment in files.segments.complete()]
    _, parts = files.parts(1 + max([*files.full_numbers, *ends], default=0), refused)
    for part in parts:
        if part.first > position.file_number:
            break
        report(f"reading log files {part.first} to {part.last}")
        if part.segment is not None:
            reader, end = files.segments.open(part.segment), I64_MAX
            if part.last >= position.file_number:  # the checkpoint is older than the segment
                end = reader.ordinal_of(position.file_number, position.row)
            yield from identity_rebuild.rows_of_segment(reader, end)
        else:
            stop = position.offset if part.first == position.file_number else None
            yield from _rows_of_log(directory, part.first, stop, refused.get(part.first))


def _rows_of_log(
    directory: str, number: int, end: int | None, refused: tuple[bytes, int] | None
) -> Iterator[Rows]:
    """Yield the stored rows of a log file up to offset `end`."""
    full = os.path.join(directory, full_name(number))
    active = not os.path.exists(full)
    path = os.path.join(directory, ACTIVE_NAME) if active else full
    try:
        scan = FileScan(path, map_file(path).data, active)
    except FileNotFoundError:
        raise Corrupt(full, 0, "the log file is missing") from None
    if scan.header.file_number != number:
        raise Corrupt(path, 0, f"log file {scan.header.file_number} where {number} belongs")
    stored = _stored(refused)
    if end is not None and scan.end.offset >= end:
        return
    for block in scan:
        row = block.header.first_row
        for record in block.records:
            if record.kind == EVENTS:
                kept = stored[row : row + record.row_count]
                if len(kept) < record.row_count:
                    raise Corrupt(path, record.offset, "which of its rows were stored is lost")
                yield identity_rebuild.rows_of_record(record, kept)
            row += record.row_count
        if end is not None and scan.end.offset >= end:
            return
    if end is not None:
        raise Corrupt(path, scan.end.offset, f"ends before offset {end} of the checkpoint")


def _stored(refused: tuple[bytes, int] | None) -> NDArray[np.bool_]:
    """Return which rows of a log file were stored."""
    packed, count = refused or (b"", 0)
    if not count:
        return np.zeros(0, np.bool_)
    bits = np.frombuffer(lz4.block.decompress(packed), np.uint8)
    return ~np.unpackbits(bits, count=count, bitorder="little").astype(np.bool_)

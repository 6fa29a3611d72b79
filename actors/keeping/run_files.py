"""Writes and opens the files of identity runs, `ids-<n>.run`.

A run is written around the page cache, in pieces, and takes its name when it is durable.  It is
checked whole when it is opened after a start, so a damaged one is never asked; its lines are then
brought into memory, because what the filter lets through reads them.  Its entries are mapped twice:
for look-ups, of which each needs one page, and for who reads them all, so that the system reads
ahead.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from meterd.actors.files import disk
from meterd.actors.files.direct_file import PIECE_SIZE, Window, begin_direct, page_memory
from meterd.core.kernels import runs as kernels
from meterd.core.state.identity_runs import Facts, Run, RunMaker, Source
from meterd.protocol import run_format
from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import Damaged
from meterd.protocol.run_format import PAGE, RunHeader

# Linux: read the pages of a mapping now (module mmap lacks the name).
MADV_POPULATE_READ = 22

# The method of module mmap keeps the interpreter while the system reads.
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _Section:
    """One array of a run on its way to the file."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._memory = memoryview(page_memory(PIECE_SIZE))
        self._array = np.frombuffer(self._memory, np.uint8)
        self._used = 0
        self.size = self.crc = 0

    def add(self, array: Any) -> None:
        """Add bytes behind the last."""
        source = array.reshape(-1).view(np.uint8)
        self.size += len(source)
        self.crc = crc32c(source, self.crc)
        at = 0
        while at < len(source):
            step = min(len(source) - at, PIECE_SIZE - self._used)
            self._array[self._used : self._used + step] = source[at : at + step]
            self._used += step
            at += step
            if self._used == PIECE_SIZE:
                self._write()

    def finish(self) -> None:
        """Write what is left, and zeros up to the next page."""
        used = self._used
        self._used = -(-used // PAGE) * PAGE
        self._array[used : self._used] = 0
        self._write()

    def _write(self) -> None:
        self._offset += disk.write_all(self._descriptor, self._memory[: self._used], self._offset)
        self._used = 0


def write_run(path: Path, facts: Facts, source: Source) -> int:
    """Write a run, durably; return how many entries it has (none: no file).
    Raises DiskFull, FsyncFailed, OSError; then there is no file.
    """
    temporary = path.with_name(path.name + ".tmp")
    with disk.full_disk_told():
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, disk.FILE_MODE)
    try:
        begin_direct(descriptor)
        header = _write(descriptor, facts, source)
        if header.count:
            disk.sync_file(descriptor)
            with disk.full_disk_told():
                os.rename(temporary, path)
            disk.sync_directory(path.parent)
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
    return header.count


def _write(descriptor: int, facts: Facts, source: Source) -> RunHeader:
    line_count = int(facts[kernels.LINES]) + kernels.SPILL_MAX
    sizes = (line_count * run_format.LINE_SIZE, line_count * 4, 0)
    planned = header_of(facts, sizes, (0, 0, 0))
    sections = [_Section(descriptor, offset) for offset in planned.offsets]
    maker = RunMaker(facts)
    for piece in maker.pieces(source):
        for section, array in zip(sections, piece, strict=True):
            section.add(array)
    sections[2].add(np.zeros(kernels.ENTRIES_MARGIN, np.uint8))
    for section in sections:
        section.finish()
    lines, starts, entries = sections
    header = header_of(
        facts, (lines.size, starts.size, entries.size), (lines.crc, starts.crc, entries.crc)
    )
    page = memoryview(page_memory(PAGE))
    page[:] = run_format.encode_header(header)
    disk.write_all(descriptor, page, 0)
    return header


def header_of(facts: Facts, sizes: tuple[int, int, int], crcs: tuple[int, int, int]) -> RunHeader:
    """Return the header of a run with these facts."""
    return RunHeader(
        int(facts[kernels.KEY_BYTES]),
        int(facts[kernels.DAY_BYTES]),
        int(facts[kernels.LINES]),
        int(facts[kernels.FIRST_DAY]),
        int(facts[kernels.NEWEST_DAY]),
        int(facts[kernels.COUNT]),
        sizes,
        crcs,
    )


def facts_of(header: RunHeader) -> Facts:
    """Return the facts that kernels read."""
    facts = np.zeros(kernels.FACT_WORDS, np.int64)
    facts[kernels.KEY_BYTES], facts[kernels.DAY_BYTES] = header.key_bytes, header.day_bytes
    facts[kernels.LINES], facts[kernels.COUNT] = header.lines, header.count
    facts[kernels.FIRST_DAY], facts[kernels.NEWEST_DAY] = header.first_day, header.newest_day
    return facts


def open_run(path: Path, check: bool) -> Run:
    """Return a run, mapped.  Raises Corrupt when it is damaged (its arrays: when `check`)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Corrupt(str(path), 0, "a checkpoint names it, and it is missing") from None
    try:
        begin_direct(descriptor)
        window, size = Window(), os.fstat(descriptor).st_size
        header = run_format.parse_header(window.read(descriptor, 0, PAGE), size)
        if check:
            _check(window, descriptor, header)
        mapped, again = (mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) for _ in range(2))
    except Damaged as damage:
        raise Corrupt(str(path), damage.offset, damage.reason) from damage
    finally:
        os.close(descriptor)
    lines, starts, entries = (
        np.frombuffer(mapped, np.uint8, length, offset)
        for length, offset in zip(header.sizes, header.offsets, strict=True)
    )
    for array in (lines, starts):
        _advise(array, mmap.MADV_WILLNEED)
        _advise(array, MADV_POPULATE_READ)  # a kernel before 5.14 refuses it
    scan = np.frombuffer(again, np.uint8, header.sizes[2], header.offsets[2])
    _advise(entries, mmap.MADV_RANDOM)
    _advise(scan, mmap.MADV_SEQUENTIAL)
    return Run(lines.view(np.uint16), starts.view(np.uint32), entries, scan, facts_of(header))


def _advise(array: Any, advice: int) -> None:
    """Tell the system about the pages of an array; it is free to refuse."""
    _madvise(array.ctypes.data, array.nbytes, advice)


def _check(window: Window, descriptor: int, header: RunHeader) -> None:
    """Read a run once and compare checksums.  Raises Damaged."""
    for offset, size, wanted in zip(header.offsets, header.sizes, header.crcs, strict=True):
        crc = 0
        for at in range(0, size, PIECE_SIZE):
            piece = window.read(descriptor, offset + at, min(PIECE_SIZE, size - at))
            crc = crc32c(piece, crc)
        if crc != wanted:
            raise Damaged(offset, "the checksum of an array does not match")

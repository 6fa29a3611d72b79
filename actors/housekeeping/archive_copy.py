"""Copies one full log file into the archive, and proves that the copy is there.

A copy counts only when it was read back (or, if the operator wishes no more, has the right size;
what was there before is read back all the same).  Copying again what is there already is fine;
other bytes under its name are an error that nothing here mends, because an archive must never be
overwritten.  Every way to fail has a name (`RESULTS`), so that each is counted.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from meterd.actors.housekeeping.object_store import PIECE_SIZE, ObjectStore
from meterd.core.log.scan import FileScan
from meterd.protocol.errors import (
    Corrupt,
    DiskFull,
    Exists,
    MeterdError,
    NotFound,
    StoreFailed,
)

STORED, PRESENT = "stored", "present"
# How an attempt ends: the first two are good.
RESULTS = (
    STORED,
    PRESENT,
    "failed",  # the store or command says no, or cannot be used
    "signal",  # the command was killed
    "timeout",  # the command took too long
    "unverified",  # it says that the copy is stored, and it is not
    "different",  # other bytes are stored under the name
    "damaged",  # the log file itself does not check
)
# What the parts of a command may hold, for a path or a name to take its place.
PLACEHOLDER = re.compile(r"\{(?:path|name)\}")
# How often to look whether a command has ended.
LOOK_SECONDS = 0.05
# So much of what a command wrote to standard error is repeated.
STDERR_SIZE_MAX = 300

# Told how many bytes more are done; raises when the job is cancelled.
Advance = Callable[[int], None]


class ArchiveFailed(MeterdError):
    """A log file is not in the archive; `result` says how that failed."""

    code = "archive_failed"
    retry = "later"
    hint = "check the archive's target or command; meterctl wal status"

    def __init__(self, result: str, message: str) -> None:
        super().__init__(message)
        self.result = result


class Copier(Protocol):
    """Copies one file at a time."""

    def copy(self, path: str, name: str, advance: Advance) -> str:
        """Return "stored" or "present".  Raises ArchiveFailed, and what `advance` raises."""


def check_log_file(path: str) -> None:
    """Make sure that a full log file is worth copying.  Raises ArchiveFailed."""
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for _ in FileScan(path, data):
            pass
    except (Corrupt, OSError, ValueError) as error:
        raise ArchiveFailed("damaged", f"it is not archived: {error}") from error


class StoreCopier:
    """Copies into an object store."""

    def __init__(self, store: ObjectStore, read_back: bool) -> None:
        self._store = store
        self._read_back = read_back

    def copy(self, path: str, name: str, advance: Advance) -> str:
        try:
            result = self._put(path, name, advance)
            self._verify(path, name, result, advance)
        except (StoreFailed, DiskFull, OSError) as error:
            raise ArchiveFailed("failed", str(error)) from error
        return result

    def _put(self, path: str, name: str, advance: Advance) -> str:
        try:
            with open(path, "rb") as file:
                self._store.put(name, Watched(file, advance))
        except Exists:
            return PRESENT
        return STORED

    def _verify(self, path: str, name: str, result: str, advance: Advance) -> None:
        found, size = self._store.size(name), os.stat(path).st_size
        if found is None:
            raise ArchiveFailed("unverified", f"{self._store.url} has no {name} after storing it")
        if found != size:
            raise _different(name, f"{found} bytes are stored, {size} were expected")
        # Of what was there already nothing but its bytes says that it is this file.
        if self._read_back or result == PRESENT:
            try:
                compare(path, self._store.get(name), name, advance)
            except NotFound as error:
                raise ArchiveFailed("unverified", str(error)) from error


class CommandCopier:
    """Copies by a command of the operator, which is given the file's path and a name."""

    def __init__(self, command: str, verify_command: str, timeout: float) -> None:
        self._command = command
        self._verify_command = verify_command
        self._timeout = timeout

    def copy(self, path: str, name: str, advance: Advance) -> str:
        """A command that fails where the very copy is stored already has not failed."""
        try:
            return self._copy(path, name, advance)
        except OSError as error:  # no room for what a command says, or the file has gone
            raise ArchiveFailed("failed", str(error)) from error

    def _copy(self, path: str, name: str, advance: Advance) -> str:
        failure: ArchiveFailed | None = None
        try:
            with self._started(self._command, path, name, subprocess.DEVNULL) as command:
                command.wait(advance)
        except ArchiveFailed as error:
            failure = error
        if self._verify_command:
            self._verify(path, name, failure, advance)
            return STORED if failure is None else PRESENT
        if failure is not None:
            raise failure
        return STORED

    def _verify(
        self, path: str, name: str, failure: ArchiveFailed | None, advance: Advance
    ) -> None:
        """Compare what is stored.  Raises the failure of the storing if nothing is."""
        try:
            with self._started(self._verify_command, path, name, subprocess.PIPE) as command:
                compare(path, command.output(advance), name, advance)
        except ArchiveFailed as error:
            if error.result == "different":
                raise
            raise failure or ArchiveFailed("unverified", error.message) from error

    @contextlib.contextmanager
    def _started(self, command: str, path: str, name: str, output: int) -> Iterator[Command]:
        values = {"{path}": path, "{name}": name}
        # At once: what a path itself holds in braces is no placeholder.
        arguments = [
            PLACEHOLDER.sub(lambda found: values[found[0]], part) for part in shlex.split(command)
        ]
        with tempfile.TemporaryFile() as errors:
            deadline = time.monotonic() + self._timeout
            running = Command(arguments, output, errors, deadline)
            try:
                yield running
            finally:
                running.end()


class Command:
    """One run of a command, with everything that it starts."""

    def __init__(
        self, arguments: list[str], output: int, errors: BinaryIO, deadline: float
    ) -> None:
        self._name = arguments[0]
        self._errors = errors
        self._deadline = deadline
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ArchiveFailed("failed", f"{self._name}: {error}") from error

    def output(self, advance: Advance) -> Iterator[bytes]:
        """Yield what it writes; at the end it must have ended well.  Raises ArchiveFailed."""
        stream = self._process.stdout
        assert stream is not None
        while True:
            self._check_time(advance)
            if not select.select([stream], [], [], LOOK_SECONDS)[0]:
                continue
            piece = os.read(stream.fileno(), PIECE_SIZE)
            if not piece:
                break
            yield piece
        self.wait(advance)

    def wait(self, advance: Advance) -> None:
        """Return when it has ended well.  Raises ArchiveFailed."""
        while self._process.poll() is None:
            self._check_time(advance)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LOOK_SECONDS)
        code = self._process.returncode
        if code < 0:
            raise ArchiveFailed("signal", f"{self._name} was ended by signal {-code}{self._said()}")
        if code > 0:
            raise ArchiveFailed("failed", f"{self._name} ended with {code}{self._said()}")

    def end(self) -> None:
        """Make sure that it has ended."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _check_time(self, advance: Advance) -> None:
        advance(0)
        if time.monotonic() >= self._deadline:
            raise ArchiveFailed("timeout", f"{self._name} takes longer than archive.timeout")

    def _said(self) -> str:
        self._errors.seek(0)
        text = self._errors.read(STDERR_SIZE_MAX).decode(errors="replace").strip()
        return f": {text}" if text else ""


class Watched:
    """An open file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, advance: Advance) -> None:
        self._file = file
        self._advance = advance

    def read(self, size: int, /) -> bytes:
        piece = self._file.read(size)
        self._advance(len(piece))
        return piece


def compare(path: str, stored: Iterator[bytes], name: str, advance: Advance) -> None:
    """Compare a file with what is stored.  Raises ArchiveFailed when they differ, OSError."""
    offset = 0
    with Path(path).open("rb") as file:
        for piece in stored:
            if file.read(len(piece)) != piece:
                raise _different(name, f"other bytes are stored, from offset {offset} on or behind")
            offset += len(piece)
            advance(len(piece))
        if offset < os.fstat(file.fileno()).st_size:
            raise _different(name, f"only {offset} bytes are stored")


def _different(name: str, what: str) -> ArchiveFailed:
    return ArchiveFailed("different", f"{name}: {what}; nothing is overwritten")

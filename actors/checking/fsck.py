"""Checks a data directory that no node uses, and changes nothing in it.

The first checks are those of a start, by the same code and in the same order
(`starting/start_checks.py`); at level `full` every other byte of every file follows
(`fsck_files.py`).  A start ends with the first damage; here all of it is found.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from meterd.actors.checking import fsck_files
from meterd.actors.checking.fsck_files import DAMAGE, NEWER, NOTE, WARNING, Finding
from meterd.actors.endings import CORRUPT
from meterd.actors.files.reading_disk import ReadingDisk
from meterd.actors.keeping.identity_store import open_named
from meterd.actors.log.wal_recovery import Owner, Recovery, Start
from meterd.actors.starting import identity, start_checks, storage_versions
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import BootFailed, Busy, Corrupt, NotFound
from meterd.protocol.log_format import ACTIVE_NAME, SPARE_NAME, Damaged

Level = Literal["quick", "full"]

IDENTITIES = "files of identities checked"
LOG_FILES = "all log files checked"
SEGMENT_FILES = "all segments checked"
CONTAINERS = "other files checked"
COVERAGE = "log without gaps"
NAMES = "names known"


class Check(NamedTuple):
    """One line of the report."""

    name: str
    findings: list[Finding]
    seconds: float


@contextmanager
def locked(directory: str) -> Iterator[None]:
    """Hold the lock of a directory without making a file.  Raises NotFound, Busy, OSError."""
    if not os.path.isdir(directory):
        raise NotFound(f"{directory} is no directory")
    path = os.path.join(directory, "lock")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # a node would have made it before anything else
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        holder = Path(path).read_text("ascii", "replace").strip() or "(unknown)"
        raise Busy(f"{directory} is in use by process {holder}; stop it first") from None
    finally:
        os.close(descriptor)


class Fsck:
    """Checks one directory, whose lock the caller has; iterate over `run`."""

    def __init__(self, directory: str, level: Level) -> None:
        self._directory = directory
        self._level = level
        self._disk = ReadingDisk()
        self._owner: Owner | None = None
        self._who: identity.Identity | None = None
        self._start: Start | None = None
        self._named: list[dict[str, Any]] = []  # states of checkpoints that could be read
        self._told: set[tuple[str, int | None]] = set()

    def run(self) -> Iterator[Check]:
        """Yield each check when it is done; what was said once is not said again."""
        checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
            (start_checks.DIRECTORY, self._check_directory),
            (start_checks.IDENTITY, self._check_identity),
            (start_checks.CHECKPOINT, self._check_checkpoints),
            (start_checks.LOG, self._check_log),
            (start_checks.SEGMENTS, self._check_segments),
            (IDENTITIES, self._check_identities),
        ]
        if self._level == "full":
            checks += [
                (LOG_FILES, lambda: fsck_files.log_files(self._directory)),
                (SEGMENT_FILES, lambda: fsck_files.segments(self._directory)),
                (CONTAINERS, lambda: fsck_files.containers(self._directory)),
            ]
        checks += [
            (COVERAGE, lambda: fsck_files.coverage(self._directory, self._named)),
            (NAMES, lambda: fsck_files.names(self._directory, self._named)),
        ]
        for name, check in checks:
            began = time.monotonic()
            found = [finding for finding in check() if self._is_new(finding)]
            yield Check(name, found, time.monotonic() - began)

    def _is_new(self, finding: Finding) -> bool:
        place = (finding.file, finding.offset)
        known = place in self._told
        self._told.add(place)
        return not known

    def _finding(self, error: Corrupt) -> Finding:
        return fsck_files.of_corrupt(error)

    def _check_directory(self) -> Iterator[Finding]:
        if not os.access(self._directory, os.W_OK | os.X_OK):
            yield Finding(WARNING, "", None, "this user must not write here; a node could not")

    def _check_identity(self) -> Iterator[Finding]:
        newer = list(storage_versions.newer_files(self._directory))
        for found in newer:
            yield Finding(NEWER, os.path.basename(found.path), 0, str(found))
        if not os.path.exists(os.path.join(self._directory, identity.FILE_NAME)):
            yield Finding(DAMAGE, identity.FILE_NAME, 0, "it is missing")
            return
        try:
            who = identity.read(self._directory)
        except BootFailed as failure:
            severity = DAMAGE if failure.exit_code == CORRUPT else NEWER
            yield Finding(severity, identity.FILE_NAME, 0, failure.reason)
        else:
            self._owner = Owner.of(who, self._directory)
            self._who = who
            if identity.is_copy(self._directory, who):
                said = "a copy: its first start settles what it caught half"
                yield Finding(NOTE, identity.FILE_NAME, None, said)

    def _check_checkpoints(self) -> Iterator[Finding]:
        try:
            self._start = start_checks.check_checkpoints(self._disk, self._directory)
        except Corrupt as error:
            yield self._finding(error)
        for name in start_checks.CHECKPOINTS:
            path = Path(self._directory, name)
            if not path.exists():
                continue
            yield from fsck_files.container(path)
            try:
                self._named.append(checkpoint_format.read_state(path.read_bytes()))
            except Damaged:
                continue  # it was said

    def _check_log(self) -> Iterator[Finding]:
        if self._owner is None:
            return
        try:
            end = Recovery(
                self._disk, self._directory, self._owner, self._start, lambda _: None, self._who
            ).run()
        except Corrupt as error:
            yield self._finding(error)
            return
        for new, old in self._disk.renamed.items():
            said = f"it becomes {os.path.basename(new)} at the next start: a crash came between"
            yield Finding(NOTE, os.path.basename(old), None, said)
        if end is not None and end.torn is not None:
            said = "the last write was torn and never acknowledged; a start removes it"
            name = SPARE_NAME if self._disk.renamed else ACTIVE_NAME
            yield Finding(WARNING, name, end.torn.start, said)

    def _check_segments(self) -> Iterator[Finding]:
        if self._owner is None:
            return
        try:
            start_checks.check_segments(self._disk, self._directory, self._owner, self._start)
        except Corrupt as error:
            yield self._finding(error)

    def _check_identities(self) -> Iterator[Finding]:
        """Check what each checkpoint names, all of it: a start does so too."""
        known: set[str] = set()
        for state in self._named:
            for kind in ("runs", "parts"):
                for file in state[kind]:
                    if file[0] in known:
                        continue
                    known.add(file[0])
                    try:
                        open_named(Path(self._directory), {"runs": [], "parts": [], kind: [file]})
                    except Corrupt as error:
                        yield self._finding(error)
                        continue
                    if self._level == "full":
                        yield from fsck_files.identities(Path(self._directory, file[0]))

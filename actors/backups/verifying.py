"""Finds out whether backups are what they were: by manifest, by checksum, by replay.

manifest: every file of the chain is there and has its size.  checksum: and its content.  replay:
the backup is restored into a scratch directory, its log replayed, and what comes out compared
with the manifest: position, groups and digests, control totals.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meterd.actors.backups.replaying import Replayed, replay_directory
from meterd.actors.backups.shelf import Contents, Shelf
from meterd.actors.files.disk import FILE_MODE, sync_data, sync_directory, write_all
from meterd.core.housekeeping.control_totals import differences
from meterd.protocol.backup_manifest import FILE_NAME, BackupFile, Manifest
from meterd.protocol.errors import BootFailed, Corrupt, InvariantViolation, NotFound, StorageError
from meterd.protocol.log_format import ACTIVE_NAME

Level = Literal["manifest", "checksum", "replay"]
DIFFERENCES_MAX = 20
# Files fetched at once: hashing takes one processor, the store's and the disk's delays another.
FILES_AT_ONCE = 4

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with a backup."""

    backup: str
    file: str  # as it lies in the store
    problem: str


class Verification:
    """Verifies the backups of a shelf; files that several share are read once."""

    def __init__(
        self, shelf: Shelf, contents: Contents, scratch: str | None, say: Progress
    ) -> None:
        self._shelf = shelf
        self._contents = contents
        self._scratch = scratch
        self._say = say
        self._hashes: dict[str, str] = {}  # by object

    def verify(self, name: str, level: Level) -> list[Finding]:
        """Return what is wrong with a backup.  Raises StoreFailed, DiskFull."""
        broken = self._contents.broken.get(name)
        if broken is not None:
            return [Finding(name, f"{name}/{FILE_NAME}", broken)]
        manifest = self._contents.manifests[name]
        findings = [Finding(name, *one) for one in self._contents.chain_problems(manifest)]
        findings += self._check_sizes(manifest)
        if level != "manifest":
            findings += self._check_hashes(manifest, {one.file for one in findings})
        if level == "replay" and not findings:
            findings = list(self._check_replay(manifest))
        return findings

    def _check_sizes(self, manifest: Manifest) -> Iterator[Finding]:
        for file in manifest.files:
            size = self._contents.sizes.get(file.object_name)
            if size is None:
                yield Finding(manifest.name, file.object_name, "it is missing")
            elif size != file.size:
                problem = f"it has {size} bytes where {file.size} belong"
                yield Finding(manifest.name, file.object_name, problem)

    def _check_hashes(self, manifest: Manifest, known: set[str]) -> Iterator[Finding]:
        for file in manifest.files:
            if file.object_name in known:
                continue
            self._say(f"reading {file.object_name}")
            try:
                found = self._hash_of(file)
            except NotFound:
                yield Finding(manifest.name, file.object_name, "it is missing")
                continue
            if found != file.sha256:
                yield Finding(manifest.name, file.object_name, "its content has changed (SHA-256)")

    def _hash_of(self, file: BackupFile) -> str:
        found = self._hashes.get(file.object_name)
        if found is None:
            digest = hashlib.sha256()
            for piece in self._shelf.store.get(file.object_name):
                digest.update(piece)
            found = self._hashes[file.object_name] = digest.hexdigest()
        return found

    def _check_replay(self, manifest: Manifest) -> Iterator[Finding]:
        scratch = tempfile.mkdtemp(prefix="meterd-verify-", dir=self._scratch)
        try:
            fetch(self._shelf, manifest, scratch, self._say)
            yield from check_directory(manifest, scratch, self._say)
        finally:
            shutil.rmtree(scratch)


def check_directory(manifest: Manifest, directory: str, say: Progress) -> Iterator[Finding]:
    """Say what is wrong with what a fetched backup brings back."""
    try:
        committed = {group: index for group, (_, index, _) in manifest.cut.groups.items()}
        names = [file.name for file in manifest.files]
        found = replay_directory(directory, names, say, committed)
    except Corrupt as corrupt:
        file = _object_of(manifest, os.path.basename(corrupt.path))
        yield Finding(manifest.name, file, f"at offset {corrupt.offset}: {corrupt.reason}")
    except (StorageError, BootFailed, InvariantViolation) as error:
        yield Finding(manifest.name, f"{manifest.name}/{FILE_NAME}", str(error))
    else:
        log = _object_of(manifest, ACTIVE_NAME)
        yield from (Finding(manifest.name, log, one) for one in _wrong_end(manifest, found))
        for problem in _contradictions(manifest, found):
            yield Finding(manifest.name, f"{manifest.name}/{FILE_NAME}", problem)


def _wrong_end(manifest: Manifest, found: Replayed) -> Iterator[str]:
    cut = manifest.cut
    if (found.position.file_number, found.position.offset) != (cut.file_number, cut.offset):
        yield f"the log ends at {found.position[:2]}, not at {(cut.file_number, cut.offset)}"
    if found.sequence != cut.sequence:
        yield f"the last record is {found.sequence}, not {cut.sequence}"


def _contradictions(manifest: Manifest, found: Replayed) -> Iterator[str]:
    cut = manifest.cut
    groups = {
        group: (term, index, digest.hex())
        for group, (term, index, digest) in found.groups.packed()["groups"].items()
    }
    for group in sorted(groups.keys() | cut.groups.keys()):
        if groups.get(group) != cut.groups.get(group):
            yield f"group {group} is at {groups.get(group)}, not at {cut.groups.get(group)}"
    wrong = list(differences(found.totals, manifest.totals))
    yield from wrong[:DIFFERENCES_MAX]
    if len(wrong) > DIFFERENCES_MAX:
        yield f"{len(wrong) - DIFFERENCES_MAX} more totals differ"


def _object_of(manifest: Manifest, name: str) -> str:
    for file in manifest.files:
        if file.name == name:
            return file.object_name
    return name


def fetch(shelf: Shelf, manifest: Manifest, directory: str, say: Progress) -> None:
    """Bring the files of a backup into a directory, durably.

    Raises Corrupt naming the object when one is not what it was, StoreFailed, DiskFull.
    """
    largest_first = sorted(manifest.files, key=lambda file: -file.size)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        fetched = {
            pool.submit(_fetch_one, shelf, file, Path(directory, file.name)): file
            for file in largest_first
        }
        try:
            for done in as_completed(fetched):
                say(f"fetched {fetched[done].object_name}")
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    sync_directory(directory)


def _fetch_one(shelf: Shelf, file: BackupFile, path: Path) -> None:
    digest, offset = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        for piece in shelf.store.get(file.object_name):
            digest.update(piece)
            offset += write_all(descriptor, piece, offset)
        sync_data(descriptor)
    except NotFound:
        raise Corrupt(file.object_name, 0, "it is missing") from None
    finally:
        os.close(descriptor)
    if digest.hexdigest() != file.sha256:
        raise Corrupt(file.object_name, 0, "its content has changed (SHA-256)")

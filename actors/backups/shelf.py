"""The backups in a store: which are there, which were never finished, and their manifests.

A backup is what lies under one name beside a manifest, which is written last.  In a directory it
is made under `NAME.partial`, which is renamed when it is whole; a bucket knows no renaming, so
there it is the manifest alone that makes it one.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from meterd.actors.files.disk import sync_directory
from meterd.actors.housekeeping.object_store import DirectoryStore, ObjectStore, open_store
from meterd.protocol import backup_manifest
from meterd.protocol.backup_manifest import BadManifest, Manifest
from meterd.protocol.errors import NotFound, StoreFailed

PARTIAL = ".partial"
NAME_PREFIX = "meterd-"
# How often to look again while backups are made or deleted in the same place.
LOOKS_MAX = 10


@dataclass
class Contents:
    """What a store holds."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # backup → what is wrong with it
    partial: list[str] = field(default_factory=list)  # names as they lie in the store
    sizes: dict[str, int] = field(default_factory=dict)  # of every object

    def chain_problems(self, manifest: Manifest) -> Iterator[tuple[str, str]]:
        """Say (object, problem) of every backup of a chain that is not what was built on."""
        for place, base in enumerate(manifest.chain):
            found = self.manifests.get(base)
            file = f"{base}/{backup_manifest.FILE_NAME}"
            if found is None:
                yield file, self.broken.get(base, "a backup of the chain is missing")
            elif found.chain != manifest.chain[:place]:
                yield file, "it is not the one that this was built on"


class Shelf:
    """The backups of one store."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._renames = isinstance(store, DirectoryStore)

    @classmethod
    def at(cls, url: str) -> Shelf:
        """Open a directory or URL.  Raises BadRequest, StoreFailed."""
        return cls(open_store(url))

    def contents(self) -> Contents:
        """Look at everything.  Raises StoreFailed."""
        directories = self._directories()
        for _ in range(LOOKS_MAX):
            found = self._look(directories)
            # What has got another name meanwhile was seen in pieces: it would pass for damaged.
            before, directories = directories, self._directories()
            if directories == before:
                break
        return found

    def _directories(self) -> set[str]:
        """Return the names in a directory of backups, also of those that have no file yet."""
        names: set[str] = set()
        if self._renames:
            with contextlib.suppress(OSError):  # the store says that better
                names = {entry.name for entry in os.scandir(self.store.url) if entry.is_dir()}
        return names

    def _look(self, directories: set[str]) -> Contents:
        found = Contents()
        found.sizes = {one.name: one.size for one in self.store.list()}
        names = {name.partition("/")[0] for name in found.sizes if "/" in name} | directories
        for name in sorted(name for name in names if name.startswith(NAME_PREFIX)):
            if name.endswith(PARTIAL):
                found.partial.append(name)
            elif f"{name}/{backup_manifest.FILE_NAME}" in found.sizes:
                self._read_into(found, name)
            elif self._renames:
                found.broken[name] = f"{backup_manifest.FILE_NAME} is missing"
            else:
                found.partial.append(name)
        return found

    def _read_into(self, found: Contents, name: str) -> None:
        try:
            found.manifests[name] = self.manifest(name)
        except (BadManifest, NotFound) as error:
            found.broken[name] = f"{backup_manifest.FILE_NAME}: {error}"

    def manifest(self, name: str) -> Manifest:
        """Read the manifest of a backup.  Raises BadManifest, NotFound, StoreFailed."""
        raw = bytearray()
        for piece in self.store.get(f"{name}/{backup_manifest.FILE_NAME}"):
            raw += piece
            if len(raw) > backup_manifest.SIZE_MAX:
                raise BadManifest("it is larger than any manifest")
        manifest = backup_manifest.decode(bytes(raw))
        if manifest.name != name:
            raise BadManifest(f"it is the manifest of {manifest.name}")
        return manifest

    def place(self, name: str) -> str:
        """Return where the objects of a backup that is being made lie."""
        return name + PARTIAL if self._renames else name

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest, and make the backup one.  Raises StoreFailed, DiskFull."""
        name = manifest.name
        raw = io.BytesIO(backup_manifest.encode(manifest))
        self.store.put(f"{self.place(name)}/{backup_manifest.FILE_NAME}", raw)
        if self._renames:
            root = Path(self.store.url)
            try:
                os.rename(root / self.place(name), root / name)
                sync_directory(root)
            except OSError as error:
                raise StoreFailed(f"{root}: {name}: {error}") from error

    def remove(self, place: str) -> None:
        """Delete a backup, its manifest first, or what is left of one.  Raises StoreFailed."""
        if self._renames:
            self._remove_directory(place)
            return
        manifest = f"{place}/{backup_manifest.FILE_NAME}"
        names = [one.name for one in self.store.list(f"{place}/")]
        for name in sorted(names, key=lambda name: name != manifest):
            self.store.delete(name)

    def _remove_directory(self, place: str) -> None:
        """Delete a directory; what is half deleted must not look like a backup."""
        path = Path(self.store.url, place)
        try:
            if not place.endswith(PARTIAL):
                path = path.rename(path.with_name(place + PARTIAL))
                sync_directory(path.parent)
            shutil.rmtree(path)
        except OSError as error:
            raise StoreFailed(f"{self.store.url}: {place}: {error}") from error

"""What a disk may hold after some of the calls that a `DiskTrace` has noted.

* each 512-byte sector written since the file's last sync has its old content or that of any write
  since, independently of all others; likewise the file's size;
* of the names changed since their directory's last sync the first few are kept, the rest is lost;
* with `kept=True` nothing is lost: a process was killed and the machine runs on.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from meterd.actors.starting import identity
from meterd.protocol.errors import BootFailed
from tests.support.disk_trace import Call, DiskTrace, Name

SECTOR = 512


@dataclass
class Content:
    """What is known of a file: as everybody sees it, and what of it is durable."""

    is_directory: bool = False
    seen: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    versions: dict[int, list[bytes]] = field(default_factory=dict)  # sector: written since
    sizes: list[int] = field(default_factory=list)  # since the sync
    lost: set[int] = field(default_factory=set)  # sectors that the kernel has given up

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.seen):
            self.resize(end)
        self.seen[offset:end] = data
        for sector in range(offset // SECTOR, -(-end // SECTOR)):
            written = bytes(self.seen[sector * SECTOR : (sector + 1) * SECTOR])
            self.versions.setdefault(sector, []).append(written)
            self.lost.discard(sector)

    def resize(self, size: int) -> None:
        if size < len(self.seen):
            del self.seen[size:]
        else:
            self.seen += bytes(size - len(self.seen))
        self.sizes.append(size)

    def sync(self) -> None:
        """All is durable but what an earlier sync has failed to write."""
        durable = bytearray(self.seen)
        for sector in self.lost:
            old = self.durable[sector * SECTOR : (sector + 1) * SECTOR].ljust(SECTOR, b"\0")
            durable[sector * SECTOR : (sector + 1) * SECTOR] = old
        self.durable = bytes(durable[: len(self.seen)])
        self.versions = {n: self.versions[n] for n in self.lost if n in self.versions}
        self.sizes.clear()

    def crashed(self, random: Random) -> bytes:
        """What may be there after a power cut."""
        size = random.choice([len(self.durable), *self.sizes])
        content = bytearray(self.durable[:size].ljust(size, b"\0"))
        kept = random.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for sector, versions in sorted(self.versions.items()):
            if random.random() < kept:
                written = random.choice(versions)
                content[sector * SECTOR : sector * SECTOR + len(written)] = written
        return bytes(content[:size])


class DiskImage:
    """The disk after some of the calls of a trace; `write_to` makes a directory of it."""

    def __init__(self, trace: DiskTrace, end: int) -> None:
        """`end`: how many of the calls were made."""
        self._inodes = trace.inodes
        self._contents: dict[int, Content] = {0: Content(is_directory=True)}
        self._durable: dict[Name, int] = {}
        self._pending: list[tuple[tuple[Name, int | None], ...]] = []
        for name, number, data in trace.start:
            self._durable[name] = number
            content = self._contents.setdefault(number, Content(data is None))
            content.durable, content.seen = data or b"", bytearray(data or b"")
        for call in trace.calls[:end]:
            self._apply(call)

    def _apply(self, call: Call) -> None:
        if call.kind == "names":
            for _, number in call.names:
                if number is not None:
                    self._contents.setdefault(number, Content(is_directory=call.file < 0))
            self._pending.append(call.names)
        elif call.kind == "sync_names":
            self._sync_names(call.file)
        elif call.kind == "write":
            self._contents[call.file].write(call.data, call.offset)
        elif call.kind == "size":
            self._contents[call.file].resize(call.offset)
        elif call.kind == "sync":
            self._contents[call.file].sync()
        elif call.kind == "lost":
            content = self._contents[call.file]
            content.lost |= set(content.versions)

    def _sync_names(self, directory: int) -> None:
        """A journal keeps the order: what came before the last change there is durable, too."""
        touched = [
            place
            for place, names in enumerate(self._pending)
            if any(name[0] == directory for name, _ in names)
        ]
        for names in self._pending[: touched[-1] + 1 if touched else 0]:
            _change(self._durable, names)
        del self._pending[: touched[-1] + 1 if touched else 0]

    def tear(self, call: Call, random: Random) -> None:
        """Undo a part of the sectors of the last write, and only of that."""
        content = self._contents[call.file]
        first, count = call.offset // SECTOR, -(-len(call.data) // SECTOR)
        lost = random.sample(range(first, first + count), random.randint(1, count))
        for sector in lost:
            versions = content.versions[sector]
            old = content.durable[sector * SECTOR : (sector + 1) * SECTOR].ljust(SECTOR, b"\0")
            before = versions[-2] if len(versions) > 1 else old
            content.seen[sector * SECTOR : (sector + 1) * SECTOR] = before

    def write_to(self, root: Path, random: Random, kept: bool) -> None:
        """Make what a crash leaves below `root`, which is emptied first."""
        for path in root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        names = dict(self._durable)
        count = len(self._pending) if kept else random.randint(0, len(self._pending))
        for change in self._pending[:count]:
            _change(names, change)
        self._write(root, 0, names, {}, random if not kept else None)

    def _write(
        self,
        directory: Path,
        number: int,
        names: dict[Name, int],
        made: dict[int, Path],
        random: Random | None,
    ) -> None:
        for (parent, name), file in sorted(names.items()):
            if parent != number:
                continue
            path, content = directory / name, self._contents[file]
            if content.is_directory:
                path.mkdir()
                self._write(path, file, names, made, random)
            elif file in made:
                os.link(made[file], path)
            else:
                made[file] = path
                path.write_bytes(bytes(content.seen) if random is None else content.crashed(random))
                if name == identity.FILE_NAME:
                    _settle(path, self._inodes[number])


def _change(names: dict[Name, int], change: tuple[tuple[Name, int | None], ...]) -> None:
    for name, number in change:
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def _settle(path: Path, inode_before: int) -> None:
    """An image is no copy: where `node.json` named its directory it still does."""
    try:
        who = identity.decode(path.read_bytes(), str(path))
    except BootFailed:
        return
    if who.directory_inode != inode_before:
        return
    inode = os.stat(path.parent).st_ino
    path.write_bytes(identity.encode(identity.replace(who, directory_inode=inode)))

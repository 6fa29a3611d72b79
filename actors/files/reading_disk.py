"""A `Disk` that changes nothing: those who mend what a crash left do so in memory only."""

from __future__ import annotations

import mmap
import os

from meterd.actors.files.direct_file import Buffer
from meterd.actors.files.disk import Pace, at_once
from meterd.protocol.errors import InvariantViolation


class ReadingDisk:
    """See `Disk`.  A file that was given another name is found under that one from then on."""

    def __init__(self) -> None:
        self.renamed: dict[str, str] = {}  # new name → the one it has on the disk

    def names(self, directory: str) -> list[str]:
        return sorted(os.listdir(directory))

    def open(self, path: str) -> int:
        return os.open(self.renamed.get(path, path), os.O_RDONLY | os.O_CLOEXEC)

    def create(self, path: str, size: int, pace: Pace = at_once) -> int:
        raise InvariantViolation(f"{path} is to be made by those who only read")

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def size(self, descriptor: int) -> int:
        return os.fstat(descriptor).st_size

    def view(self, descriptor: int) -> memoryview:
        if self.size(descriptor) == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))

    def write(self, descriptor: int, buffer: Buffer, offset: int) -> None:
        """Whoever writes has said so in what it returns (`End.torn`)."""

    def truncate(self, descriptor: int, size: int) -> None:
        raise InvariantViolation("a file is to be cut by those who only read")

    def sync(self, descriptor: int) -> None:
        pass

    def rename(self, old: str, new: str) -> None:
        self.renamed[new] = old

    def link(self, old: str, new: str) -> None:
        pass

    def remove(self, path: str) -> None:
        raise InvariantViolation(f"{path} is to be removed by those who only read")

    def sync_directory(self, directory: str) -> None:
        pass

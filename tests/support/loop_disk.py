"""A real ext4 that can lose its power: it lies in a file on a small tmpfs, which needs root.

* `cut_power` shuts the file system down at once: what was not synced is lost, the journal is as it
  lies on the device, and every call fails from then on, fsync first;
* `mount_again` repairs what was done and mounts the file system as a machine does that starts.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.waiting import eventually

# linux/ext4.h: shut down, and do not even write the journal.
EXT4_IOC_SHUTDOWN, WITHOUT_LOG = 0x8004587D, 2
MIB = 1 << 20


class LoopDisk:
    """`data_dir` lies in it."""

    def __init__(self, size: int = 160 * MIB) -> None:
        self._size = size
        self._home = Path(tempfile.mkdtemp(prefix="mloop", dir="/tmp"))
        self.path = self._home / "disk"
        self._device = self._home / "device"
        self._image = self._device / "image"
        self.data_dir = self.path / "data"

    def __enter__(self) -> Self:
        self.path.mkdir()
        self._device.mkdir()
        options = f"size={self._size + 8 * MIB}"
        if not _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self._device)):
            self._remove()
            pytest.skip("no tmpfs can be mounted here")
        self._image.touch()
        os.truncate(self._image, self._size)
        made = _run("mkfs.ext4", "-q", "-m", "0", str(self._image)) and self._mount()
        if not made:
            self.__exit__(None, None, None)
            pytest.skip("no ext4 can be mounted here")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _run("umount", "--lazy", str(self.path))
        _run("umount", "--lazy", str(self._device))
        self._remove()

    def _remove(self) -> None:
        for path in (self.path, self._device, self._home):
            path.rmdir()

    def _mount(self) -> bool:
        return _run("mount", "-o", "loop", str(self._image), str(self.path))

    def cut_power(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_LOG))
        finally:
            os.close(descriptor)

    def mount_again(self) -> None:
        """Call it when the node is gone."""
        eventually(lambda: _run("umount", str(self.path)), "nobody uses the disk")
        assert self._mount(), "it cannot be mounted again"


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0

"""Takes possession of a data directory: makes it, locks it, checks that it can be written.

Every actor inherits the lock, so a node whose supervisor was killed keeps its directory until its
last process is gone: two nodes never write one log.

The *run directory* is where the actors of a node meet: sockets, and small files about the running
node.  A socket's path has at most 107 bytes, so it lies under /tmp where the data directory's path
is long; and where the data directory is full, because a node must be able to start there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
import time
from pathlib import Path

from meterd.actors import endings
from meterd.actors.files import disk
from meterd.protocol.errors import BootFailed, DiskFull

# sun_path of a unix socket, less its final zero.
SOCKET_PATH_MAX = 107
ACTOR_NAME_MAX = 24
# The processes of a node that was just killed need a moment to go.
LOCK_WAIT_SECONDS = 3.0
LOCK_RETRY_SECONDS = 0.02
# What the files of a run directory may take, with room to spare: else it lies elsewhere.
RUN_DIR_SIZE = 64 * 1024
RUN_DIR_FILES = 24

logger = logging.getLogger(__name__)


def take(data_dir: str) -> None:
    """Make the directory if need be, lock it until this process and its children end, check it.

    Raises BootFailed.
    """
    try:
        Path(data_dir).mkdir(mode=0o750, parents=True, exist_ok=True)
    except PermissionError as error:
        raise BootFailed(endings.PERMISSION, f"cannot make {data_dir}: {error}") from error
    except OSError as error:
        raise BootFailed(endings.CANNOT_CREATE, f"cannot make {data_dir}: {error}") from error
    try:
        _lock(data_dir)
        with disk.full_disk_told(), tempfile.TemporaryFile(dir=data_dir) as probe:
            probe.write(b"meterd")
    except DiskFull as full:
        # It may be started all the same: it answers questions, and only it can make room.
        logger.warning("%s is full: %s", data_dir, full)
    except PermissionError as error:
        raise BootFailed(endings.PERMISSION, f"cannot write in {data_dir}: {error}") from error
    except OSError as error:
        raise BootFailed(endings.IO_ERROR, f"cannot write in {data_dir}: {error}") from error


def _lock(data_dir: str) -> None:
    lock = disk.DirectoryLock(data_dir)
    give_up = time.monotonic() + LOCK_WAIT_SECONDS
    while not lock.acquire():
        if time.monotonic() > give_up:
            holder = Path(lock.path).read_text("ascii", "replace").strip() or "(unknown)"
            raise BootFailed(
                endings.TEMPORARY, f"{data_dir} is in use by process {holder}; stop it first"
            )
        time.sleep(LOCK_RETRY_SECONDS)
    with contextlib.suppress(OSError):  # for people; a full disk has no room even for that
        Path(lock.path).write_text(f"{os.getpid()}\n", "ascii")


def make_run_dir(data_dir: str) -> str:
    """Return an empty, private directory whose path is short enough for sockets.

    Call it with the lock held.  Raises BootFailed.
    """
    absolute = os.path.realpath(data_dir)
    path = os.path.join(absolute, "run")
    if len(os.fsencode(path)) + 1 + ACTOR_NAME_MAX <= SOCKET_PATH_MAX:
        with contextlib.suppress(DiskFull):
            return _make_private(path)
    digest = hashlib.sha256(os.fsencode(absolute)).hexdigest()[:16]
    path = f"/tmp/meterd-{digest}"
    try:
        return _make_private(path)
    except DiskFull as full:
        raise BootFailed(endings.CANNOT_CREATE, f"cannot make {path}: {full}") from full


def _make_private(path: str) -> str:
    """Make a directory empty and ours.  Raises BootFailed, DiskFull."""
    try:
        with disk.full_disk_told():
            os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise BootFailed(endings.PERMISSION, f"{path} belongs to somebody else; remove it")
        os.chmod(path, 0o700)
        for entry in os.scandir(path):
            os.unlink(entry.path)
        _check_room(path)
    except OSError as error:
        raise BootFailed(endings.CANNOT_CREATE, f"cannot make {path}: {error}") from error
    return path


def _check_room(path: str) -> None:
    """Raise DiskFull when the files of a running node would find no room."""
    found = os.statvfs(path)
    if found.f_files and found.f_favail < RUN_DIR_FILES:
        raise DiskFull(f"{found.f_favail} inodes are free")
    with disk.full_disk_told(), tempfile.TemporaryFile(dir=path) as probe:
        os.posix_fallocate(probe.fileno(), 0, RUN_DIR_SIZE)

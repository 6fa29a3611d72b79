"""Where copies go that must outlive the machine: a directory, or a bucket of an S3 service.

A store holds objects: a name, such as `node-1/wal-7.log`, and bytes that never change.  An object
is there whole or not at all, and is durable when `put` returns.  Archive and backups share this.

Rules that every store keeps:
  * `put` never replaces an object: what is there under the name raises `Exists`
  * names are parts of letters, digits and `._=+-`, separated by `/`; no part begins with a dot
  * one writer for a name at a time; a writer that died leaves nothing that is listed
  * what goes wrong is StoreFailed, or DiskFull for a directory without room; never an OSError
  * nothing is remembered between calls, so several processes may use the same store
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from meterd.actors.files.disk import FILE_MODE, sync_data, sync_directory, write_all
from meterd.protocol.errors import (
    BadRequest,
    DiskFull,
    Exists,
    FsyncFailed,
    NotFound,
    StoreFailed,
)

if TYPE_CHECKING:
    from meterd.actors.housekeeping.s3_store import S3Store

# Bytes moved at once.
PIECE_SIZE = 1 << 20
NAME_SIZE_MAX = 512
_PART = r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*"
NAME = re.compile(rf"{_PART}(?:/{_PART})*")


class Source(Protocol):
    """What `put` reads from: an open file, or anything whose `read` may also raise to end it."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes; none at the end."""


class Stored(NamedTuple):
    """One object."""

    name: str
    size: int


class ObjectStore(Protocol):
    """See the module.  Every method raises StoreFailed."""

    url: str  # as people write it; holds no secret

    def put(self, name: str, source: Source) -> None:
        """Store an object.  Raises Exists, DiskFull, and what `source.read` raises."""

    def get(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of an object, in pieces.  Raises NotFound."""

    def size(self, name: str) -> int | None:
        """Return the size of an object; None when there is none."""

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """Yield the objects whose names begin with `prefix`, in the order of their names."""

    def delete(self, name: str) -> None:
        """Delete an object; nothing happens when there is none."""


def open_store(url: str) -> ObjectStore:
    """Return the store at `s3://BUCKET[/PREFIX]`, `file:///PATH` or `/PATH`.

    Raises BadRequest for another text, StoreFailed when the store cannot be used.
    """
    if url.startswith("s3://"):
        return _open_s3(url)
    path = url.removeprefix("file://")
    if not path.startswith("/"):
        raise BadRequest(f"{url!r} is neither s3://BUCKET/PREFIX nor the whole path of a directory")
    return DirectoryStore(path)


def _open_s3(url: str) -> S3Store:
    try:
        from meterd.actors.housekeeping.s3_store import S3Store
    except ImportError as error:
        raise StoreFailed(f"{url}: {error}; install meterd[s3]") from error
    return S3Store(url)


def check_name(name: str) -> str:
    """Return a name that is one.  Raises BadRequest."""
    if len(name) > NAME_SIZE_MAX or not NAME.fullmatch(name):
        raise BadRequest(f"{name[:NAME_SIZE_MAX]!r} is no name of an object")
    return name


class DirectoryStore:
    """Objects are files below a directory, which must be there: an empty mount is no store."""

    def __init__(self, path: str) -> None:
        self.url = path
        self._root = Path(path)

    def put(self, name: str, source: Source) -> None:
        target = self._path(name)
        with _failures(self.url, name):
            self._check_root()
            made = not target.exists() and self._make(target, source)
            # Also of what was there: its writer may have been killed before it came so far.
            for directory in (target.parent, *target.parent.parents):
                sync_directory(directory)
                if directory == self._root:
                    break
        if not made:
            raise Exists(f"{target.name} is there already")

    def get(self, name: str) -> Iterator[bytes]:
        with _failures(self.url, name), self._path(name).open("rb") as file:
            # From the disk, not from what the page cache remembers of the writing.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while piece := file.read(PIECE_SIZE):
                yield piece

    def size(self, name: str) -> int | None:
        try:
            with _failures(self.url, name):
                return self._path(name).stat().st_size
        except NotFound:
            return None

    def list(self, prefix: str = "") -> Iterator[Stored]:
        with _failures(self.url, prefix):
            self._check_root()
            for name in sorted(self._files()):
                # What goes while this looks is not there: others may write and delete here.
                if name.startswith(prefix) and NAME.fullmatch(name):
                    with contextlib.suppress(FileNotFoundError):
                        yield Stored(name, (self._root / name).stat().st_size)

    def _files(self) -> Iterator[str]:
        for directory, _, names in os.walk(self._root, onerror=_unless_gone):
            for name in names:
                yield os.path.relpath(os.path.join(directory, name), self._root)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with contextlib.suppress(NotFound), _failures(self.url, name):
            path.unlink()
            sync_directory(path.parent)

    def _path(self, name: str) -> Path:
        return self._root / check_name(name)

    def _check_root(self) -> None:
        if not self._root.is_dir():
            raise StoreFailed(f"{self.url}: no such directory")

    def _make(self, target: Path, source: Source) -> bool:
        """Make an object, durable but for its name; False when there is one by now."""
        missing = [part for part in target.parents if not part.exists()]
        for part in reversed(missing):
            part.mkdir(mode=0o750, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            _write(temporary, source)
            return _name_it(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _write(path: Path, source: Source) -> None:
    """Write a file whole, durable but for its name."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    try:
        offset = 0
        while piece := source.read(PIECE_SIZE):
            offset += write_all(descriptor, piece, offset)
        sync_data(descriptor)
    finally:
        os.close(descriptor)


def _name_it(temporary: Path, target: Path) -> bool:
    """Give a file its name; False when something has that name."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if target.exists():  # a file system without hard links: one writer is the rule
            return False
        os.rename(temporary, target)
    return True


@contextlib.contextmanager
def _failures(url: str, name: str) -> Iterator[None]:
    """Say what failed as the module promises; a full disk is DiskFull by then."""
    try:
        yield
    except FileNotFoundError:
        if not os.path.isdir(url):
            raise StoreFailed(f"{url}: no such directory") from None
        raise NotFound(f"{url} has no {name}") from None
    except DiskFull as full:  # say which disk: it is not the node's own
        raise DiskFull(f"{url}: {name}: {full}") from full
    except (OSError, FsyncFailed) as error:
        # Not the node's own disk: what was written there is read back, and written again.
        raise StoreFailed(f"{url}: {name}: {error}") from error

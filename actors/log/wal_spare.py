"""Has the next log file ready, so that going on to it costs two renames and no filling.

Writing into a file that was filled with zeros and synced changes no metadata, which makes
fdatasync a third cheaper than on an allocated or a growing file (docs/STORAGE.md).  Filling takes
some tens of milliseconds, so a thread does it while blocks are appended to the file before: in
small pieces, twice as fast as that file grows, and slowly while it does not grow.  When the disk
is too slow for both, and when the file is needed before it is full, the rest stays allocated only.
"""

from __future__ import annotations

import os
import threading

from meterd.actors.files.disk import Disk
from meterd.protocol.errors import DiskFull, MeterdError
from meterd.protocol.log_format import FILE_SIZE_MULTIPLE, SPARE_NAME, padded

# Fill without rest until the next file is so many times as full as the active one.
LEAD = 2
REST_SECONDS = 0.02


class Spare:
    """The next file: `prepare` makes it, `descriptor_for` lends it, `used` gives it away."""

    def __init__(self, disk: Disk, directory: str, size: int) -> None:
        self.path = os.path.join(directory, SPARE_NAME)
        self.size = padded(size, FILE_SIZE_MULTIPLE)
        self.appended = 0  # bytes of the active file in use; the log keeps it up to date
        self._disk = disk
        self._directory = directory
        self._descriptor: int | None = None
        self._filled = 0

    def prepare(self) -> None:
        """Make the file unless it is there.  Raises DiskFull, FsyncFailed, OSError."""
        if self._descriptor is None:
            self._create(self.size)

    def descriptor_for(self, size: int) -> int:
        """Return the file, all zeros (or with a header not used yet), with room for `size`.

        Raises DiskFull, FsyncFailed, OSError.
        """
        if self._descriptor is None or self._filled < size:
            self.close()
            self._create(max(size, self.size))
        assert self._descriptor is not None
        return self._descriptor

    def used(self) -> None:
        """The file has another name and owner now."""
        self._descriptor = None

    def pace(self, filled: int) -> bool:
        """Wait between two pieces that are filled, and say whether to go on; here, always."""
        return True

    def close(self) -> None:
        """Close the file; the next start makes a new one."""
        if self._descriptor is not None:
            self._disk.close(self._descriptor)
            self._descriptor = None

    def _create(self, size: int) -> None:
        descriptor = self._disk.create(self.path, size, self.pace)
        self._disk.sync_directory(self._directory)
        self._descriptor, self._filled = descriptor, size


class BackgroundSpare(Spare):
    """The same, filled by a thread; the caller waits for it only when it needs the file."""

    def __init__(self, disk: Disk, directory: str, size: int) -> None:
        super().__init__(disk, directory, size)
        self._thread: threading.Thread | None = None
        self._failure: MeterdError | OSError | None = None
        self._hurry = threading.Event()
        self._appended_before: int | None = None  # `appended` when the first piece was filled

    def prepare(self) -> None:
        """Begin to make the file unless it is there or under way.

        Raises what the attempt before ended with, except DiskFull: that is tried again.
        """
        if self._thread is not None and self._thread.is_alive():
            return
        self._collect()
        if self._descriptor is None:
            self._hurry.clear()
            self._appended_before = None
            self._thread = threading.Thread(target=self._run, name="wal-spare")
            self._thread.start()

    def descriptor_for(self, size: int) -> int:
        self._collect()
        return super().descriptor_for(size)

    def pace(self, filled: int) -> bool:
        if self._appended_before is None:
            self._appended_before = self.appended
        if filled < self.appended - self._appended_before:
            return False  # the disk cannot take both, and blocks matter more than zeros
        if filled > LEAD * self.appended:
            self._hurry.wait(REST_SECONDS)
        return not self._hurry.is_set()

    def close(self) -> None:
        self._collect()
        super().close()

    def _run(self) -> None:
        try:
            super().prepare()
        except (MeterdError, OSError) as failure:
            self._failure = failure

    def _collect(self) -> None:
        """Wait for the thread, and raise what must not be ignored."""
        self._hurry.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None and not isinstance(failure, DiskFull):
            raise failure

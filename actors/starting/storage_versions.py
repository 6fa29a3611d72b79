"""Which versions of files this version of meterd knows, and refuses those of a newer one.

Every format begins with eight bytes of magic and two of version, and its header has a checksum.
These places never move.  So a file whose header checks and whose version is greater than ours was
written by a newer meterd, and is not damaged: the node must not touch the directory, and ends with
79.  A header that does not check is damage, and left to those who read the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from crc32c import crc32c

from meterd.actors import endings
from meterd.protocol import (
    checkpoint_format,
    log_format,
    refused_format,
    run_format,
    segment_format,
)
from meterd.protocol.errors import BootFailed


class Format(NamedTuple):
    """One format: what a file of it is called, which version is ours, where its checksum lies."""

    what: str
    version: int
    crc_at: int  # of the CRC-32C over all bytes before it; -1: its header has none


FORMATS: Final[dict[bytes, Format]] = {
    log_format.FILE_MAGIC: Format("log file", log_format.FILE_VERSION, 76),
    checkpoint_format.MAGIC: Format("container", checkpoint_format.VERSION, 20),
    run_format.MAGIC: Format("run of identities", run_format.VERSION, 84),
    segment_format.MAGIC[".seg"]: Format("segment", segment_format.VERSION, 60),
    segment_format.MAGIC[".props"]: Format("segment", segment_format.VERSION, 60),
    segment_format.MAGIC[".idx"]: Format("segment", segment_format.INDEX_VERSION, 380),
    refused_format.MAGIC: Format("list of refused events", refused_format.VERSION, -1),
}
HEADER_SIZE: Final = 512
# What is no file of a format, or made again at every start.
SKIPPED: Final = ("lock", "ballast")


class Newer(NamedTuple):
    """A file that a newer version has written."""

    path: str
    what: str
    version: int
    known: int

    def __str__(self) -> str:
        return (
            f"{self.path} was written by a newer version ({self.what} version {self.version},"
            f" this one knows {self.known}); install that version"
        )


def newer_files(directory: str) -> Iterator[Newer]:
    """Yield the files of a directory that a newer version has written.  Raises OSError."""
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if name in SKIPPED or name.endswith((".tmp", ".spare")) or not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            found = _newer(path, file.read(HEADER_SIZE))
        if found is not None:
            yield found


def _newer(path: str, header: bytes) -> Newer | None:
    known = FORMATS.get(header[:8])
    if known is None:
        return None
    version = int.from_bytes(header[8:10], "little")
    if version <= known.version:
        return None
    if known.crc_at >= 0:
        crc = int.from_bytes(header[known.crc_at : known.crc_at + 4], "little")
        if crc != crc32c(header[: known.crc_at]):
            return None
    return Newer(path, known.what, version, known.version)


def refuse_newer(directory: str) -> None:
    """Raise BootFailed when a newer version has written here."""
    for found in newer_files(directory):
        raise BootFailed(endings.IDENTITY, str(found))

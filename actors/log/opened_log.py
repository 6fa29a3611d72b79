"""Opens a log file by its number, whatever its name is at this moment."""

from __future__ import annotations

import os

from meterd.protocol.errors import Corrupt
from meterd.protocol.log_format import (
    ACTIVE_NAME,
    FILE_HEADER_SIZE,
    Damaged,
    full_name,
    parse_file_header,
)


def open_log(directory: str, number: int) -> tuple[str, int]:
    """Return the name and a descriptor of a log file, for reading.

    It may become full at this moment: it is renamed then, and its old name is the next one's.
    Raises FileNotFoundError, Corrupt.
    """
    for name in (full_name(number), ACTIVE_NAME, full_name(number)):
        path = os.path.join(directory, name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            header, _ = parse_file_header(os.pread(descriptor, FILE_HEADER_SIZE, 0))
        except Damaged as damage:
            os.close(descriptor)
            raise Corrupt(path, damage.offset, damage.reason) from damage
        if header.file_number == number:
            return name, descriptor
        os.close(descriptor)
    raise FileNotFoundError(full_name(number))

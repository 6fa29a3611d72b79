"""Lists a directory whose files come, go and change their names meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def sizes_in(directory: str) -> Iterator[tuple[str, int]]:
    """Yield the name and size (bytes) of each entry; those that are gone by then are left out."""
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                yield entry.name, entry.stat().st_size

"""The metric registry as a file, for those who look from outside; the log is the truth."""

from __future__ import annotations

import logging
from pathlib import Path

from meterd.actors.files.disk import atomic_write
from meterd.core.state.registry import Registry
from meterd.protocol import checkpoint_format
from meterd.protocol.errors import DiskFull

REGISTRY_FILE = "metric_registry.bin"

logger = logging.getLogger(__name__)


class RegistryFile:
    """What the usage actor writes; `housekeeping/registry_copy.py` reads it."""

    def __init__(self, directory: str) -> None:
        self._path = Path(directory, REGISTRY_FILE)
        self.unsaved = False  # does it wait for room?

    def save(self, registry: Registry) -> None:
        """Write it, unless it is what the file holds; without room it is to be done again."""
        state = {"kind": "registry", "registry": registry.to_bytes()}
        encoded = b"".join(checkpoint_format.encode(state, {}))
        try:
            if not self._path.exists() or self._path.read_bytes() != encoded:
                atomic_write(self._path, encoded)
        except DiskFull as full:
            if not self.unsaved:
                logger.warning("no room for %s; it is written later: %s", REGISTRY_FILE, full)
            self.unsaved = True
        else:
            self.unsaved = False

"""The metric registry as the usage actor has written it last, for those who only look things up."""

from __future__ import annotations

import logging
from pathlib import Path

from meterd.actors.keeping.registry_file import REGISTRY_FILE
from meterd.core.state.registry import MetricEntry, Registry
from meterd.protocol import checkpoint_format
from meterd.protocol.log_format import Damaged

logger = logging.getLogger(__name__)


class RegistryCopy:
    """Reads the registry's file when something is asked for that it has not seen."""

    def __init__(self, directory: str) -> None:
        self._path = Path(directory, REGISTRY_FILE)
        self.registry = Registry()

    def entry(self, number: int) -> MetricEntry:
        """Return the metric version of a number.  Raises UnknownMetric."""
        if number > len(self.registry.entries):
            self.read()
        return self.registry.entry(number)

    def read(self) -> bool:
        """Read the file; return whether that was possible."""
        try:
            state = checkpoint_format.read_state(self._path.read_bytes())
        except (FileNotFoundError, Damaged) as error:
            logger.error("%s cannot be read: %s", REGISTRY_FILE, error)
            return False
        self.registry = Registry.from_bytes(state["registry"])
        return True

"""Numbers the starts of a node of a cluster, so that peers know its last life from this one.

A boot is the wall clock's time in nanoseconds, or one more than the last boot if that is later.  So
it rises also when the clock was put back, and when the directory is an older copy of itself.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from meterd.actors.files import disk
from meterd.protocol.errors import DiskFull

BOOT_FILE = "boot.json"

logger = logging.getLogger(__name__)


def next_boot(data_dir: str) -> int:
    """Return the boot of this start; the next one's will be higher.

    Raises OSError, FsyncFailed.
    """
    path = Path(data_dir, BOOT_FILE)
    try:
        last = int(json.loads(path.read_bytes())["boot"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        last = 0  # the clock alone has to do
    boot = max(time.time_ns(), last + 1)
    try:
        disk.atomic_write(path, json.dumps({"boot": boot}).encode() + b"\n")
    except DiskFull as full:
        logger.warning("the number of this start is not kept: %s", full)
    return boot

"""Damages a data directory in one place, looks and asks, and mends it; again and again.

The directory is the stored one (`stored_directory.py`), which has a file of every kind.  A bit
flips, a sector is lost, a file is cut or gone.  Then fsck looks, and the directory is opened as a
node does and asked for everything.  What breaks the contract is noted in `violations`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from meterd.actors.checking.fsck import Fsck
from meterd.actors.checking.fsck_files import NOTE
from meterd.protocol.errors import BootFailed, Corrupt, Internal, MeterdError
from tests.support import stored_directory
from tests.support.offline_node import OfflineNode
from tests.support.stored_directory import BASE, DAY

KINDS = (
    "node.json",
    "checkpoint.bin",
    "checkpoint.prev.bin",
    "ids-*.run",
    "ids-*.part",
    "seg-*.seg",
    "seg-*.idx",
    "seg-*.props",
    "wal-*.log",
    "wal.log",
    "wal.spare",
    "metric_registry.bin",
    "partition_map.bin",
    "archive.bin",
    "disk_history.bin",
    "refused.log",
)
SECTOR = 512
# A file and an offset, as errors name them.
NAMED = re.compile(r"[\w./-]+\.(log|bin|run|part|seg|idx|props|tot|json|spare)\S* at offset \d+")
NOW = BASE + 70 * DAY
SAMPLE_EVERY = 20


def flip_bit(path: Path, random: Random) -> None:
    at = random.randrange(path.stat().st_size)
    _write(path, at, lambda old: bytes([old[0] ^ 1 << random.randrange(8)]), 1)


def lose_sector(path: Path, random: Random) -> None:
    """A disk that lost what it had called durable."""
    sectors = -(-path.stat().st_size // SECTOR)
    _write(path, random.randrange(sectors) * SECTOR, lambda old: bytes(len(old)), SECTOR)


def cut(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def lose(path: Path, random: Random) -> None:
    path.unlink()


FAULTS: dict[str, Callable[[Path, Random], None]] = {
    "bit": flip_bit,
    "sector": lose_sector,
    "cut": cut,
    "lost": lose,
}


def _write(path: Path, at: int, change: Callable[[bytes], bytes], size: int) -> None:
    with path.open("r+b") as file:
        old = os.pread(file.fileno(), size, at)
        os.pwrite(file.fileno(), change(old), at)


def named_by_fsck(directory: Path) -> set[str]:
    """Which files fsck finds fault with."""
    checks = Fsck(str(directory), "full").run()
    return {one.file for check in checks for one in check.findings if one.severity != NOTE}


class Campaign:
    """One directory that is damaged and mended again and again."""

    def __init__(self, home: Path, without_segment_logs: bool) -> None:
        """`without_segment_logs`: log files that segments cover are gone, as the grace is over."""
        self.expected = stored_directory.open_archive(stored_directory.FOLDER, home)
        self.directory = home / "data"
        self._safe = home / "safe"
        if without_segment_logs:
            for path in self.directory.glob("wal-*.log"):
                path.unlink()
        shutil.copytree(self.directory, self._safe)
        self.sample = list(range(0, self.expected["events"], SAMPLE_EVERY))
        self.violations: list[str] = []

    def run(self, kind: str, fault: str, seed: int) -> str:
        """Damage one file of a kind, look, and put everything back; return how it ended.

        There is a file of every kind, but log files in a directory that has lost them.
        """
        random = Random(f"{kind} {fault} {seed}")
        paths = sorted(self.directory.glob(kind))
        if not paths:
            return "no such file"
        path = random.choice(paths)
        FAULTS[fault](path, random)
        changed = not path.exists() or path.read_bytes() != (self._safe / path.name).read_bytes()
        name = f"{fault} of {path.name}, seed {seed}"
        found = self._fsck(name)
        if fault == "bit" and path.name not in found:
            self.violations.append(f"{name}: fsck does not name it")
        outcome = self.look(name, seed, fault == "lost") if changed else "unchanged"
        self._mend()
        return outcome

    def _fsck(self, name: str) -> set[str]:
        try:
            return named_by_fsck(self.directory)
        except Exception as error:
            self.violations.append(f"{name}: fsck ended with {error!r}")
        return set()

    def look(self, name: str, seed: int, is_lost: bool = False) -> str:
        """Open the directory and ask for everything.

        A refusal names file and offset; of a file that is lost there is no offset.
        """
        try:
            with OfflineNode(self.directory, NOW) as node:
                if node.answers(listed=seed) != self.expected:
                    self.violations.append(f"{name}: a wrong answer")
                    return "wrong answer"
                if node.send_again(self.sample) != {1}:
                    self.violations.append(f"{name}: a stored event is not known")
                    return "stored twice"
                return "right"
        except Corrupt as error:
            if self.directory.name not in error.path and not error.path.startswith("seg-"):
                self.violations.append(f"{name}: names {error.path}")
            return "refused, file and offset named"
        except (BootFailed, Internal) as error:
            if is_lost:
                return "refused, a file is missing"
            if not NAMED.search(error.message):
                self.violations.append(f"{name}: no file and offset in {error.message}")
            return "refused, file and offset named"
        except MeterdError as error:
            self.violations.append(f"{name}: {error!r}")
            return "another error"
        except Exception as error:
            self.violations.append(f"{name}: ended by a bug, {error!r}")
            return "a bug"

    def _mend(self) -> None:
        """Put back what differs, by size or time, and remove what is new."""
        for path in self.directory.iterdir():
            if not (self._safe / path.name).exists():
                path.unlink()
        for safe in self._safe.iterdir():
            path = self.directory / safe.name
            if not path.exists() or _stamp(path) != _stamp(safe):
                shutil.copy2(safe, path)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns

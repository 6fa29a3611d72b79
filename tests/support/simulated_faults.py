"""Faults on the simulated disk: one run is a life, one fault in it, and a judgement.

Crashes are found in the trace of a life that was lived once: any call may be the last one, the
process may have been killed or the power may have gone.  Other faults happen while a life is lived.
What a run does follows from its kind and seed, except for how threads take turns.
"""

from __future__ import annotations

import errno
import fnmatch
import gc
import logging
import os
import shutil
import threading
from pathlib import Path
from random import Random

from meterd.actors.backups.shelf import Shelf
from meterd.actors.backups.verifying import Verification
from meterd.actors.questions.zone_files import transitions
from meterd.protocol.errors import BootFailed, DiskFull, FsyncFailed, MeterdError
from tests.support.disk_image import DiskImage
from tests.support.disk_trace import Call
from tests.support.fault_book import RECENT, Violation, judge
from tests.support.fault_campaign import flip_bit, named_by_fsck
from tests.support.fault_history import BACKUPS, DATA, Life, Recorded, Restoring, record, restore
from tests.support.one_process import OneProcessNode, apart

# So many runs share a life.
RUNS_PER_LIFE = 10

# Which calls belong to the work of a kind: patterns of the path, and kinds of call.
LOG = ("data/wal.log", "data/wal.spare", "data/wal-*")
WINDOWS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rotation": (LOG, ("names", "size", "sync")),
    "checkpoint": (("data/checkpoint*", "data/ids-*"), ("names", "size", "sync", "write")),
    "segment": (("data/seg-*",), ("names", "size", "sync", "write")),
}
# Which work of a life it is; all calls of it belong to the kind.
WORKS = {
    "compaction swap": "compact",
    "retention": "expire",
    "erasure": "erase",
    "backup": "backup",
    "restore": "restore",
}
CRASHES = (
    "torn write",
    "lost unsynced data",
    *(f"kill during {one}" for one in (*WINDOWS, *WORKS)),
)
LIVE = ("full disk", "no inodes", "fsync error")
KINDS = (*CRASHES, *LIVE)
# Files in which a bit flips; `fault_campaign.py` has those of the stored directory.
FLIPPED = ("totals-*.tot", "erased.bin", "pins.bin", "last_backup.bin", "restored.json")


class Dead(BaseException):
    """The process is gone."""


class Simulation:
    """Runs faults below a directory of its own."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.image = home / "image"
        self.image.mkdir(parents=True, exist_ok=True)
        self._lives: dict[int, Recorded] = {}
        # A run is a child of this process: what is there already costs it nothing, unless its
        # collector of garbage touches it.
        transitions("UTC")
        gc.collect()
        gc.freeze()

    def life(self, number: int) -> Recorded:
        """A life that was lived."""
        if number not in self._lives:
            self._lives.clear()
            home = self._home / "life"
            shutil.rmtree(home, ignore_errors=True)
            self._lives[number] = apart(lambda: record(home, number))
        return self._lives[number]

    def run(self, kind: str, seed: int) -> str:
        """Return how it ended.  Raises Violation."""
        random = Random(f"{kind} {seed}")
        if kind in LIVE:
            return self._live(kind, random, seed)
        recorded = self.life(seed // RUNS_PER_LIFE)
        places = places_of(recorded, kind)
        end = random.choice(places)
        image = DiskImage(recorded.trace, end)
        kept = kind == "torn write" or (kind != "lost unsynced data" and random.random() < 0.4)
        if kind == "torn write":
            image.tear(recorded.trace.calls[end - 1], random)
        image.write_to(self.image, random, kept)
        return self.look(recorded, end, seed, kind == "kill during backup")

    def look(self, recorded: Recorded, end: int, seed: int, backups: bool = False) -> str:
        """Judge what is in the image of a place in a life; `backups`: look at those, too."""
        book, restoring = recorded.book_at(end)
        data_dir = self.image / DATA
        if restoring is not None and (self.image / restoring.target / "restored.json").exists():
            outcome = "restored"
            apart(lambda: judge(self.image / restoring.target, restoring.book, seed))
        else:
            outcome = apart(lambda: judge(data_dir, book, seed))
        if restoring is not None:
            self._restore_again(restoring, seed)
        elif (self.image / BACKUPS).exists() and (backups or seed % 5 == 0):
            apart(lambda: check_backups(self.image, seed))
        return outcome

    def _restore_again(self, restoring: Restoring, seed: int) -> None:
        """Whatever a restore has left, the next one succeeds."""
        target = self.image / restoring.target
        if restoring.target != DATA and target.exists() and not (target / "restored.json").exists():
            raise Violation(f"a part of a restore is in place: {os.listdir(target)}")
        apart(lambda: restore(target, self.image / BACKUPS, restoring.name))
        apart(lambda: judge(target, restoring.book, seed))
        left = [name for name in os.listdir(self.image) if ".restoring-" in name]
        if left:
            raise Violation(f"left behind: {left}")

    def flip(self, pattern: str, seed: int) -> str:
        """One bit flips in a file of a kind; return how it ended.  Raises Violation."""
        random, number, paths = Random(f"{pattern} {seed}"), seed // RUNS_PER_LIFE, []
        while not paths:  # not in every life there is such a file
            recorded = self.life(number)
            calls = recorded.trace.calls
            end = len(calls) if pattern == "restored.json" else recorded.at["restore"][0][0]
            DiskImage(recorded.trace, end).write_to(self.image, random, True)
            book, restoring = recorded.book_at(end)
            data_dir = self.image / (DATA if restoring is None else restoring.target)
            paths = sorted(data_dir.glob(pattern))
            number += 1_000_000
        path = random.choice(paths)
        flip_bit(path, random)
        if path.name not in apart(lambda: named_by_fsck(data_dir)):
            raise Violation(f"fsck does not name {path.name}")
        held = book if restoring is None else restoring.book
        return apart(lambda: judge(data_dir, held, seed, may_refuse=True))

    def flip_backup(self, seed: int) -> str:
        """One bit flips in a file of a backup."""
        random = Random(f"backup {seed}")
        recorded = self.life(seed // RUNS_PER_LIFE)
        end = recorded.at["restore"][0][0]
        DiskImage(recorded.trace, end).write_to(self.image, random, True)
        store = self.image / BACKUPS
        path = random.choice([one for one in sorted(store.rglob("*")) if one.is_file()])
        flip_bit(path, random)
        apart(lambda: check_flipped(store, str(path.relative_to(store))))
        return "found, file named"

    def _live(self, kind: str, random: Random, seed: int) -> str:
        life = self._home / "life"
        shutil.rmtree(life, ignore_errors=True)
        self._lives.clear()
        recorded, outcome = apart(lambda: live(life, kind, random))
        end = len(recorded.trace.calls)
        kept = kind != "fsync error" and random.random() < 0.5
        DiskImage(recorded.trace, end).write_to(self.image, random, kept)
        return f"{outcome}, then {self.look(recorded, end, seed)}"


def places_of(recorded: Recorded, kind: str) -> list[int]:
    """Where in a trace a crash belongs to a kind: numbers of calls made."""
    calls = recorded.trace.calls
    every = range(1, len(calls) + 1)
    if kind == "lost unsynced data":
        return list(every)
    if kind == "torn write":
        return [end for end in every if _is_torn_here(calls[end - 1])]
    name = kind.removeprefix("kill during ")
    if name in WORKS:
        return [
            end for first, last in recorded.at[WORKS[name]] for end in range(first + 1, last + 1)
        ]
    patterns, kinds = WINDOWS[name]
    found = {
        end
        for end in every
        for call in (calls[end - 1], calls[min(end, len(calls) - 1)])
        if call.kind in kinds and any(fnmatch.fnmatch(call.path, one) for one in patterns)
    }
    return sorted(found)


def _is_torn_here(call: Call) -> bool:
    return call.kind == "write" and any(fnmatch.fnmatch(call.path, one) for one in LOG)


def check_backups(home: Path, seed: int) -> None:
    """What is there as a backup is whole, and another one can be made.  Raises Violation."""
    logging.disable(logging.CRITICAL)
    store = str(home / BACKUPS)
    verify_backups(store, home)
    node = OneProcessNode(home / DATA, Random(seed)).start()
    node.job("backup_create", to=store, type=Random(seed).choice(("full", "incr")))
    node.stop()
    verify_backups(store, home)
    left = [name for name in os.listdir(store) if name.endswith(".partial")]
    if left:
        raise Violation(f"left behind: {left}")


def check_flipped(store: Path, name: str) -> None:
    """A verification names the file, and no restore brings it back.  Raises Violation."""
    shelf = Shelf.at(str(store))
    contents = shelf.contents()
    verification = Verification(shelf, contents, None, lambda _: None)
    found = {
        finding.file
        for backup in (*contents.manifests, *contents.broken)
        for finding in verification.verify(backup, "checksum")
    }
    if name not in found:
        raise Violation(f"verification does not name {name}")
    for backup in (*contents.manifests, *contents.broken):
        if not verification.verify(backup, "checksum"):
            continue
        target = store.parent / "flipped"
        try:
            restore(target, store, backup)
        except MeterdError:
            pass
        else:
            raise Violation(f"{backup} was restored with a flipped bit in {name}")
        if target.exists():
            raise Violation("a part of a restore is in place")


def verify_backups(store: str, scratch: Path) -> None:
    shelf = Shelf.at(store)
    contents = shelf.contents()
    if contents.broken:
        raise Violation(f"a broken backup: {contents.broken}")
    verification = Verification(shelf, contents, str(scratch), lambda _: None)
    for name in contents.manifests:
        findings = verification.verify(name, "replay")
        if findings:
            raise Violation(f"a backup is not whole: {findings[0]}")


# Faults while a life is lived


class Shortage:
    """From the n-th call that needs room on, so many find none."""

    def __init__(self, kinds: tuple[str, ...], first: int, times: int, code: int) -> None:
        self._kinds, self._first, self._code = kinds, first, code
        self.times = times
        self._seen = 0

    def __call__(self, kind: str, path: str) -> None:
        if kind not in self._kinds:
            return
        self._seen += 1
        if self._seen > self._first and self.times:
            self.times -= 1
            raise OSError(self._code, os.strerror(self._code), path)


def live(home: Path, kind: str, random: Random) -> tuple[Recorded, str]:
    """Live a life in which something goes wrong; call it `apart`."""
    logging.disable(logging.CRITICAL)
    threading.excepthook = lambda _: None
    life = Life(home, random)
    outcome = _live_with_error(life, random) if kind == "fsync error" else _live_full(life, kind)
    life.trace.forget_functions()
    return life.recorded, outcome


def _live_full(life: Life, kind: str) -> str:
    """Room runs out for a while; the node never ends by itself, and goes on by itself."""
    random = life.random
    kinds = ("create",) if kind == "no inodes" else ("create", "grow", "rename", "link")
    first, times = (
        random.randrange(120 if kind == "no inodes" else 350),
        random.choice((1, 2, 5, 20, 100)),
    )
    code = random.choice((errno.ENOSPC, errno.EDQUOT)) if kind == "full disk" else errno.ENOSPC
    shortage = life.trace.fault = Shortage(kinds, first, times, code)
    while True:
        try:
            life.start()
            break
        except (DiskFull, BootFailed):  # it is started again, as systemd does
            if not times:
                raise
    for step in life.steps():
        step()
    refused = times - shortage.times
    life.trace.fault = None
    for _ in range(3):
        life.send(RECENT)
    life.finish()
    return "went on" if refused else "met no fault"


def _live_with_error(life: Life, random: Random) -> str:
    """The n-th sync fails: the node ends, or one piece of work; it may be started again."""
    shortage = life.trace.fault = Shortage(("sync",), random.randrange(330), 1, errno.EIO)
    try:
        life.live()
    except (FsyncFailed, BootFailed):
        outcome = "ended"
    else:
        return "met no fault" if shortage.times else "gave up a copy"
    _end_threads(life)
    if random.random() < 0.5 and not life.restoring:
        # The machine runs on: what the kernel has given up still looks as if it were written.
        life.trace.fault = None
        life.start()
        life.put_metrics()
        for _ in range(random.randrange(6)):
            life.send(RECENT)
        life.finish()
        outcome = "ended and started again"
    return outcome


def _end_threads(life: Life) -> None:
    """The process is gone: nothing more happens to files."""

    def dead(kind: str, path: str) -> None:
        raise Dead

    life.trace.fault = dead
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(10.0)
    life.forget_requests()

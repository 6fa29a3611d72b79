"""Makes a backup of a data directory whose node is running.

Order: a checkpoint is saved and opened; the files that never change are copied; the *cut*, how far
the log is applied, is asked for; what has come up to it is copied as well, the file it lies in up
to exactly there; the manifest is written last.  The caller holds pins, so that no file goes.

A backup that ends early leaves a place without a manifest, which the next one clears.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import meterd
from meterd.actors.backups.counting import Counting, Refused
from meterd.actors.backups.reading import Memory, Pace, Reading, Stamp
from meterd.actors.backups.shelf import NAME_PREFIX, PARTIAL, Contents, Shelf
from meterd.actors.files import totals_files
from meterd.actors.files.listed_files import sizes_in
from meterd.actors.housekeeping.object_store import NAME, PIECE_SIZE
from meterd.actors.keeping import held_checkpoint
from meterd.actors.log.opened_log import open_log
from meterd.actors.starting.identity import STORAGE_VERSION, Identity
from meterd.core.housekeeping import inventory
from meterd.core.housekeeping.backup_plan import parent_for
from meterd.core.housekeeping.inventory import Change
from meterd.core.state.registry import Registry
from meterd.protocol import backup_manifest, checkpoint_format
from meterd.protocol.backup_manifest import BackupFile, BackupType, Cut, Manifest
from meterd.protocol.errors import Corrupt, Internal
from meterd.protocol.log_format import ACTIVE_NAME, Damaged

CHECKPOINT = "checkpoint.bin"
# A checkpoint may be replaced, and its runs merged, between two looks at the directory.
OPEN_ATTEMPTS = 20

logger = logging.getLogger(__name__)


class CutFacts(NamedTuple):
    """How far the log is applied at a moment, and what only memory knows then."""

    cut: Cut
    refused: Refused  # of log files without a segment
    registry: bytes
    horizon: int

    @classmethod
    def from_map(cls, fields: dict[str, Any]) -> CutFacts:
        """Read what the usage actor answers."""
        number, offset, block_seq, *_ = fields["position"]
        log = fields["log"]
        groups = {
            group: (term, index, digest.hex())
            for group, (term, index, digest) in log["groups"].items()
        }
        cut = Cut(
            number, offset, block_seq, log["sequence"], log["leader_time"], fields["taken"], groups
        )
        refused = {number: (packed, rows) for number, (packed, rows) in fields["refused"].items()}
        return cls(cut, refused, fields["registry"], fields["horizon"])


@dataclass(frozen=True)
class Node:
    """What a backup asks of the node it is made of."""

    directory: str
    who: Identity
    # Ask how far the log is applied; with True once a checkpoint of what is applied is durable.
    cut: Callable[[bool], CutFacts]
    advance: Callable[[float], None]  # 0 to 1; raises to end the backup
    limit: Callable[[], int]  # bytes a second


class _Opened(NamedTuple):
    """A file that is read from whatever becomes of its name."""

    name: str
    descriptor: int
    size: int


class Creation:
    """Makes one backup; call `run` once."""

    def __init__(self, node: Node, shelf: Shelf, backup_type: BackupType, memory: Memory) -> None:
        self._node = node
        self._shelf = shelf
        self._type: BackupType = backup_type
        self._memory = memory
        self._pace = Pace(node.limit, self._on_read)
        self._started = time.time_ns()
        self._files: dict[str, BackupFile] = {}
        self._parent: dict[str, BackupFile] = {}
        self._chain: tuple[str, ...] = ()
        self._stamps: set[Stamp] = set()
        self._read_bytes = 0
        self._expected_bytes = 1
        self.name = ""

    def run(self) -> Manifest:
        """Make it.  Raises StoreFailed, DiskFull, Corrupt, Internal, and what `advance` raises."""
        contents = self._shelf.contents()
        self._clear(contents)
        self._choose_parent(contents)
        self.name = _name_of(self._node.who, self._started, self._type)
        self._node.cut(True)
        with ExitStack() as stack:
            checkpoint = self._open_all(stack)
            state = _checkpoint_state(checkpoint)
            self._expected_bytes = self._expectation(checkpoint)
            for opened in checkpoint:
                self._copy(opened, opened.size)
            first = state["log"]["file_number"]
            # Most of what there is, so that little is left to do behind the cut.
            self._copy_immutable(first, state["position"][0])
            facts = self._node.cut(False)
            names = self._copy_immutable(first, facts.cut.file_number)
            self._copy_active(facts.cut)
        end = (facts.cut.file_number, facts.cut.offset)
        counting = Counting(self._node.directory, self._memory, self._breathe)
        totals = counting.totals(names, end, facts.refused)
        self._memory.keep_only(self._stamps)
        registry = Registry.from_bytes(facts.registry)
        manifest = Manifest(
            name=self.name,
            type=self._type,
            chain=self._chain,
            cluster_id=self._node.who.cluster_id_hex,
            node_id=self._node.who.node_id,
            incarnation=self._node.who.incarnation,
            meterd_version=meterd.__version__,
            storage_version=STORAGE_VERSION,
            started=self._started,
            finished=time.time_ns(),
            horizon=facts.horizon,
            cut=facts.cut,
            checkpoint_sequence=state["log"]["sequence"],
            files=tuple(self._files[name] for name in sorted(self._files)),
            metrics={
                entry.number: backup_manifest.Metric(
                    entry.code, entry.version, entry.definition.decimals
                )
                for entry in registry.entries
            },
            totals=totals,
        )
        self._shelf.publish(manifest)
        return manifest

    def _clear(self, contents: Contents) -> None:
        """Remove what earlier backups of this node have left unfinished."""
        for place in contents.partial:
            if place.startswith(_name_prefix(self._node.who)):
                self._shelf.remove(place)

    def _choose_parent(self, contents: Contents) -> None:
        """Build on the newest backup that is whole; without one this becomes a full one."""
        if self._type == "full":
            return
        who = self._node.who
        parent = parent_for(contents.manifests, (who.cluster_id_hex, who.node_id, who.incarnation))
        if parent is None:
            self._type = "full"
            return
        self._chain = (*parent.chain, parent.name)
        self._parent = {
            file.name: file
            for file in parent.files
            if contents.sizes.get(file.object_name) == file.size
        }

    def _open_all(self, stack: ExitStack) -> list[_Opened]:
        """Open the checkpoint, the identities it names, and all that is replaced or grows.

        The active log file is not among them.
        """
        for _ in range(OPEN_ATTEMPTS):
            attempt = ExitStack()
            opened = [attempt.enter_context(self._held_checkpoint())]
            needed = set(inventory.identity_files(_checkpoint_state(opened)))
            has_all_totals = True
            for name in sorted(os.listdir(self._node.directory)):
                kind = inventory.kind_of(name)
                if name in (CHECKPOINT, ACTIVE_NAME) or kind.change is Change.SCRATCH:
                    continue
                if kind.change is Change.IMMUTABLE and kind.folder != "checkpoint":
                    continue
                if name == "checkpoint.prev.bin" or not self._path(name).is_file():
                    continue
                if not NAME.fullmatch(name):
                    logger.warning("%r is no file of a node, and is not in the backup", name)
                    continue
                try:
                    opened.append(attempt.enter_context(_opened(self._path(name))))
                except FileNotFoundError:
                    # Merged into another one that was not there when it was listed.
                    has_all_totals &= totals_files.covered_by(name) is None
            if has_all_totals and needed <= {one.name for one in opened}:
                stack.enter_context(attempt)
                return opened
            attempt.close()
        raise Internal("the files that the checkpoint names could not be opened")

    @contextmanager
    def _held_checkpoint(self) -> Iterator[_Opened]:
        """Open the newest checkpoint; a second name keeps its bytes for as long as it is read."""
        directory = self._node.directory
        held_checkpoint.release(directory, held_checkpoint.READ)
        name = self._path(held_checkpoint.READ + CHECKPOINT)
        os.link(self._path(CHECKPOINT), name)
        try:
            with _opened(name) as opened:
                yield opened._replace(name=CHECKPOINT)
        finally:
            held_checkpoint.release(directory, held_checkpoint.READ)

    def _copy_immutable(self, first_log: int, end_log: int) -> list[str]:
        """Copy the files that never change, up to a log file; return their names."""
        there = os.listdir(self._node.directory)
        # What was folded since the totals files were opened is still there, and read instead.
        stand = totals_files.standing(self._files)
        through = stand[-1].last if stand else 0
        names = inventory.immutable_files(there, first_log, end_log, through)
        for name in names:
            if name not in self._files:
                with _opened(self._path(name)) as opened:
                    self._copy(opened, opened.size)
        for name in self._files.keys() - set(names):
            # Superseded since it was copied: a restore would not need it.
            if inventory.kind_of(name).folder in ("segments", "wal"):
                self._drop(self._files.pop(name))
        return names

    def _drop(self, file: BackupFile) -> None:
        """Remove a copy made in vain, so that a backup holds nothing that its manifest does not."""
        if file.backup == self.name:
            name = f"{self._shelf.place(self.name)}/{file.folder}/{file.name}"
            self._shelf.store.delete(name)

    def _copy_active(self, cut: Cut) -> None:
        """Copy the log file in which the cut lies, up to there; it may be full by now."""
        try:
            _, descriptor = open_log(self._node.directory, cut.file_number)
        except FileNotFoundError:
            raise Internal(f"log file {cut.file_number} is missing") from None
        with _closed_after(ACTIVE_NAME, descriptor) as opened:
            self._copy(opened, cut.offset)

    def _copy(self, opened: _Opened, size: int) -> None:
        """Copy one file, or refer to the parent's copy of the same bytes."""
        name, kind = opened.name, inventory.kind_of(opened.name)
        stamp = Stamp.of(name, opened.descriptor)
        self._stamps.add(stamp)
        held = self._parent.get(name)
        if (
            held is not None
            and held.size == size
            and held.sha256 == self._hash_of(opened, size, stamp, kind.change)
        ):
            self._files[name] = held
            return
        reading = Reading(opened.descriptor, size, self._pace)
        self._shelf.store.put(f"{self._shelf.place(self.name)}/{kind.folder}/{name}", reading)
        if kind.change is Change.IMMUTABLE:
            self._memory.hashes[stamp] = reading.sha256
        self._files[name] = BackupFile(name, kind.folder, size, reading.sha256, self.name)

    def _hash_of(self, opened: _Opened, size: int, stamp: Stamp, change: Change) -> str:
        known = self._memory.hashes.get(stamp)
        if known is not None:
            return known
        reading = Reading(opened.descriptor, size, self._pace)
        while reading.read(PIECE_SIZE):
            pass
        if change is Change.IMMUTABLE:
            self._memory.hashes[stamp] = reading.sha256
        return reading.sha256

    def _expectation(self, checkpoint: list[_Opened]) -> int:
        """Estimate how many bytes will be read, for the progress."""
        sizes = [one.size for one in checkpoint]
        for name, size in sizes_in(self._node.directory):
            if inventory.kind_of(name).folder in ("segments", "wal"):
                sizes.append(size)
        return max(1, sum(sizes))

    def _on_read(self, size: int) -> None:
        self._read_bytes += size
        self._breathe()

    def _breathe(self) -> None:
        self._node.advance(min(0.99, self._read_bytes / self._expected_bytes))

    def _path(self, name: str) -> Path:
        return Path(self._node.directory, name)


@contextmanager
def _opened(path: Path) -> Iterator[_Opened]:
    with _closed_after(path.name, os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as opened:
        yield opened


@contextmanager
def _closed_after(name: str, descriptor: int) -> Iterator[_Opened]:
    try:
        yield _Opened(name, descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _checkpoint_state(opened: list[_Opened]) -> dict[str, Any]:
    """Return the state of the checkpoint, which is the first file."""
    name, descriptor, size = opened[0]
    head = os.pread(descriptor, checkpoint_format.HEAD_SIZE, 0)
    try:
        front = os.pread(descriptor, min(size, checkpoint_format.front_size(head)), 0)
        return checkpoint_format.read_state(front)
    except Damaged as damage:
        raise Corrupt(name, damage.offset, damage.reason) from damage


def _name_prefix(who: Identity) -> str:
    return f"{NAME_PREFIX}{who.cluster_id_hex[:8]}-n{who.node_id}-"


def _name_of(who: Identity, started: int, backup_type: str) -> str:
    seconds, rest = divmod(started, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    stamp = f"{moment:%Y%m%dT%H%M%S}.{rest // 1_000_000:03d}Z"
    assert not stamp.endswith(PARTIAL)
    return f"{_name_prefix(who)}{stamp}-{backup_type}"

"""The retention sweeper: housekeeping of files, none of which an event waits for.

* It writes the index beside each full log file, from the file and the bitmap of rows that were not
  stored (`sealed`), and says so (`indexed`).  Until then the usage actor keeps the bitmap, and
  sends it again after a start, so nothing is remembered here.
* It deletes log files past the retention, after the usage actor has agreed (`remove`, `removed`):
  two checkpoints must lie behind a file.  The file goes before its index, because an index without
  its file is only litter, but a file without its index cannot be read.
* It watches the free space and has the router refuse events before the disk is full.
* It keeps `refused.log`.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import lz4.block
import msgpack

from meterd.actors import identity
from meterd.actors.actor import BEAT_SECONDS, Actor
from meterd.actors.answering import Answers
from meterd.actors.bundle import unbundle
from meterd.actors.disk import sync_directory
from meterd.actors.indexing import Indexer
from meterd.actors.log_files import LogFiles, index_name
from meterd.actors.members_file import save_members
from meterd.actors.refused_log import RefusedLog
from meterd.actors.sockets import Frame
from meterd.core import disk_state, retention
from meterd.core.disk_state import Limits, Space
from meterd.core.registry import MetricEntry, Registry
from meterd.protocol import checkpoint_format
from meterd.protocol.decimal_text import format_decimal
from meterd.protocol.envelope import decode_request_header
from meterd.protocol.errors import (
    Corrupt,
    DiskFull,
    MeterdError,
    StorageError,
    UnknownMetric,
)
from meterd.protocol.log_format import Damaged, full_name, number_of
from meterd.protocol.messages import check_request

logger = logging.getLogger(__name__)

REGISTRY_FILE = "metric_registry.bin"
# Clients that were refused for lack of space ask again after so long.
DISK_STOP_RETRY_MS = 2_000
# An index that found no room is tried again after so long.
INDEX_RETRY_SECONDS = 10.0


class RetentionSweeper(Actor):
    """See the module."""

    name = "retention_sweeper"

    def open(self) -> None:
        node = self.options.node
        self.answers = Answers(self)
        self._directory = node.data_dir
        self._files = LogFiles(node.data_dir, identity.read(node.data_dir).identity_key)
        self._indexer = Indexer(node.data_dir, self._files.identity_key)
        self._sealed: dict[int, bytes] = {}  # full files that wait for their index: bitmap
        self._index_due = self._disk_due = self._sweep_due = 0.0
        self._disk_state: disk_state.State = "ok"
        self._registry = Registry()
        self._refused = RefusedLog(node.data_dir)
        self._remove_litter()
        self._check_disk()
        self.send("usage", [b"hello", self.name.encode()])
        self.ready()

    def handle(self, frames: list[bytes]) -> None:
        kind = frames[0]
        if kind == b"sealed":
            self._sealed[msgpack.unpackb(frames[1])["file_number"]] = frames[2]
        elif kind == b"removed":
            self._on_removed(msgpack.unpackb(frames[1])["files"])
        elif kind == b"refused_events":
            self._on_refused(msgpack.unpackb(frames[1], unicode_errors="surrogateescape"))
        elif kind == b"hello":
            self._say_disk_state()  # the router has started again and knows nothing
        elif kind == b"requests":
            for rid, header, body in unbundle(frames[1:]):
                self._on_request(rid, header, body)

    def flush(self) -> None:
        self.answers.send()

    def tick(self, now: float) -> float:
        if now >= self._disk_due:
            self._check_disk()
            interval = self.options.disk.check_interval
            self._disk_due = now + disk_state.next_check(self._disk_state, interval)
        if self._sealed and now >= self._index_due:
            self._write_next_index(now)
        if now >= self._sweep_due:
            self._sweep()
            self._sweep_due = now + self.options.retention.sweep_interval
        due = min(self._disk_due, self._sweep_due)
        if self._sealed:
            due = min(due, self._index_due)
        return min(BEAT_SECONDS, max(0.0, due - now))

    def close(self) -> None:
        self._refused.close()

    # Indexes

    def _write_next_index(self, now: float) -> None:
        """Write the index of the oldest full file that waits for one."""
        number = min(self._sealed)
        try:
            if self._files.header(number) is None:
                self._write_index(number, lz4.block.decompress(self._sealed[number]))
        except DiskFull as full:
            logger.warning("no room for the index of log file %d: %s", number, full)
            self._index_due = now + INDEX_RETRY_SECONDS
            return
        except Corrupt as corrupt:
            # Readers of the file say so too; the rest of the log is as good as before.
            logger.error("no index can be made: %s", corrupt)
            del self._sealed[number]
            return
        del self._sealed[number]
        for actor in ("query", "usage"):
            self.send(actor, [b"indexed", str(number).encode()])

    def _write_index(self, number: int, bitmap: bytes) -> None:
        began = time.monotonic()
        rows = self._indexer.write(number, bitmap)
        self.telemetry.add("indexes_written_total")
        logger.debug(
            "wrote the index of log file %d: %d rows in %.3f s",
            number,
            rows,
            time.monotonic() - began,
        )

    # Retention

    def _sweep(self) -> None:
        """Ask which of the files past the retention may go."""
        self._files.refresh()
        numbers = self._files.full_numbers
        newest = {}
        for number in numbers:
            header = self._files.header(number)
            if header is None and number not in self._sealed:
                self._index_without_events(number)
                header = self._files.header(number)
            if header is not None:
                newest[number] = header.max_timestamp
        limit = retention.limit_of(time.time_ns(), self.options.retention.days)
        expired = retention.expired_files(numbers, newest, limit)
        if expired:
            asked = {"files": expired, "newest": {str(n): newest[n] for n in expired}}
            self.send("usage", [b"remove", msgpack.packb(asked)])
        else:
            self.telemetry.add('retention_runs_total{result="ok"}')

    def _index_without_events(self, number: int) -> None:
        """Index a file that holds no event: nobody keeps a bitmap of its rows."""
        try:
            rows = self._indexer.count_rows(number)
        except Corrupt as corrupt:
            logger.error("no index can be made: %s", corrupt)
            return
        if rows == 0:
            self._sealed[number] = lz4.block.compress(b"")

    def _on_removed(self, numbers: list[int]) -> None:
        """Delete files that nobody needs any more."""
        self.telemetry.add('retention_runs_total{result="ok"}')
        # Without the registry nobody could say which rows add members: then the files stay.
        if not numbers or not self._read_registry():
            return
        try:
            save_members(self._directory, self._files, self._registry, sorted(numbers))
        except StorageError as error:
            logger.error("no log file is deleted, because members cannot be kept: %s", error)
            return
        freed = 0
        for number in sorted(numbers):
            path = os.path.join(self._directory, full_name(number))
            freed += os.stat(path).st_size
            os.unlink(path)
        sync_directory(self._directory)
        for number in numbers:
            os.unlink(os.path.join(self._directory, index_name(number)))
        self.send("query", [b"removed", msgpack.packb({"files": numbers})])
        logger.info(
            "deleted %d log files past the retention, %d to %d, %d bytes",
            len(numbers),
            min(numbers),
            max(numbers),
            freed,
        )
        self.telemetry.add("retention_segments_deleted_total", len(numbers))
        self.telemetry.add("retention_bytes_freed_total", freed)
        if len(numbers) == retention.FILES_PER_SWEEP_MAX:
            self._sweep_due = 0.0

    def _remove_litter(self) -> None:
        """Delete indexes whose log file is gone: the node ended between the two."""
        names = set(os.listdir(self._directory))
        for name in names:
            log_name = name.removesuffix(".idx") + ".log"
            if name.endswith(".idx") and number_of(log_name) and log_name not in names:
                os.unlink(os.path.join(self._directory, name))

    # Disk

    def _check_disk(self) -> None:
        """Look at the free space, and have events refused or taken again."""
        options, found = self.options.disk, os.statvfs(self._directory)
        space = Space(
            found.f_bavail * found.f_frsize,
            found.f_blocks * found.f_frsize,
            found.f_favail,
            found.f_files,
        )
        before = self._disk_state
        limits = Limits(options.warn_free, options.stop_free, options.resume_margin)
        self._disk_state = disk_state.next_state(before, space, limits)
        if self._disk_state != before:
            self._on_disk_state(before, space)
        path = f'path="{self._directory}"'
        self.telemetry.set(f"disk_free_bytes{{{path}}}", space.free)
        self.telemetry.set(f"disk_size_bytes{{{path}}}", space.size)
        self.telemetry.set(f"disk_inodes_free{{{path}}}", space.inodes_free)
        for state in disk_state.STATES:
            self.telemetry.set(f'disk_state{{state="{state}"}}', int(state == self._disk_state))

    def _on_disk_state(self, before: disk_state.State, space: Space) -> None:
        level = logging.INFO if self._disk_state == "ok" else logging.WARNING
        fields = {"free": space.free, "inodes_free": space.inodes_free}
        logger.log(
            level, "disk state %s, was %s", self._disk_state, before, extra={"fields": fields}
        )
        if "stop" not in (before, self._disk_state):
            return
        if self._disk_state == "stop":
            self.telemetry.add("disk_write_stops_total")
            self._sweep_due = 0.0
        self._say_disk_state()

    def _say_disk_state(self) -> None:
        code = "disk_stop" if self._disk_state == "stop" else None
        said = {"source": self.name, "code": code, "retry_after_ms": DISK_STOP_RETRY_MS}
        self.send("router", [b"admission", msgpack.packb(said)])

    # Refused events

    def _on_refused(self, events: list[dict[str, Any]]) -> None:
        now = time.time_ns()
        readable = [self._readable(event, now) for event in events]
        left_out = self._refused.write(readable, now // 1_000_000_000)
        if left_out:
            self.telemetry.add("refused_log_left_out_total", left_out)

    def _readable(self, event: dict[str, Any], now: int) -> dict[str, Any]:
        """Return a refused event as it is listed: its metric by code, its value as text."""
        metric, exponent = event["metric"], event.get("exponent", 0)
        if isinstance(metric, int):
            try:
                entry = self._entry(metric)
                metric, exponent = entry.code, entry.definition.decimals
            except UnknownMetric:
                metric = str(metric)
        return {
            "time": now,
            "account": event["account"],
            "metric": metric,
            "id": event["id"],
            "reason": event["reason"],
            "timestamp": event["timestamp"],
            "value": format_decimal(event["value"], exponent),
        }

    def _entry(self, number: int) -> MetricEntry:
        """Return the metric version of a number, reading the registry's file if it is a new one."""
        if number > len(self._registry.entries):
            self._read_registry()
        return self._registry.entry(number)

    def _read_registry(self) -> bool:
        """Read what the usage actor has written last; return whether that was possible."""
        try:
            state = checkpoint_format.read_state(Path(self._directory, REGISTRY_FILE).read_bytes())
        except (FileNotFoundError, Damaged) as error:
            logger.error("%s cannot be read: %s", REGISTRY_FILE, error)
            return False
        self._registry = Registry.from_bytes(state["registry"])
        return True

    def _on_request(self, rid: bytes, raw_header: bytes, body: Frame) -> None:
        header = decode_request_header(raw_header)  # the router has checked it
        try:
            fields = check_request(header.kind, body, header.lz4_size)
            page = self._refused.page(fields["limit"], fields["after"])
        except MeterdError as error:
            self.answers.error(rid, header.id, header.kind, error)
        else:
            self.answers.result(rid, header.id, header.kind, page)

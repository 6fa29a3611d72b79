"""A real small file system, filled and freed at will, and a client that keeps books about it.

`SmallDisk` mounts a tmpfs, which needs root; tests skip where that is not allowed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import zmq

from meterd.protocol.body import pack, unpack_answer
from meterd.protocol.envelope import RequestHeader, decode_answer, encode_request
from meterd.protocol.result import decode_result
from tests.support.node import Node

MIB = 1 << 20
PAGE = 4096
BATCH = 40
ANSWER_MS = 5_000
PAUSE_SECONDS = 0.02
FINISH_SECONDS = 60.0


class SmallDisk:
    """A tmpfs of `size` bytes and `inodes` inodes; `data_dir` lies in it."""

    def __init__(self, size: int, inodes: int = 0) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="mdisk", dir="/tmp"))
        self._inodes = inodes
        done = self._mount(size)
        if done.returncode:
            self.path.rmdir()
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
        self.data_dir = self.path / "data"
        self._filler = self.path / "filler"

    def _mount(self, size: int, *more: str) -> subprocess.CompletedProcess[bytes]:
        limits = ",".join([*more, f"size={size}", f"nr_inodes={self._inodes}"])
        command = ["mount", "-t", "tmpfs", "-o", limits, "tmpfs", str(self.path)]
        return subprocess.run(command, capture_output=True, check=False)

    def resize(self, size: int) -> None:
        """Enlarge the file system while it is in use."""
        assert self._mount(size, "remount").returncode == 0

    @property
    def free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, left: int = 0) -> None:
        """Take space until so many bytes are free.

        The node takes some meanwhile: what there is no room for any more is tried in smaller parts.
        """
        part = 64 * MIB
        with self._filler.open("ab") as file:
            while part >= PAGE and (room := self.free - left) > 0:
                try:
                    end = file.seek(0, os.SEEK_END)
                    os.posix_fallocate(file.fileno(), end, min(room, part))
                except OSError:
                    part //= 2

    def fill_inodes(self) -> None:
        """Make empty files until there is no inode left."""
        litter = self.path / "litter"
        litter.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            while True:
                (litter / uuid.uuid4().hex).touch()

    def free_up(self) -> None:
        """Delete what `fill` and `fill_inodes` have made."""
        self._filler.unlink(missing_ok=True)
        for path in (self.path / "litter").glob("*"):
            path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)
        self.path.rmdir()


class SmallExt4(SmallDisk):
    """The same on ext4 in a file, with direct writes, a journal, and blocks for directories."""

    def _mount(self, size: int, *more: str) -> subprocess.CompletedProcess[bytes]:
        assert not more, "it does not grow"
        image = Path(f"{self.path}.img")
        image.touch()
        os.truncate(image, size)
        make = ["mkfs.ext4", "-q", "-m", "0", "-N", str(self._inodes), str(image)]
        done = subprocess.run(make, capture_output=True, check=False)
        if done.returncode == 0:
            mount = ["mount", "-o", "loop", str(image), str(self.path)]
            done = subprocess.run(mount, capture_output=True, check=False)
        image.unlink()  # the mount keeps it
        return done


class Load:
    """Sends batches one after another, each with ids of its own, and keeps what was answered.

    What was not answered in time is sent again with the same ids, as clients do.
    """

    def __init__(self, node: Node, metric: str = "calls") -> None:
        self.acknowledged: set[str] = set()
        self.refused: Counter[str] = Counter()  # error answers by code
        self.without_wait = 0  # error answers that name no time to wait
        self.duplicates = 0
        self.answered_at = 0.0  # when the last batch was taken, monotonic
        self._node, self._metric = node, metric
        self._undecided: list[list[dict[str, object]]] = []
        self._ending = threading.Event()
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._request_id = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._context.closed:
            self._context.destroy(linger=0)

    def finish(self) -> None:
        """Send nothing new; settle what is undecided, then stop."""
        self._finishing.set()
        if self._thread.is_alive():
            self._thread.join(FINISH_SECONDS)
        self.stop()

    @property
    def undecided(self) -> int:
        return sum(map(len, self._undecided))

    def taken_since(self, moment: float) -> bool:
        return self.answered_at > moment

    def _run(self) -> None:
        socket = self._node.dealer(self._context)
        while not self._ending.is_set():
            if self._finishing.is_set() and not self._undecided:
                break
            events = self._undecided.pop() if self._undecided else self._new_events()
            self._request_id += 1
            header = RequestHeader(self._request_id, "ingest", ANSWER_MS)
            socket.send_multipart(encode_request(header, pack({"events": events})))
            if not self._take(socket, events):
                self._undecided.append(events)
        socket.close()

    def _new_events(self) -> list[dict[str, object]]:
        now = time.time_ns()
        properties = {"note": "x" * 200}  # a small disk is to be full soon
        return [
            {
                "account": f"a{number % 5}",
                "metric": self._metric,
                "id": str(uuid.uuid4()),
                "timestamp": now,
                "properties": properties,
            }
            for number in range(BATCH)
        ]

    def _take(self, socket: zmq.Socket[bytes], events: list[dict[str, object]]) -> bool:
        """Take the answer to the last request; return whether all of it is decided."""
        give_up = time.monotonic() + ANSWER_MS / 1000
        while (left := give_up - time.monotonic()) > 0 and not self._ending.is_set():
            if not socket.poll(min(int(left * 1000) + 1, 100)):
                continue
            header, raw = decode_answer(socket.recv_multipart())
            if header.id != self._request_id:
                continue  # to a request that was given up
            body = unpack_answer(raw)
            if header.status == "error":
                self.refused[body["code"]] += 1
                self.without_wait += body["code"] == "disk_stop" and not body["retry_after_ms"] > 0
                self._ending.wait(PAUSE_SECONDS)
                return False
            result = decode_result(raw)
            assert result.stored + result.duplicate == len(events), body
            self.duplicates += result.duplicate
            self.acknowledged |= {str(event["id"]) for event in events}
            self.answered_at = time.monotonic()
            return True
        return False

"""Fetches the files of a peer's directory into `incoming/`, whether this node runs or not.

Pieces are asked for one after the other; what is whole stays when the process dies, and is not
asked for again of the same donor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgpack
import numpy as np
import zmq
from crc32c import crc32c

from meterd.actors.files.disk import full_disk_told
from meterd.actors.frames import sockets
from meterd.actors.housekeeping.disk_watch import limits_of, space_of
from meterd.actors.options import Options
from meterd.actors.replicating.heard_file import places_in
from meterd.actors.starting import peer_copy
from meterd.actors.starting.founding import BOOTSTRAP, VERSION, pack
from meterd.actors.starting.identity import Identity
from meterd.protocol.errors import DiskFull
from meterd.protocol.log_format import ACTIVE_NAME, GROUP_COUNT, number_of

ANSWER_SECONDS: Final = 2.0
ATTEMPTS: Final = 5  # of one question, then the next donor
PASSES_MAX: Final = 20  # over a donor's list, while its files change
AGAIN_MAX: Final = 20  # pieces of one file that did not check, or belonged to another file
ANSWER_SIZE_MAX: Final = 16 * 1024 * 1024
PART = ".partial"
Answer = TypeVar("Answer")
NOTHING: Final = np.zeros(GROUP_COUNT, np.uint64)


class NoCopy(Exception):
    """This donor cannot help now."""


class _Silent(NoCopy):
    """Nobody answers at this address."""


class Fetching:
    """Asks donors; `donors_of` and `applied` are what the last one has said of itself."""

    def __init__(self, options: Options, who: Identity, progress: Callable[[int], None]) -> None:
        """`progress` is told how many bytes have come; what it raises ends the work."""
        node = options.node
        self._data_dir = node.data_dir
        self._limits = limits_of(options.disk)
        self._incoming = Path(node.data_dir, peer_copy.INCOMING)
        self._who = who
        self._progress = progress
        # The operator's list need not name those that have come since, or know who has moved;
        # what was heard is older than a list that says so.
        listed = {peer.node: peer.address for peer in node.cluster_nodes}
        self._addresses: dict[int, list[str]] = {}
        for known in (places_in(node.data_dir), listed):
            for number, address in known.items():
                if number != node.id and address not in self._addresses.setdefault(number, []):
                    self._addresses[number].append(address)
        self._asked = 0
        self._bytes = 0
        self.donors_of: list[int] = []  # whose log files the donor has
        self.applied = NOTHING  # u64[257]: up to where the donor has applied each group

    def donors(self) -> list[int]:
        """Return the peers, who says that this node lacks something first."""
        first = peer_copy.behind_whom(self._data_dir)
        return sorted(self._addresses, key=lambda node: (node != first, node))

    def may_leave(self, is_patient: bool) -> bool:
        """Ask all peers, in the order of their numbers, whether this node may be away for a while.

        Who is asked by several says yes to one of them.  is_patient: it is a no, too, when somebody
        does not answer.
        """
        for node in sorted(self._addresses):
            try:
                if not self._where_it_answers(node, self._lets_go):
                    return False
            except NoCopy:
                if is_patient:
                    return False
        return True

    def _where_it_answers(self, node: int, act: Callable[[str], Answer]) -> Answer:
        """Do something with a node at the first of its addresses that answers.  Raises NoCopy."""
        *others, last = self._addresses[node]
        for address in others:
            try:
                return act(address)
            except _Silent:
                continue
        return act(last)

    def _lets_go(self, address: str) -> bool:
        """Raises NoCopy."""
        way = self._connect(address)
        try:
            return bool(self._ask(way, attempts=1, copy="leave").get("leave"))
        finally:
            way.close(linger=0)

    def fetch(self, donor: int) -> None:
        """Have all files of a donor.  Raises NoCopy, DiskFull, OSError."""
        peer_copy.begin(self._data_dir, donor)
        self._where_it_answers(donor, self._fetch_at)

    def _fetch_at(self, address: str) -> None:
        way = self._connect(address)
        try:
            for _ in range(PASSES_MAX):
                wanted = [one for one in self._list(way) if one[0] != ACTIVE_NAME]
                missing = [one for one in wanted if not self._has(*one)]
                self._check_room(sum(size for _, size in missing))
                whole = [self._take(way, name) for name, _ in sorted(missing, key=_rank)]
                # Checkpoints are whole in every pass; it is enough when nothing else was missing.
                if all(whole) and not [name for name, _ in missing if _never_changes(name)]:
                    break
            else:
                raise NoCopy("its files change faster than they are copied")
            # The log's end last, so that it reaches further than the checkpoint.
            for _ in range(PASSES_MAX):
                if not self._take(way, ACTIVE_NAME):
                    raise NoCopy("its log has no end")
                # It was the end of all that is here, unless a file has become full meanwhile.
                missing = [one for one in self._list(way) if _is_missing(one, self._incoming)]
                for name, _ in missing:
                    self._take(way, name)
                if not any(number_of(name) for name, _ in missing):
                    return
            raise NoCopy("its log grows faster than it is copied")
        finally:
            way.close(linger=0)

    def _check_room(self, size: int) -> None:
        """Leave the space that this node needs to go on without a copy.

        Raises NoCopy; DiskFull when it lacks that already, perhaps for what has come of the copy.
        """
        space = space_of(self._data_dir)
        left = space.free - self._limits.resume_at(space.size)
        if left < 0:
            raise DiskFull(f"this node itself lacks {-left >> 20} MiB")
        if size > left:
            raise NoCopy(f"it takes {size >> 20} MiB, and {max(0, left) >> 20} may be taken")

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        """Raises NoCopy."""
        socket = sockets.context().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, ANSWER_SIZE_MAX)
        socket.setsockopt(zmq.IPV6, int(address.startswith("[")))
        try:
            socket.connect(f"tcp://{address}")
        except zmq.ZMQError as error:  # the members say where a node is, so it may be anything
            socket.close(linger=0)
            raise _Silent(f"nobody is reached at {address}: {error}") from error
        return socket

    def _ask(
        self, way: zmq.Socket[bytes], attempts: int = ATTEMPTS, **fields: Any
    ) -> dict[str, Any]:
        """Raises NoCopy."""
        self._asked += 1
        who = {
            "id": self._asked,
            "cluster": self._who.cluster_id_hex,
            "node": self._who.node_id,
            "incarnation": max(1, self._who.incarnation),
        }
        for _ in range(attempts):
            way.send_multipart(pack(who | fields))
            give_up = time.monotonic() + ANSWER_SECONDS
            while (left := give_up - time.monotonic()) > 0:
                if not way.poll(int(left * 1000) + 1):
                    break
                reply = _unpacked(way.recv_multipart())
                if reply is not None and reply.get("id") == self._asked:
                    if "failed" in reply:
                        raise NoCopy(f"its disk fails: {reply['failed']}")
                    return reply
        raise _Silent("it does not answer")

    def _list(self, way: zmq.Socket[bytes]) -> list[tuple[str, int]]:
        reply = self._ask(way, copy="list")
        try:
            self.donors_of = [int(node) for node in reply["donors"]]
            applied = np.frombuffer(reply.get("applied", b""), np.uint64)
            self.applied = applied if len(applied) == GROUP_COUNT else NOTHING
            found = [(str(name), int(size)) for name, size in reply["files"]]
        except (KeyError, TypeError, ValueError) as error:
            raise NoCopy("its list cannot be read") from error
        if not all(peer_copy.is_taken(name) for name, _ in found):
            raise NoCopy("its list names files that are no part of a copy")
        return found

    def _has(self, name: str, size: int) -> bool:
        """Is a file here that need not be asked for again?"""
        try:
            found = (self._incoming / name).stat().st_size
        except FileNotFoundError:
            return False
        return _never_changes(name) and found == size

    def _take(self, way: zmq.Socket[bytes], name: str) -> bool:
        """Fetch one file; False: it is there no longer."""
        part, stamp, at, size = self._incoming / (name + PART), "", 0, -1
        again = 0
        with full_disk_told(), part.open("wb", buffering=0) as file:
            while size < 0 or at < size:
                reply = self._ask(way, copy="read", name=name, offset=at)
                if reply.get("gone"):
                    part.unlink()
                    return False
                data: Any = reply.get("data")
                checks = type(data) is bytes and int(crc32c(data)) == reply.get("crc")
                if not checks or (stamp and reply.get("stamp") != stamp):
                    again += 1
                    if again > AGAIN_MAX:
                        raise NoCopy(f"{name} cannot be read whole")
                    if checks:
                        file.seek(0)
                        file.truncate()
                        stamp, at, size = "", 0, -1
                    continue
                stamp, size = str(reply.get("stamp")), int(reply.get("size", 0))
                if not data and at < size:
                    return False
                file.write(data)
                at += len(data)
                self._bytes += len(data)
                self._progress(self._bytes)
        os.replace(part, self._incoming / name)
        return True


def _unpacked(frames: list[bytes]) -> dict[str, Any] | None:
    if len(frames) != 3 or frames[0] != BOOTSTRAP or frames[1] != VERSION:
        return None
    try:
        fields = msgpack.unpackb(frames[2])
    except (ValueError, msgpack.UnpackException):
        return None
    return fields if type(fields) is dict else None


def _never_changes(name: str) -> bool:
    return name.startswith(("seg-", "ids-", "wal-"))


def _is_missing(one: tuple[str, int], directory: Path) -> bool:
    return not (directory / one[0]).exists()


def _rank(one: tuple[str, int]) -> tuple[int, str]:
    """What never changes first, then what is kept for copies, checkpoints last."""
    name = one[0]
    return (2 if "checkpoint" in name else 1 if name.startswith("held") else 0), name

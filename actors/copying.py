"""Copies a peer's directory into `incoming/` and tries it on, before the node has actors.

A process of its own, as `founding` is.  It ends when the copy counts (`peer_copy.complete`), or
when the node is stopped.  Pieces are asked for one after the other; what is whole stays when the
donor changes or the process dies.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack
import numpy as np
import zmq
from crc32c import crc32c

from meterd.actors import copies, identity, peer_copy, sockets, start_checks
from meterd.actors.adopting import adopt, loaded
from meterd.actors.disk import LocalDisk, full_disk_told
from meterd.actors.founding import BOOTSTRAP, VERSION, apart, pack
from meterd.actors.notify import Notifier
from meterd.actors.options import Options
from meterd.actors.wal_log import Entry, Log
from meterd.actors.wal_recovery import End, Owner, Recovery
from meterd.actors.wal_spare import Spare
from meterd.core.group_logs import GroupLogs
from meterd.protocol import log_facts
from meterd.protocol.errors import BootFailed, Corrupt, DiskFull, MeterdError
from meterd.protocol.log_format import ACTIVE_NAME, GROUP_COUNT, number_of

ANSWER_SECONDS: Final = 2.0
ATTEMPTS: Final = 5  # of one question, then the next donor
PASSES_MAX: Final = 20  # over a donor's list, while its files change
AGAIN_MAX: Final = 20  # pieces of one file that did not check, or belonged to another file
RETRY_SECONDS: Final = 1.0
ANSWER_SIZE_MAX: Final = 16 * 1024 * 1024
PART = ".partial"
NOTHING: Final = np.zeros(GROUP_COUNT, np.uint64)

logger = logging.getLogger(__name__)


def catch_up(options: Options, notifier: Notifier) -> None:
    """Take a copy of a peer if this node needs one.  Raises BootFailed, founding.Stopped."""
    data_dir = options.node.data_dir
    if peer_copy.behind_whom(data_dir) and options.node.peers:
        apart(options, notifier, "copying", lambda say: Copying(options, say).run())
        peer_copy.finish(data_dir)


class NoCopy(Exception):
    """This donor cannot help now."""


class NoGroup(Exception):
    """This donor has nothing that is lacking."""


class _OwnLog(NamedTuple):
    """What must not be forgotten."""

    logs: GroupLogs
    sequence: int


class Copying:
    """See the module."""

    def __init__(self, options: Options, say: Any) -> None:
        """`say`: takes a line of status."""
        node = options.node
        self._say = say
        self._options = options
        self._data_dir = node.data_dir
        self._incoming = Path(node.data_dir, peer_copy.INCOMING)
        self._who = identity.read(node.data_dir)
        self._disk = LocalDisk()
        self._addresses = {p.node: p.address for p in node.cluster_nodes if p.node != node.id}
        self._asked = 0
        self._donors_of: list[int] = []  # whose log files the donor has
        self._applied = NOTHING  # u64[257]: up to where the donor has applied each group
        self._bytes = 0
        self._said_at = 0.0

    def run(self) -> None:
        """Return when the copy counts, or nobody can help now.

        Raises BootFailed, DiskFull, FsyncFailed, OSError.
        """
        for tried, donor in enumerate(self._donors()):
            try:
                self._fetch(donor)
                self._use(donor)
            except NoGroup as why:
                if tried >= len(self._addresses):
                    logger.warning("no peer has what this node lacks now: %s", why)
                    peer_copy.forget_behind(self._data_dir)
                    return
            except (NoCopy, DiskFull) as why:
                logger.warning("no copy of node %d yet: %s", donor, why)
                self._say(f"status waiting for a copy of a peer: {why}")
                time.sleep(RETRY_SECONDS)
            else:
                return

    def _use(self, donor: int) -> None:
        """Have the copy that was fetched count.  Raises NoCopy, NoGroup, DiskFull, OSError."""
        directory = str(self._incoming)
        peer_copy.write_copied(directory, {donor, *self._donors_of})
        # It is changed by looking at it: when this ends early nothing of it is used again.
        peer_copy.reject(self._data_dir)
        try:
            copies.settle(directory)
        except (BootFailed, MeterdError) as error:
            raise NoCopy(str(error)) from error
        if adopt.has_all(directory, self._who.node_id, donor):
            self._try_on(self._own_log())
            peer_copy.complete(self._data_dir)
        else:
            self._adopt(donor)

    def _adopt(self, donor: int) -> None:
        """Take over what this node lacks and the donor has; all else stays as it is here."""
        node, log_size = self._who.node_id, self._options.wal.segment_size
        limits = self._options.limits
        try:
            own = loaded.load(self._data_dir, self._who, node, limits, self._report)
        except Corrupt as corrupt:
            raise BootFailed(65, f"{corrupt}; {corrupt.hint}") from corrupt
        try:
            found = loaded.load(str(self._incoming), self._who, donor, limits, self._report)
            loaded.bring_up(found, self._applied)
            wanted = adopt.lacking(own, found, node)
            noted = peer_copy.behind_in(self._data_dir)
            if noted is not None:
                wanted[noted] = True
            groups = adopt.adoptable(own, found, wanted)
            if not groups[wanted].any():
                raise NoGroup(f"node {donor} has nothing of what this node lacks")
            target = peer_copy.begin_adopted(self._data_dir)
            done = adopt.adopt(own, found, groups, self._who, log_size, target, self._report)
        except (BootFailed, MeterdError) as error:
            raise NoCopy(str(error)) from error
        peer_copy.complete_adopted(self._data_dir, done.names)
        logger.warning(
            "took %d partitions with %d events over from node %d", done.groups, done.events, donor
        )

    def _donors(self) -> Iterator[int]:
        first = peer_copy.behind_whom(self._data_dir)
        others = sorted(self._addresses, key=lambda node: node != first)
        return cycle(others)

    # The old log

    def _own_log(self) -> _OwnLog:
        owner = Owner.of(self._who, self._data_dir)
        try:
            start = start_checks.check_checkpoints(self._disk, self._data_dir)
            end = Recovery(
                self._disk, self._data_dir, owner, start, self._report, self._who, mends=True
            ).run()
        except Corrupt as corrupt:
            raise BootFailed(65, f"{corrupt}; {corrupt.hint}") from corrupt
        if end is None:
            logs = GroupLogs(self._who.member, None, self._who.beginning.configurations)
            return _OwnLog(logs, 0)
        return _OwnLog(end.logs, end.groups.sequence)

    def _report(self, text: str) -> None:
        self._say(f"status {text}")

    # Fetching

    def _fetch(self, donor: int) -> None:
        """Have all files of a donor.  Raises NoCopy, DiskFull, OSError."""
        peer_copy.begin(self._data_dir, donor)
        way = self._connect(self._addresses[donor])
        try:
            for _ in range(PASSES_MAX):
                wanted = [one for one in self._list(way) if one[0] != ACTIVE_NAME]
                missing = [one for one in wanted if not self._has(*one)]
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

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        socket = sockets.context().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, ANSWER_SIZE_MAX)
        socket.setsockopt(zmq.IPV6, int(address.startswith("[")))
        socket.connect(f"tcp://{address}")
        return socket

    def _ask(self, way: zmq.Socket[bytes], **fields: Any) -> dict[str, Any]:
        """Raises NoCopy."""
        self._asked += 1
        who = {
            "id": self._asked,
            "cluster": self._who.cluster_id_hex,
            "node": self._who.node_id,
            "incarnation": max(1, self._who.incarnation),
        }
        for _ in range(ATTEMPTS):
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
        raise NoCopy("it does not answer")

    def _list(self, way: zmq.Socket[bytes]) -> list[tuple[str, int]]:
        reply = self._ask(way, copy="list")
        try:
            self._donors_of = [int(node) for node in reply["donors"]]
            applied = np.frombuffer(reply.get("applied", b""), np.uint64)
            self._applied = applied if len(applied) == GROUP_COUNT else NOTHING
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
                self._progress(len(data))
        os.replace(part, self._incoming / name)
        return True

    def _progress(self, size: int) -> None:
        self._bytes += size
        if time.monotonic() - self._said_at > 1.0:
            self._said_at = time.monotonic()
            self._say(f"status copied {self._bytes >> 20} MiB of a peer")

    # Trying on

    def _try_on(self, own: _OwnLog) -> None:
        """Check the copy, and make it this node's.  Raises NoCopy, DiskFull, OSError."""
        directory = str(self._incoming)
        owner = Owner.of(self._who, directory)
        try:
            start = start_checks.check_checkpoints(self._disk, directory)
            end = Recovery(self._disk, directory, owner, start, self._report, self._who).run()
            start_checks.check_segments(self._disk, directory, owner, start)
        except (BootFailed, MeterdError) as error:
            raise NoCopy(str(error)) from error
        if end is None:
            raise NoCopy("it has no log")
        lacking = lacks(own.logs, end)
        if lacking is not None:
            raise NoCopy(f"it has not all of this node's log of group {lacking} yet")
        self._promise(own, end, owner)

    def _promise(self, own: _OwnLog, end: End, owner: Owner) -> None:
        """Put this node's own terms and votes behind the donor's log."""
        rows = own.logs.promised()
        sequence = max(own.sequence, end.groups.sequence) + 1
        head, payload = log_facts.encode_terms(rows, sequence)
        directory = str(self._incoming)
        spare = Spare(self._disk, directory, self._options.wal.segment_size)
        log = Log(self._disk, directory, spare, owner, time.time_ns)
        log.open(end)
        log.append([Entry(sequence, head, payload)])
        log.close()
        spare.close()


def lacks(own: GroupLogs, end: End) -> int | None:
    """Return a group of which a copy has not all that the own log has; None: there is none.

    What the donor has applied is committed.  Where the own log has another op there, that and all
    behind it never was.
    """
    for group, index in enumerate(own.groups.index.tolist()):
        digest = own.groups.digest[group]
        mark = int(end.logs.mark_index[group])
        if own.contradicts(group, mark, end.logs.mark_digest[group]):
            continue
        if index > end.logs.mark_index[group] and not end.logs.holds(group, index, digest):
            return group
    return None


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

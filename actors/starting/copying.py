"""Uses a copy of a peer that was fetched (`housekeeping/peer_copies.py`), before there are actors.

A process of its own, as `founding` is.  It fetches what has changed since, then either the whole
directory takes the place of this one's, or partitions are taken over (`adopting/`).  When no donor
can help the node starts as it is, and is told again what it lacks.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

from meterd.actors.adopting import adopt, loaded
from meterd.actors.files.disk import LocalDisk
from meterd.actors.log.wal_log import Entry, Log
from meterd.actors.log.wal_recovery import End, Owner, Recovery
from meterd.actors.log.wal_spare import Spare
from meterd.actors.machine.notify import Notifier
from meterd.actors.options import Options
from meterd.actors.starting import copies, identity, peer_copy, start_checks
from meterd.actors.starting.fetching import Fetching, NoCopy
from meterd.actors.starting.founding import apart
from meterd.core.log.group_logs import GroupLogs
from meterd.protocol import log_facts
from meterd.protocol.errors import BootFailed, Corrupt, DiskFull, MeterdError

logger = logging.getLogger(__name__)


def catch_up(options: Options, notifier: Notifier) -> None:
    """Take the copy of a peer, if one was fetched.  Raises BootFailed, founding.Stopped."""
    data_dir = options.node.data_dir
    if peer_copy.is_fetched(data_dir) and options.node.peers:
        apart(options, notifier, "copying", lambda say: Copying(options, say).run())
        peer_copy.finish(data_dir)


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
        self._said_at = 0.0
        self._fetching = Fetching(options, self._who, self._progress)

    def run(self) -> None:
        """Return when the copy counts, or nobody can help now.

        Raises BootFailed, FsyncFailed, OSError.
        """
        for donor in self._fetching.donors():
            try:
                self._fetching.fetch(donor)
                self._use(donor)
            except (NoCopy, DiskFull) as why:
                logger.warning("no copy of node %d: %s", donor, why)
                self._report(f"waiting for a copy of a peer: {why}")
            else:
                return
        logger.warning("no peer has a copy now; it is asked for again while this node runs")
        peer_copy.give_up(self._data_dir)

    def _progress(self, count: int) -> None:
        if time.monotonic() - self._said_at > 1.0:
            self._said_at = time.monotonic()
            self._report(f"copied {count >> 20} MiB of a peer")

    def _use(self, donor: int) -> None:
        """Have the copy that was fetched count.  Raises NoCopy, DiskFull, OSError."""
        directory = str(self._incoming)
        peer_copy.write_copied(directory, {donor, *self._fetching.donors_of})
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
            loaded.bring_up(found, self._fetching.applied)
            wanted = adopt.lacking(own, found, node)
            noted = peer_copy.behind_in(self._data_dir)
            if noted is not None:
                wanted[noted] = True
            groups = adopt.adoptable(own, found, wanted)
            if not groups[wanted].any():
                raise NoCopy(f"node {donor} has nothing of what this node lacks")
            if not adopt.knows_metrics(own, found, groups):
                raise NoCopy("this node's checkpoint is older than its metrics")
            target = peer_copy.begin_adopted(self._data_dir)
            done = adopt.adopt(own, found, groups, self._who, log_size, target, self._report)
        except (BootFailed, MeterdError) as error:
            raise NoCopy(str(error)) from error
        peer_copy.complete_adopted(self._data_dir, done.names)
        logger.warning(
            "took %d partitions with %d events over from node %d", done.groups, done.events, donor
        )

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
    behind it never was.  Of a damaged op the donor knows the name only, and this node, which may
    have acked it, may be the last that has the content.
    """
    for group, index in sorted(_damaged(end.logs) - _damaged(own)):
        if index <= own.groups.index[group]:
            return group
    for group, index in enumerate(own.groups.index.tolist()):
        digest = own.groups.digest[group]
        mark = int(end.logs.mark_index[group])
        if own.contradicts(group, mark, end.logs.mark_digest[group]):
            continue
        if index > end.logs.mark_index[group] and not end.logs.holds(group, index, digest):
            return group
    return None


def _damaged(logs: GroupLogs) -> set[tuple[int, int]]:
    """Return group and index of the ops behind the marks whose content is lost."""
    ops = logs.ops()
    lost = ops[ops["damaged"] == 1]
    return set(zip(lost["group"].tolist(), lost["index"].tolist(), strict=True))

"""Brings a node up: takes its directory, reads its identity, loads kernels, runs the supervisor.

Everything that actors share is imported here, before the first fork: modules and compiled kernels
then exist once in memory, however many processes use them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import hashlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from numba.core import config as numba_config

from meterd.actors import endings
from meterd.actors.actor import Actor
from meterd.actors.frames import lease_words, rings
from meterd.actors.housekeeping.ballast import Ballast
from meterd.actors.housekeeping.disk_watch import limits_of, space_of
from meterd.actors.ingest import Ingest
from meterd.actors.machine import clean_pages, journal, late_compiles
from meterd.actors.machine.journal import timed
from meterd.actors.machine.notify import Notifier
from meterd.actors.measuring import kept_page
from meterd.actors.metrics import Metrics
from meterd.actors.options import Options
from meterd.actors.query import Query
from meterd.actors.replication import Replication
from meterd.actors.retention_sweeper import RetentionSweeper
from meterd.actors.router import Router
from meterd.actors.starting import (
    claims,
    copies,
    copying,
    directory,
    founding,
    identity,
    peer_copy,
    peer_list,
    restored,
    start_checks,
    storage_versions,
)
from meterd.actors.supervisor import Supervisor
from meterd.actors.usage import Usage
from meterd.actors.wal_writer import WalWriter
from meterd.core.warm import warm
from meterd.protocol.errors import BootFailed, Corrupt

# The chain shares knowledge of what is durable, so it restarts together; all others alone.
UNITS: Sequence[Sequence[type[Actor]]] = (
    (WalWriter, Replication, Usage, Ingest),
    (Metrics,),
    (Router,),
    (Query,),
    (RetentionSweeper,),
)

# glibc: at most so many heaps in a process; each actor has one thread that allocates much.
M_ARENA_MAX, ARENAS = -8, 2

logger = logging.getLogger(__name__)


def run(options: Options, load: Callable[[], Options]) -> int:
    """Run a node to its end; return its exit code.  `load` reads the configuration again."""
    journal.open_journal("supervisor", options.log)
    _listen_early()
    notifier = Notifier(dict(os.environ))
    try:
        run_dir = _prepare(options, notifier)
        code = Supervisor(options, run_dir, UNITS, load, notifier).run()
        if code == endings.TEMPORARY and peer_copy.behind_whom(options.node.data_dir):
            logger.warning("starting again, to take a copy of a peer")
            os.execv(sys.executable, sys.orig_argv)  # the same process, for who watches it
        return code
    except founding.Stopped:
        logger.info("graceful shutdown complete")
        return endings.CLEAN
    except BootFailed as failure:
        logger.error("%s", failure.reason)
        notifier.send(f"STATUS={failure.reason}")
        return failure.exit_code
    except Exception:
        # The actors end with this process (PDEATHSIG); whoever started it sees that it was a bug.
        logger.exception("the supervisor ended by a bug")
        return endings.INTERNAL


def _listen_early() -> None:
    """Until the supervisor listens: a stop ends the start, and there is nothing to reload yet."""

    def stop(_number: int, _frame: object) -> None:
        raise founding.Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)


def _prepare(options: Options, notifier: Notifier) -> str:
    node = options.node
    with timed(start_checks.DIRECTORY, path=os.path.abspath(node.data_dir)):
        directory.take(node.data_dir)
    try:
        peer_copy.finish(node.data_dir)
    except Corrupt as corrupt:
        raise BootFailed(endings.CORRUPT, str(corrupt)) from corrupt
    claim_directory(options, notifier)
    with timed("copy of a peer"):
        copying.catch_up(options, notifier)
    _say_peers(options)
    _say_restored(options)
    _make_room(options)
    run_dir = directory.make_run_dir(node.data_dir)
    gc.disable()
    loading = "loading kernels (the first start compiles them)"
    with timed("kernels loaded"), notifier.patience(loading):
        warm_kernels()
    late_compiles.tell()
    lease_words.shared()  # before the fork
    kept_page.shared()
    rings.make_rings()
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    gc.freeze()  # before the fork: what is there by now stays, and its pages are shared
    gc.enable()
    clean_pages.give_back()
    return run_dir


def claim_directory(options: Options, notifier: Notifier) -> None:
    """See whose directory it is, and make it fit to be used: a new one, a copy, one that was moved.

    Raises BootFailed, founding.Stopped.
    """
    node = options.node
    with timed(start_checks.IDENTITY, node_id=node.id):
        who = identity.of_history(node.data_dir, node.id, node.bootstrap)
        storage_versions.refuse_newer(node.data_dir)
        new = who is None
        if who is None:
            who = _first_identity(options, notifier)
        _refuse_alone(options, who)
    claims.settle(node.data_dir)
    if not new and identity.is_copy(node.data_dir, who):
        with timed("copied directory settled"):
            copies.settle(node.data_dir)
    if identity.is_elsewhere(node.data_dir, who):
        identity.write(node.data_dir, who)


def _refuse_alone(options: Options, who: identity.Identity) -> None:
    """A node of a cluster never serves as if it were alone.  Raises BootFailed.

    Of one that was made alone and has grown the log says so (`replication.py`).
    """
    others = [number for number, *_ in who.first_members if number != who.node_id]
    if others and not options.node.peers:
        raise identity.needs_peers(who)


def _first_identity(options: Options, notifier: Notifier) -> identity.Identity:
    """Make a single node, or get an empty directory its place in a cluster."""
    node = options.node
    if node.peers:
        return founding.found(options, notifier)
    who = identity.write(node.data_dir, identity.new_cluster(node.id))
    logger.info("made a new cluster", extra={"fields": {"cluster_id": who.cluster_id_hex}})
    return who


def _say_peers(options: Options) -> None:
    """Warn of a list of peers that is allowed and rarely meant."""
    node = options.node
    for warning in peer_list.warnings(node.id, node.port, node.peers):
        logger.warning("%s", warning)


def _make_room(options: Options) -> None:
    """Give the ballast back where the disk is too full for a start."""
    space, directory = space_of(options.node.data_dir), options.node.data_dir
    if space.free < limits_of(options.disk).hard_at(space.size):
        freed = Ballast(directory).release()
        fields = {"free": space.free, "ballast": freed}
        logger.warning("starting on a full disk", extra={"fields": fields})


def _say_restored(options: Options) -> None:
    """Say until when nothing expires, if this directory was restored."""
    directory, grace = options.node.data_dir, options.retention.grace_after_restore
    try:
        found = restored.read(directory)
        until = restored.held_until(directory, grace)
    except Corrupt as corrupt:
        raise BootFailed(endings.CORRUPT, str(corrupt)) from corrupt
    if found is not None and time.time_ns() < until:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until // restored.NS))
        logger.warning("restored from %s: nothing expires until %s", found.backup, moment)


def warm_kernels() -> None:
    """Load every kernel, compiling those that no cache has.

    A file beside them says that all have been compiled from here: a first start that was stopped
    in between has left only some.  Of processes that begin at once one compiles, the others wait.
    """
    here = hashlib.sha256(f"{sys.implementation.cache_tag} {__file__}".encode()).hexdigest()[:16]
    done = Path(numba_config.CACHE_DIR, f"compiled-{here}")
    if done.exists():
        warm()
        return
    with _alone(done.with_suffix(".lock")):
        if not done.exists():
            logger.info("compiling kernels; this happens once and takes some minutes")
        warm()
        with contextlib.suppress(OSError):  # as when the cache may only be read
            done.touch()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that one process can have; without any where no file can be made."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

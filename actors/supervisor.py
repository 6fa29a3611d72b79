"""Forks the actors of a node, watches them, restarts those that die, and stops them in order.

It forks, watches and reaps, nothing else: it owns no socket of the node, no ZeroMQ context and no
thread, because all of that would be copied into every actor it forks.  Actors speak to it by a
pipe each (`Lifeline`); signal handlers do nothing but wake its loop.

What restarts together is a *unit*: the chain of actors that share knowledge of what is durable, or
one actor alone.  When a member dies the others get SIGKILL, all are reaped, and the whole unit is
forked again, so half-known durability is never carried over.

A silent actor gets SIGABRT, so that it leaves a trace of where it hung, then SIGKILL.  An actor
that ends with one of `endings.HALTING` halts the node: starting it again cannot help.

States of a unit: up (all its processes exist), ending (a member died, the others are being
killed), waiting (no process, started again at `due`).
Invariants:
  * no member is forked while another process of the unit still exists
  * `RUN/actors.json` is what the outside sees: it is replaced whole at every change
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from meterd.actors import endings, offspring
from meterd.actors.actor import BEAT_SECONDS, OPTIONS_FILE, Actor
from meterd.actors.files import disk
from meterd.actors.machine import journal
from meterd.actors.machine.notify import Notifier
from meterd.actors.options import Options
from meterd.core.restart import RestartPolicy
from meterd.protocol.errors import ConfigError

ACTORS_FILE = "actors.json"
# Files about the running node are as large as that, so that each fits in the place of the one
# before; spaces behind JSON mean nothing.
RUN_FILE_SIZE = 8 * 1024

# A loop that was itself away for longer cannot judge others (the machine slept, SIGSTOP).
LATE_SECONDS = 3.0
# An actor that is not ready yet may be silent so many times as long: it reads whole files.
STARTING_PATIENCE = 6
# From SIGABRT, which leaves a trace, to SIGKILL.
ABORT_SECONDS = 1.0
# To stop, an actor has this long; usage saves a checkpoint in it.
STOP_SECONDS = 30.0
# Before it stops, a node of a cluster hands over what it leads; who takes longer stops anyhow.
HAND_OVER_SECONDS = 2.0
# When the node halts: who is gone already may be what others wait for, and the log has it all.
HALT_SECONDS = 5.0
# The router has the grace for requests in flight and a little to end.
ROUTER_SPARE_SECONDS = 2.0
# Who stops first: whoever takes work in, so that nothing is left behind for those that follow.
STOP_ORDER = (
    "router",
    "ingest",
    "replication",
    "wal_writer",
    "usage",
    "query",
    "retention_sweeper",
    "metrics",
)
# Lines of one lifeline taken at once.
READ_SIZE = 64 * 1024

logger = logging.getLogger(__name__)


@dataclass
class Child:
    """One process of a unit."""

    kind: type[Actor]
    pid: int
    lifeline: int
    heard_at: float
    ready: bool = False
    abort_at: float | None = None  # when it was told to leave a trace
    rest: bytes = b""  # of an unfinished line
    is_silent: bool = False  # its lifeline is closed
    handed_over: bool = False  # it leads nothing any more that others can lead
    failure: tuple[int, str] | None = None  # exit code and reason it gave

    @property
    def name(self) -> str:
        return self.kind.name


@dataclass
class Unit:
    """What restarts together."""

    kinds: Sequence[type[Actor]]
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    children: list[Child] = field(default_factory=list)
    due: float = 0.0
    ending: bool = False
    restarts: int = 0

    @property
    def ready(self) -> bool:
        return len(self.children) == len(self.kinds) and all(c.ready for c in self.children)


class Halt(Exception):
    """The node cannot go on: an exit code and the reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Supervisor:
    """Runs a node: `run` returns its exit code."""

    def __init__(
        self,
        options: Options,
        run_dir: str,
        units: Sequence[Sequence[type[Actor]]],
        load: Callable[[], Options],
        notifier: Notifier,
    ) -> None:
        self._options = options
        self._run_dir = run_dir
        self._units = [Unit(kinds) for kinds in units]
        self._load = load
        self._notifier = notifier
        self._started = time.monotonic()
        self._started_at = time.time()
        self._turned_at = self._started
        self._state = "starting"
        self._reload: dict[str, object] = {"successful": True, "at": time.time()}
        self._wake: tuple[int, int] = (-1, -1)
        self._actors_unsaved = False  # there was no room for what the outside sees

    def run(self) -> int:
        """Serve until a signal or a failure ends the node."""
        self._watch_signals()
        self._write_options()
        try:
            while True:
                signals = self._turn()
                if signal.SIGTERM in signals or signal.SIGINT in signals:
                    break
                if signal.SIGHUP in signals:
                    self._on_reload()
        except Halt as halt:
            logger.error("the node halts: %s", halt.reason)
            self._notifier.send(f"STATUS={halt.reason}", "STOPPING=1")
            self._stop(HALT_SECONDS)
            logger.error("stopped", extra={"fields": {"exit_code": halt.code}})
            return halt.code
        logger.info("stopping")
        self._notifier.send("STATUS=stopping", "STOPPING=1")
        self._hand_over()
        killed = self._stop()
        if killed:  # nothing acknowledged is lost; the next start reads the log further back
            logger.warning("stopped; killed: %s", ", ".join(killed))
        else:
            logger.info("graceful shutdown complete")
        return endings.CLEAN

    # Turns

    def _turn(self) -> set[int]:
        """Wait, read, reap, start what is due; return the signals that came."""
        signals = self._wait(self._timeout())
        now = time.monotonic()
        if now - self._turned_at > LATE_SECONDS + BEAT_SECONDS:
            for child in self._children():
                child.heard_at = now
        self._turned_at = now
        self._read_lifelines(now)
        for unit in self._units:
            self._attend(unit, now)
        self._watch(now)
        self._notice_ready()
        if self._actors_unsaved:
            self._write_actors()
        self._notifier.beat(now)
        return signals

    def _children(self) -> Iterator[Child]:
        for unit in self._units:
            yield from unit.children

    def _timeout(self) -> float:
        """Return how long the loop may sleep: a beat, or until something is due."""
        now = time.monotonic()
        moments = [now + BEAT_SECONDS]
        moments += [unit.due for unit in self._units if not unit.children]
        moments += [c.abort_at + ABORT_SECONDS for c in self._children() if c.abort_at is not None]
        if self._notifier.watchdog_seconds:
            moments.append(now + self._notifier.watchdog_seconds / 2)
        return max(0.0, min(moments) - now)

    def _wait(self, seconds: float) -> set[int]:
        """Sleep until a signal, or a word from an actor while somebody is not ready."""
        waking = [self._wake[0]]
        if self._state != "running":
            # A running node is asked once a second; while it starts every line matters at once.
            waking += [child.lifeline for child in self._children() if not child.is_silent]
        readable, _, _ = select.select(waking, [], [], seconds)
        return set(os.read(self._wake[0], 4096)) if self._wake[0] in readable else set()

    def _watch_signals(self) -> None:
        self._wake = os.pipe()
        for end in self._wake:
            os.set_blocking(end, False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)

    # Lifelines

    def _read_lifelines(self, now: float) -> None:
        for child in self._children():
            self._read_lifeline(child, now)

    def _read_lifeline(self, child: Child, now: float) -> None:
        try:
            raw = os.read(child.lifeline, READ_SIZE)
        except BlockingIOError:
            return
        if not raw:
            child.is_silent = True
            return  # closed: the process is ending, and reaping will tell
        child.heard_at = now
        *lines, child.rest = (child.rest + raw).split(b"\n")
        for line in lines:
            self._on_line(child, line.decode("utf-8", "replace"))

    def _on_line(self, child: Child, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "ready":
            child.ready = True
            self._write_actors()
            logger.debug("%s is ready", child.name)
        elif word == "handed_over":
            child.handed_over = True
        elif word == "status":
            self._notifier.status(f"{child.name}: {rest}", extend=self._state != "running")
        elif word == "failed":
            code, _, reason = rest.partition(" ")
            child.failure = (int(code), reason)

    # Units

    def _attend(self, unit: Unit, now: float) -> None:
        """Reap what has ended, end the rest of its unit, start what is due."""
        for child in [*unit.children]:
            status = self._reaped(child)
            if status is not None:
                self._on_death(unit, child, status, now)
        if unit.children or now < unit.due:
            return
        unit.ending = False
        for kind in unit.kinds:
            self._fork(unit, kind, now)
        self._write_actors()

    def _fork(self, unit: Unit, kind: type[Actor], now: float) -> None:
        inherited = [*self._wake, *(child.lifeline for child in self._children())]
        try:
            pid, lifeline = offspring.fork(kind, self._options, self._run_dir, inherited)
        except OSError as error:
            raise Halt(endings.TEMPORARY, f"cannot start {kind.name}: {error}") from error
        unit.children.append(Child(kind, pid, lifeline, now))

    def _reaped(self, child: Child) -> int | None:
        """Return the exit status of a child that has ended, else None."""
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid == 0:
            return None
        self._read_lifeline(child, time.monotonic())
        os.close(child.lifeline)
        return os.waitstatus_to_exitcode(status)

    def _on_death(self, unit: Unit, child: Child, status: int, now: float) -> None:
        unit.children.remove(child)
        if unit.ending:
            return  # we killed it ourselves
        if child.failure is not None:
            raise Halt(child.failure[0], f"{child.name}: {child.failure[1]}")
        if status in endings.HALTING:
            raise Halt(status, f"{child.name} ended with status {status}")
        delay = unit.policy.on_death(now)
        ended = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        if delay is None:
            raise Halt(endings.INTERNAL, f"{child.name} ended {ended} again and is never ready")
        logger.warning(
            "%s ended %s; restarting in %.1f s",
            child.name,
            ended,
            delay,
            extra={"fields": {"pid": child.pid, "with": [c.name for c in unit.children]}},
        )
        unit.ending = True
        unit.due = now + delay
        unit.restarts += 1
        for sibling in unit.children:
            os.kill(sibling.pid, signal.SIGKILL)
        self._write_actors()

    def _watch(self, now: float) -> None:
        """End children that have been silent for too long."""
        for child in self._children():
            if child.abort_at is not None:
                if now - child.abort_at >= ABORT_SECONDS:
                    os.kill(child.pid, signal.SIGKILL)
            elif now - child.heard_at > self._patience(child):
                logger.error("%s is silent for %.1f s", child.name, now - child.heard_at)
                child.abort_at = now
                os.kill(child.pid, signal.SIGABRT)

    def _patience(self, child: Child) -> float:
        """Return how long an actor may be silent; one that reads its files may be longer."""
        return self._options.watchdog.stall * (1 if child.ready else STARTING_PATIENCE)

    def _notice_ready(self) -> None:
        """Tell everybody when the last actor has become ready, or one is no longer."""
        now = time.monotonic()
        for unit in self._units:
            if unit.ready:
                unit.policy.on_ready(now)
        if all(unit.ready for unit in self._units):
            if self._state != "running":
                logger.info("ready", extra={"fields": {"seconds": f"{now - self._started:.3f}"}})
                self._state = "running"
                self._notifier.send("READY=1", "STATUS=running")
                self._write_actors()
        elif self._state == "running":
            self._state = "degraded"
            self._notifier.status("restarting actors")
            self._write_actors()

    # What the outside sees

    def _write_actors(self) -> None:
        actors = {
            kind.name: {
                "pid": next((c.pid for c in unit.children if c.kind is kind), None),
                "ready": any(c.kind is kind and c.ready for c in unit.children),
                "restarts": unit.restarts,
            }
            for unit in self._units
            for kind in unit.kinds
        }
        page = {
            "pid": os.getpid(),
            "started": self._started_at,
            "state": self._state,
            "reload": self._reload,
            "actors": actors,
        }
        try:
            self._replace(ACTORS_FILE, json.dumps(page))
        except OSError as error:
            if not self._actors_unsaved:
                # A full disk.  Work goes on, and it is tried again every second.
                logger.warning("cannot write %s: %s", ACTORS_FILE, error)
            self._actors_unsaved = True
        else:
            self._actors_unsaved = False

    def _write_options(self) -> None:
        self._replace(OPTIONS_FILE, self._options.to_json())

    def _replace(self, name: str, text: str) -> None:
        # About the running node only: nothing here need survive a power cut.
        path = os.path.join(self._run_dir, name)
        page = text.encode().ljust(RUN_FILE_SIZE)
        try:
            with open(f"{path}.new", "wb") as file:
                file.write(page)
            os.rename(f"{path}.new", path)
        except OSError as error:
            if error.errno not in disk.FULL or os.stat(path).st_size < len(page):
                raise
            # Written over where it is: that takes no space.
            with open(path, "rb+", buffering=0) as file:
                file.write(page)

    def _on_reload(self) -> None:
        """Read the configuration again: all of it is taken, or nothing."""
        begun = self._state != "starting"  # to end a reload is to say that the node is ready
        if begun:
            self._notifier.reloading()
        before = self._options
        try:
            self._options, kept = before.reloaded(self._load())
            self._write_options()
        except (ConfigError, OSError) as error:
            self._options = before
            self._reload = {"successful": False, "at": time.time()}
            logger.error("configuration not reloaded: %s", error)
        else:
            for child in self._children():
                os.kill(child.pid, signal.SIGHUP)
            journal.set_level(self._options.log.level)
            self._reload = {"successful": True, "at": time.time()}
            logger.info("configuration reloaded", extra={"fields": {"need_restart": kept}})
        self._write_actors()
        if begun:
            self._notifier.send("READY=1")

    # The end

    def _hand_over(self) -> None:
        """Have other nodes lead before this one takes no more requests; a second signal to stop
        ends the waiting."""
        self._state = "stopping"
        self._write_actors()
        leader = next((c for c in self._children() if c.name == "replication" and c.ready), None)
        if leader is None or not self._options.node.peers:
            return
        self._notifier.status("handing leadership over", extend=True)
        os.kill(leader.pid, signal.SIGUSR1)
        give_up = time.monotonic() + HAND_OVER_SECONDS
        while not (leader.handed_over or leader.is_silent):
            now = time.monotonic()
            if now >= give_up:
                logger.warning("leadership is not handed over; stopping anyhow")
                return
            if {signal.SIGTERM, signal.SIGINT} & self._wait(give_up - now):
                return
            self._read_lifelines(now)

    def _stop(self, seconds: float = STOP_SECONDS) -> list[str]:
        """End all actors in the order in which work flows, each within `seconds`, the router within
        its grace; return the names of those that had to be killed."""
        self._state = "stopping"
        self._write_actors()
        pairs = [(unit, child) for unit in self._units for child in unit.children]
        killed = []
        for unit, child in sorted(pairs, key=lambda pair: _stop_rank(pair[1].name)):
            if not self._end(child, seconds):
                killed.append(child.name)
            unit.children.remove(child)
        return killed

    def _end(self, child: Child, seconds: float) -> bool:
        """Tell one actor to finish, and wait until it has; return whether it did so by itself."""
        by_itself = True
        grace = self._options.shutdown.grace + ROUTER_SPARE_SECONDS
        give_up = time.monotonic() + (grace if child.name == "router" else seconds)
        self._notifier.status(f"stopping {child.name}", extend=True)
        os.kill(child.pid, signal.SIGTERM)
        while self._reaped(child) is None:
            if time.monotonic() >= give_up:
                logger.warning("%s does not stop; killing it", child.name)
                os.kill(child.pid, signal.SIGKILL)
                by_itself = False
                give_up += BEAT_SECONDS
            self._wait(BEAT_SECONDS)
            self._read_lifelines(time.monotonic())
        return by_itself


def _stop_rank(name: str) -> int:
    return STOP_ORDER.index(name) if name in STOP_ORDER else len(STOP_ORDER)

"""The loop every actor shares: wait, take all that waits, act once, report to the supervisor.

An actor takes *all* waiting messages before `flush`, so a queue becomes a batch under load and
the cost per message falls; nothing waits for a timer.  The beat to the supervisor comes from
this loop, the one that does the work, so an actor that hangs is noticed.  Whoever works longer
than a second outside the loop (opening a large log) says something on the lifeline meanwhile:
every line counts as a beat.

States: starting (until `ready`), running, draining (after SIGTERM, until `drained`), ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import zmq

from meterd.actors import endings
from meterd.actors.frames import rings, sockets
from meterd.actors.machine import journal
from meterd.actors.measuring.telemetry import Telemetry
from meterd.actors.options import Options
from meterd.protocol.errors import BootFailed, Corrupt, DiskFull, FsyncFailed

# One turn takes at most this many messages, so that beats and other sockets are served.
MESSAGES_PER_TURN_MAX = 1_000
BEAT_SECONDS = 1.0
# One write of at most this size to a pipe is never torn (PIPE_BUF is 4096).
LINE_SIZE_MAX = 500
# The options of the running node, in its run directory; the supervisor writes them, all or nothing.
OPTIONS_FILE = "options.json"

# Takes one message from a socket, or raises zmq.Again.
Receive = Callable[[zmq.Socket[bytes]], list[Any]]
# Says whether a socket has a message to take.
Waits = Callable[[zmq.Socket[bytes]], bool]
# What takes the messages of a socket.
Served = tuple[zmq.Socket[bytes], Receive, Waits, Callable[[list[bytes]], None]]

logger = logging.getLogger(__name__)


class Lifeline:
    """The pipe from an actor to the supervisor: one line a message, never blocking.

    Lines: ``beat``, ``ready``, ``handed_over``, ``status TEXT``, ``failed EXIT_CODE REASON``.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)

    def say(self, line: str) -> None:
        # A full pipe means that the supervisor does not read; it cannot act on one more line.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._descriptor, line.replace("\n", " ").encode()[:LINE_SIZE_MAX] + b"\n")


class Actor:
    """One process of a node.  Subclasses override the methods from `open` to `close`."""

    name: ClassVar[str]

    def __init__(self, options: Options, run_dir: str, lifeline: Lifeline) -> None:
        self.options = options
        self.run_dir = run_dir
        self.lifeline = lifeline
        self.telemetry = Telemetry(self.name)
        self.parent = os.getppid()
        self.stopping = False
        self.busy_at = 0.0  # when there was last anything to take, monotonic
        self.leaving = False  # the node is about to stop: others are to lead (SIGUSR1)
        self.reloading = False
        # ZeroMQ's own poll would ask every socket twice in each turn, five system calls for each.
        self._epoll = select.epoll()
        self._served: dict[int, Served] = {}  # by the descriptor that says a socket has news
        # Descriptors of sockets that may have messages although they do not say so (again): they
        # say it once, and what is sent on a socket may take note of it meanwhile.
        self._unsaid: dict[int, None] = {}
        self._two_way: list[int] = []  # those that are sent on
        self._watched: dict[int, Callable[[], None]] = {}
        self._outboxes: dict[str, zmq.Socket[bytes]] = {}
        self._ring = rings.writer_of(self.name)
        self._puts: dict[str, sockets.Put] = {}  # of actors that read the ring
        self._wake = os.pipe()
        self._tick_due = 0.0
        self._work_beat_due = 0.0

    # What an actor is made of

    def open(self) -> None:
        """Open files and sockets.  Raise BootFailed to halt the node with a reason."""

    def handle(self, frames: list[bytes]) -> None:
        """Take one message from the inbox."""

    def enough(self) -> bool:
        """Should this turn end, and be acted on, although more messages wait?"""
        return False

    def flush(self) -> None:
        """Act on what this turn's messages left; called after every turn that had any."""

    def tick(self, now: float) -> float:
        """Do what is due at monotonic `now`; return the seconds until the next call (at most 1)."""
        return BEAT_SECONDS

    def reload(self, options: Options) -> None:
        """Take over reloadable options (SIGHUP)."""
        self.options = options

    def drained(self) -> bool:
        """After SIGTERM: is there nothing left to finish?"""
        return True

    def close(self) -> None:
        """Finish: called once after the last turn."""

    # The means they share

    def ready(self) -> None:
        """Tell the supervisor that this actor can do its work."""
        self.lifeline.say("ready")

    def beat(self) -> None:
        """Say, from within work that may take longer than a turn should, that it goes on.

        The loop's own beat is due all the same: it reports, and sees whether the supervisor lives.
        """
        now = time.monotonic()
        if now >= self._work_beat_due:
            self._work_beat_due = now + BEAT_SECONDS
            self.lifeline.say("beat")

    def listen(
        self,
        socket: zmq.Socket[bytes],
        handler: Callable[[list[bytes]], None],
        receive: Receive = sockets.receive,
        waits: Waits = sockets.waits,
        two_way: bool | None = None,
    ) -> None:
        """Serve `socket` in the loop: `handler` gets each message that `receive` takes.

        two_way: is it sent on, but by `handler`?  None: its type says so.
        """
        descriptor = sockets.descriptor(socket)
        self._served[descriptor] = socket, receive, waits, handler
        self._unsaid[descriptor] = None
        if socket.type != zmq.PULL if two_way is None else two_way:
            self._two_way.append(descriptor)
        self._epoll.register(descriptor, select.EPOLLIN)

    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        """Call `handler` in the loop whenever `descriptor` is readable."""
        self._watched[descriptor] = handler
        self._epoll.register(descriptor, select.EPOLLIN)

    def unwatch(self, descriptor: int) -> None:
        """Do not do that any more."""
        del self._watched[descriptor]
        self._epoll.unregister(descriptor)

    def unlisten(self, socket: zmq.Socket[bytes]) -> None:
        """Stop serving `socket`, which is still open."""
        descriptor = sockets.descriptor(socket)
        del self._served[descriptor]
        self._unsaid.pop(descriptor, None)
        if descriptor in self._two_way:
            self._two_way.remove(descriptor)
        self._epoll.unregister(descriptor)

    def tick_by(self, moment: float) -> None:
        """Have `tick` called by monotonic `moment`, if that is before it is due anyhow."""
        self._tick_due = min(self._tick_due, moment)

    def send(self, actor: str, frames: Sequence[Any]) -> None:
        """Send one message, frames of bytes or arrays, to another actor's inbox."""
        outbox = self._outboxes.get(actor)
        if outbox is None:
            outbox = self._outboxes[actor] = sockets.outbox(self.run_dir, actor)
            if self._ring is not None and self._ring.reads(actor):
                self._puts[actor] = partial(self._ring.put, actor)
        sockets.send_packed(outbox, frames, self._puts.get(actor))

    # The loop

    def run(self) -> None:
        """Open, serve until told to stop, close."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor turns it into SIGTERM
        os.set_blocking(self._wake[1], False)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        self.watch(self._wake[0], self._on_wake)
        self.open()
        inbox = sockets.inbox(self.run_dir, self.name)
        reader = rings.reader_of(self.name)
        take = None if reader is None else reader.take
        self.listen(inbox, self.handle, partial(sockets.receive_packed, take=take))
        self._serve()
        self.close()
        self.report()
        sockets.close()

    def _serve(self) -> None:
        beat_due = 0.0
        while not (self.stopping and self.drained()):
            now = time.monotonic()
            if now >= beat_due:
                self._beat()
                beat_due = now + BEAT_SECONDS
            if now >= self._tick_due:
                self._tick_due = now + self.tick(now)
            wait = max(0.0, min(beat_due, self._tick_due) - time.monotonic())
            if self.turn(int(wait * 1000) + 1):
                self.busy_at = time.monotonic()
                self.flush()

    def turn(self, wait_ms: int) -> bool:
        """Take what waits on every socket; return whether there was anything."""
        for descriptor in self._two_way:
            socket, _, waits, _ = self._served[descriptor]
            if waits(socket):
                self._unsaid[descriptor] = None
        for descriptor, _ in self.wait(0.0 if self._unsaid else wait_ms / 1000):
            if descriptor in self._watched:
                self._watched[descriptor]()
            elif descriptor in self._served:  # else removed by a handler earlier in this turn
                self._unsaid[descriptor] = None
        taken = False
        for descriptor in [one for one in self._served if one in self._unsaid]:
            served = self._served.get(descriptor)
            if served is not None:  # the same
                taken |= self._take_from(descriptor, served)
                if descriptor in self._unsaid and self.enough():
                    break
        return taken

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """Return the descriptors that have news, and what; wait for the first for so long."""
        return self._epoll.poll(seconds)

    def _take_from(self, descriptor: int, served: Served) -> bool:
        """Take what waits on a socket, or enough of it; return whether there was anything."""
        socket, receive, waits, handler = served
        for count in range(MESSAGES_PER_TURN_MAX):
            try:
                frames = receive(socket)
            except zmq.Again:
                self._unsaid.pop(descriptor, None)
                return count > 0
            handler(frames)
            if self.enough():
                return True
            # To ask costs less than an exception that says no, and more than to take what is there.
            if count == 0 and not waits(socket):
                self._unsaid.pop(descriptor, None)
                return True
        return True

    def _beat(self) -> None:
        if os.getppid() != self.parent:
            os._exit(1)  # the supervisor is gone; nobody would restart or reap us
        self.lifeline.say("beat")
        self.report()
        if self.reloading:
            self.reloading = False
            options = Options.from_json(Path(self.run_dir, OPTIONS_FILE).read_bytes())
            journal.set_level(options.log.level)
            self.reload(options)

    def report(self) -> None:
        snapshot = self.telemetry.snapshot()
        if snapshot is not None:
            self.send("metrics", [b"telemetry", self.name.encode(), msgpack.packb(snapshot)])

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            self.stopping = True
        elif number == signal.SIGUSR1:
            self.leaving = True
        else:
            self.reloading = True

    def _on_wake(self) -> None:
        """A signal has come: `tick` may have something to do."""
        os.read(self._wake[0], 4096)
        self._tick_due = 0.0


def main(actor: Actor) -> int:
    """Run an actor to its end and return its exit status.

    What restarting cannot mend halts the node: damage, a disk that fails, a refused boot.
    """
    try:
        actor.run()
        return endings.CLEAN
    except BootFailed as failure:
        code, reason = failure.exit_code, failure.reason
    except Corrupt as error:
        code, reason = endings.CORRUPT, f"{error}; {error.hint}"
    except (FsyncFailed, DiskFull) as error:
        code, reason = endings.IO_ERROR, f"{error}; {error.hint}"
    except Exception:
        # The one place that ends a process for a bug: say where, and let the supervisor restart it.
        logger.exception("ended by a bug")
        return endings.INTERNAL
    actor.lifeline.say(f"failed {code} {reason}")
    return code

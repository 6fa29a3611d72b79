"""Moves a session's frames for any number of threads, without a thread of its own.

A thread that has nobody to wait for it drives: it sends, polls and receives until its own job is
done, and finishes other threads' jobs on the way. The others wait, and when the driver is done the
next of them drives. So a single thread, the usual case, pays for no handover between threads, and
many threads share connections and window.

Invariants:
  * sockets are touched by the driving thread alone, the session under the lock alone;
  * as long as a job is open, a thread drives or has been woken in order to drive;
  * who drives closes the sockets, when the client is closed meanwhile.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Sequence

import zmq

from meterd.client.connections import Connections
from meterd.client.session import Job, Session

WAKE_BYTES_MAX = 4_096


class Driver:
    """Runs jobs for the threads of one process."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        self._driving: Job | None = None  # the job of the thread that drives
        self._waiters: dict[Job, threading.Event] = {}  # jobs of the threads that do not
        self._poller = zmq.Poller()
        self._connections = Connections(
            lambda opened: self._poller.register(opened, zmq.POLLIN), self._poller.unregister
        )
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._poller.register(self._woken.fileno(), zmq.POLLIN)
        self._closed = False
        self._inside: set[int] = set()  # threads in `run`
        self._released = threading.Event()  # closed, and the sockets with it

    def check_owner(self) -> None:
        """Raise RuntimeError after close, or in a child process: sockets do not survive a fork."""
        if self._owner_pid != os.getpid():
            raise RuntimeError(
                f"this client was made in process {self._owner_pid}: make one after the fork"
            )
        if self._closed:
            raise RuntimeError("this client is closed")

    def run(self, job: Job) -> None:
        """Return when the job is done."""
        self.check_owner()
        self._inside.add(threading.get_ident())
        try:
            waiter = self._begin(job)
            if waiter is not None:
                self._interrupt_poll()
                waiter.wait()
            if not job.done:
                self._drive(job)
        finally:
            self._leave(job)
            self._inside.discard(threading.get_ident())

    def _begin(self, job: Job) -> threading.Event | None:
        """Start a job; if it is not done and another thread drives, return what to wait for."""
        waiter = None
        with self._lock:
            self.check_owner()
            self._session.start(time.monotonic(), job)
            self._tell_finished()
            if job.done:
                return None
            if self._driving is None:
                self._driving = job
            else:
                waiter = self._waiters[job] = threading.Event()
        return waiter

    def close(self) -> None:
        """Close the sockets; threads that still wait get RuntimeError."""
        if self._closed or self._owner_pid != os.getpid():
            return
        self._closed = True
        if threading.get_ident() in self._inside:
            # A signal has interrupted a call, which may drive, wait or hold the lock: whoever is
            # the last to leave closes the sockets.
            self._interrupt_poll()
            return
        with self._lock:
            if self._driving is None:
                self._release()
            else:
                self._interrupt_poll()
        self._released.wait()

    def _release(self) -> None:
        if not self._released.is_set():
            self._connections.close()
            self._woken.close()
            self._wake.close()
            self._released.set()

    def _drive(self, job: Job) -> None:
        while True:
            if self._closed and not job.done:
                raise RuntimeError("this client was closed")
            with self._lock:
                sends = self._session.take_sends()
                wake = self._session.next_wake()
            for address, frames in sends:
                self._connections.send(address, frames)
            if job.done:
                return
            self._take_answers(self._poll(wake))

    def _poll(self, wake: float | None) -> Sequence[tuple[object, int]]:
        """Wait until something arrives, another thread has work, or the session must be told."""
        if wake is None:
            return self._poller.poll()
        return self._poller.poll(max(0, math.ceil((wake - time.monotonic()) * 1000)))

    def _take_answers(self, ready: Sequence[tuple[object, int]]) -> None:
        """Hand over what has arrived, and only then the time: an answer may have lain there."""
        answers = self._connections.receive_one(ready) if ready else []
        lost = self._connections.lost_of(ready) if len(answers) < len(ready) else []
        with self._lock:
            now = time.monotonic()
            for address, frames in answers:
                self._session.on_answer(now, address, frames)
            for address in lost:
                self._session.on_lost(now, address)
            wake = self._session.next_wake()
            if wake is not None and wake <= now:
                self._session.on_tick(now)
            self._tell_finished()
        if len(answers) + len(lost) < len(ready):
            self._drain_wake()

    def _tell_finished(self) -> None:
        """Wake the threads whose jobs are done; called under the lock."""
        for job in self._session.take_finished():
            waiter = self._waiters.pop(job, None)
            if waiter is not None:
                waiter.set()

    def _leave(self, job: Job) -> None:
        """Let the next thread drive; forget the job if its thread was interrupted."""
        with self._lock:
            if not job.done:
                self._session.abandon(job)
                self._waiters.pop(job, None)
            if self._driving is job:
                self._driving = next(iter(self._waiters), None)
                if self._driving is not None:
                    self._waiters.pop(self._driving).set()
            if self._driving is None and self._closed:
                self._release()

    def _interrupt_poll(self) -> None:
        try:
            self._wake.send(b"\0")
        except OSError:
            return  # full: the driver will wake anyway; or closed: nobody drives

    def _drain_wake(self) -> None:
        try:
            self._woken.recv(WAKE_BYTES_MAX)
        except BlockingIOError:
            return

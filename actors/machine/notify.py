"""Tells systemd how the node does (sd_notify), and nothing when systemd did not start it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

EXTEND_SECONDS = 60
# What takes long and says nothing itself asks again so often.
EXTEND_AGAIN_SECONDS = 20.0


class Notifier:
    """The way to the service manager; every method is harmless without one."""

    def __init__(self, environment: dict[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        interval = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Half the interval, as sd_watchdog_enabled(3) recommends; 0: nobody watches.
        self.watchdog_seconds = int(interval) / 2e6 if interval.isdigit() and mine else 0.0
        self._beat_due = 0.0
        self._status = ""

    def send(self, *lines: str) -> None:
        """Send assignments such as READY=1."""
        if not self._address:
            return
        # A service manager that is away must not stop the node.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as way:
            way.sendto("\n".join(lines).encode(), self._address)

    def status(self, text: str, *, extend: bool = False) -> None:
        """Show `text` in `systemctl status`; `extend` asks for more time to start or stop."""
        if text == self._status and not extend:
            return
        self._status = text
        more = [f"EXTEND_TIMEOUT_USEC={EXTEND_SECONDS * 1_000_000}"] if extend else []
        self.send(f"STATUS={text}", *more)

    @contextlib.contextmanager
    def patience(self, text: str) -> Iterator[None]:
        """Show `text`, and ask for more time again and again, for as long as this lasts.

        By a thread, which has ended afterwards: nothing of it is there when actors are forked.
        """
        over = threading.Event()

        def ask() -> None:
            while not over.wait(EXTEND_AGAIN_SECONDS):
                self.status(text, extend=True)

        self.status(text, extend=True)
        asking = threading.Thread(target=ask, name="patience", daemon=True)
        if self._address:
            asking.start()
        try:
            yield
        finally:
            over.set()
            if self._address:
                asking.join()

    def reloading(self) -> None:
        """Say that a reload begins; READY=1 ends it."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def beat(self, now: float) -> None:
        """Feed the watchdog when it is time to."""
        if self.watchdog_seconds and now >= self._beat_due:
            self._beat_due = now + self.watchdog_seconds
            self.send("WATCHDOG=1")

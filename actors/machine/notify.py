"""Tells systemd how the node does (sd_notify), and nothing when systemd did not start it."""

from __future__ import annotations

import contextlib
import os
import socket
import time

EXTEND_SECONDS = 60


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

    def reloading(self) -> None:
        """Say that a reload begins; READY=1 ends it."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def beat(self, now: float) -> None:
        """Feed the watchdog when it is time to."""
        if self.watchdog_seconds and now >= self._beat_due:
            self._beat_due = now + self.watchdog_seconds
            self.send("WATCHDOG=1")

"""Starts servers for a benchmark, in directories of their own, and ends what it started.

Nothing is left behind: a server is ended by its process id and its directory removed however the
benchmark ends.  Servers that refuse to run as root are given an unprivileged user.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 60.0
POLL_SECONDS = 0.05
LOG_NAME = "server.log"


def find_program(name: str, install: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is missing; install it with: {install}")
    return found


@contextmanager
def peer_directory(parent: Path, prefix: str, user: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A directory for a server, and the arguments that make a child its owner."""
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam(user)
        os.chown(directory, account.pw_uid, account.pw_gid)
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    try:
        yield directory, identity
    finally:
        shutil.rmtree(directory)


@contextmanager
def running(
    command: list[str], directory: Path, identity: dict[str, Any] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A server process, its output in a file of the directory; asked to end, then made to."""
    with (directory / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **(identity or {}),
        )
        try:
            yield process
        finally:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def await_server(process: "subprocess.Popen[bytes]", attempt: Callable[[], object]) -> None:
    """Repeat an attempt until it works. Raises its last error when the server is not coming."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            attempt()
            return
        except Exception:  # each client library has errors of its own
            if process.poll() is not None or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)

"""Runs a real meterd node in a directory of its own, and looks at it from outside.

The node is the checkout's `bin/meterd` with its defaults, on free ports of the loopback; it tells
the moment it is ready the way it tells systemd.  What it costs is read from /proc for the
supervisor and all its actors together.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.processes import LOG_NAME, running
from bench.support import CHECKOUT
from tests.support.ports import free_ports

READY_SECONDS_MAX = 600.0
NOTIFY_SIZE = 4096
# A node that is left alone with its log: no checkpoint is saved while a benchmark runs.
NO_CHECKPOINTS = {
    "METERD__STORAGE__CHECKPOINT_EVENTS": "1000000000",
    "METERD__STORAGE__CHECKPOINT_INTERVAL": "24h",
}


def processes_of(supervisor_pid: int) -> list[psutil.Process]:
    supervisor = psutil.Process(supervisor_pid)
    return [supervisor, *supervisor.children(recursive=True)]


@dataclass
class Node:
    """A node that is ready."""

    process: "subprocess.Popen[bytes]"
    address: str
    http_port: int
    directory: Path
    ready_seconds: float

    def pids(self) -> list[psutil.Process]:
        return processes_of(self.process.pid)

    def pss_bytes(self) -> int:
        """Memory of all processes, shared pages counted once."""
        return sum(process.memory_full_info().pss for process in self.pids())

    def cpu_seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.pids())

    def kill(self) -> None:
        """End all processes at once, as a power cut would, and wait until they are gone."""
        everything = self.pids()
        for process in everything:
            process.send_signal(signal.SIGKILL)
        self.process.wait()
        psutil.wait_procs(everything[1:], timeout=10)

    def meterctl(self, *arguments: str) -> dict[str, Any]:
        """Run a command of meterctl; its JSON."""
        program = [sys.executable, str(CHECKOUT / "bin" / "meterctl")]
        command = [*program, "-n", self.address, "-o", "json", *arguments]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode != 0:
            raise RuntimeError(f"{arguments}: exit {found.returncode}: {found.stderr[-2000:]}")
        return dict(json.loads(found.stdout))

    def bench(self, **options: Any) -> dict[str, Any]:
        """Load the node with `meterctl bench`, which verifies all totals afterwards."""
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        found = self.meterctl("bench", *flags)
        if not found["verified"]:
            raise RuntimeError(f"totals are not what was sent: {found}")
        return found


@contextmanager
def node_directory(parent: Path) -> Iterator[Path]:
    """A directory for a node, removed afterwards; its path is short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="md-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def meterd_node(
    directory: Path,
    settings: Mapping[str, str] | None = None,
    program: Path = CHECKOUT / "bin" / "meterd",
) -> Iterator[Node]:
    """A node on a directory that may already have a history; ended afterwards."""
    port, http_port = free_ports(2)
    command = [sys.executable, str(program)]
    command += ["--data-dir", str(directory / "data"), "--port", str(port)]
    command += ["--http-port", str(http_port), "--log-level", "warning"]
    with notify_socket(directory) as (notify, path):
        environment = {**os.environ, **(settings or {}), "NOTIFY_SOCKET": str(path)}
        begin = time.monotonic()
        with running(command, directory, {"env": environment}) as process:
            await_ready(process, notify, directory)
            yield Node(process, f"127.0.0.1:{port}", http_port, directory, time.monotonic() - begin)


@contextmanager
def notify_socket(directory: Path) -> Iterator[tuple[socket.socket, Path]]:
    path = directory / "notify"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(1.0)
        yield notify, path


def await_ready(process: "subprocess.Popen[bytes]", notify: socket.socket, directory: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            if b"READY=1" in notify.recv(NOTIFY_SIZE):
                return
        except TimeoutError:
            if process.poll() is not None:
                break
    log = (directory / LOG_NAME).read_text()[-2000:]
    raise RuntimeError(f"the node is not ready:\n{log}")

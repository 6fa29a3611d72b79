"""Starts a real node, `bin/meterd`, in a directory and on ports of its own.

with Node() as node: the node is ready.  Its directory goes with it unless `data_dir` was given.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

from tests.support.ports import free_ports
from tests.support.processes import group_is_gone
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 120.0  # a first start compiles kernels
STOP_SECONDS = 60.0


class Node:
    """One node of meterd under test."""

    def __init__(
        self, *flags: str, data_dir: Path | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="mnode", dir="/tmp"))
        self.data_dir = data_dir or self.home / "data"
        self.port, self.http_port = free_ports(2)
        self.output = self.home / "stderr"
        self._flags = flags
        self._environment = {**os.environ, "METERD_TEST_COMPILED": "", **(environment or {})}
        self.process: Any = None  # as `launch` returns it

    # Life

    def start(self, *, wait: bool = True) -> Self:
        """Start the daemon; unless told otherwise return only when it is ready."""
        command = [sys.executable, str(ROOT / "bin" / "meterd"), "--data-dir", str(self.data_dir)]
        command += ["--port", str(self.port), "--http-port", str(self.http_port), *self._flags]
        self.process = self.launch(command, self._environment, self.output)
        return self.ready() if wait else self

    @staticmethod
    def launch(command: list[str], environment: dict[str, str], output: Path) -> Any:
        """Begin a process, as `subprocess.Popen`; what it says goes behind what is in a file."""
        with output.open("ab") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, start_new_session=True
            )

    def ready(self) -> Self:
        """Wait until it is ready; a node that ends instead is a failure."""

        def running() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the node ended: {self.process.returncode}\n{self.log()}")
            return self.page().get("state") == "running"

        try:
            eventually(running, "the node is ready", START_SECONDS)
        except AssertionError as error:
            error.add_note(self.log())
            raise
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it in order; return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def kill9(self) -> None:
        """Kill every process of the node at once, as a power cut would end them."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        eventually(self._is_gone, "all processes have gone", STOP_SECONDS)

    def restart(self) -> Self:
        """Stop it in order and start it again."""
        assert self.stop() == 0, self.log()
        return self.start()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.remove()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            sys.stderr.write(self.log())
        self.remove()

    def remove(self) -> None:
        """End it and remove its files."""
        if self.process is not None and self.process.poll() is None:
            self.kill9()
        shutil.rmtree(self.home)
        shutil.rmtree(self.other_run_dir, ignore_errors=True)

    def _is_gone(self) -> bool:
        return self.process is None or group_is_gone(self.process.pid)

    # Looking at it

    def page(self) -> dict[str, Any]:
        """Return what the supervisor says about itself and its actors; empty before it does."""
        for directory in (self.run_dir, self.other_run_dir):
            try:
                page: dict[str, Any] = json.loads((directory / "actors.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                continue
            if self.process is not None and page["pid"] == self.process.pid:
                return page  # else a file of the run before this one
        return {}

    @property
    def run_dir(self) -> Path:
        return self.data_dir / "run"

    @property
    def other_run_dir(self) -> Path:
        """Where the run directory lies when the data directory was full at the start."""
        path = os.path.realpath(self.data_dir)
        return Path(f"/tmp/meterd-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}")

    def pids(self) -> dict[str, int]:
        """Return the process of each actor by name, and of the supervisor."""
        page = self.page()
        return {name: actor["pid"] for name, actor in page["actors"].items()} | {
            "supervisor": page["pid"]
        }

    def kill_actor(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one actor."""
        os.kill(self.pids()[name], number)

    def log(self) -> str:
        """Return everything it has written."""
        return self.output.read_text() if self.output.exists() else ""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, str]:
        """Fetch a page over HTTP; return status and body."""
        url = f"http://127.0.0.1:{self.http_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def client(self, **arguments: Any) -> Any:
        """Return a `Client` of the library, connected to this node."""
        from meterd.client import Client

        return Client([self.address], **arguments)

    def dealer(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        """Return a raw socket, connected to this node."""
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"tcp://{self.address}")
        return dealer

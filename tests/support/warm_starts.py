"""Starts many nodes without loading modules and kernels anew for each: nine tenths of a start.

A process that has loaded everything forks the daemon for whoever asks on its standard input.  From
there on all is as after an exec: a session, an environment and files of its own.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.node import ROOT, Node
from tests.support.waiting import eventually


class WarmStarts:
    """While it is open every `Node` starts so."""

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm_starts"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._before, Node.launch = Node.launch, self.launch  # type: ignore[method-assign, assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        Node.launch = staticmethod(self._before)  # type: ignore[method-assign, assignment]
        self._process.communicate()

    def launch(self, command: list[str], environment: dict[str, str], output: Path) -> Forked:
        """As `Node.launch`."""
        arguments = [command[1:], environment, str(output)]
        return Forked(self.ask({"start": arguments}), self)

    def ask(self, asked: dict[str, Any]) -> Any:
        with self._lock:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


class Forked:
    """What tests use of a `subprocess.Popen`."""

    def __init__(self, pid: int, starts: WarmStarts) -> None:
        self.pid, self._starts = pid, starts
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._starts.ask({"exit code of": self.pid})
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        eventually(lambda: self.poll() is not None, "it ends", timeout)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve() -> None:
    """Fork what is asked for until nobody asks any more."""
    from meterd.actors.node import warm_kernels
    from meterd.daemon import main

    warm_kernels()
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        if "start" in asked:
            answer: int | None = os.fork()
            if answer == 0:
                _become(*asked["start"])
                return main(prog_name="meterd")
        else:
            pid, status = os.waitpid(asked["exit code of"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return None


def _become(command: list[str], environment: dict[str, str], output: str) -> None:
    os.setsid()
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(source, target)
    os.close(written)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = command


if __name__ == "__main__":
    serve()

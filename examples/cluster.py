#!/usr/bin/env python3
"""Runs a cluster of nodes on this machine until Ctrl-C: `make cluster`.

Without a directory the nodes keep their data in a temporary one, which goes with them; with one
they go on where they were. Says where each listens, when all are well, and what to try. A node that
ends by itself is named, with the last lines that it wrote; the others go on.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

PORT, HTTP_PORT, REPLICATION_OFFSET = 7001, 9090, 1000
START_SECONDS_MAX = 300.0  # the first start compiles the kernels
STOP_SECONDS_MAX = 60.0
LOOK_SECONDS = 0.2
LAST_LOG_LINES = 10


def say(text: str) -> None:
    print(text, flush=True)


class Node:
    """One node: its directory, ports and process."""

    def __init__(self, number: int, home: Path, port: int, http_port: int) -> None:
        self.number = number
        self.directory = home / f"node{number}"
        self.log = home / f"node{number}.log"
        self.port, self.http_port = port, http_port
        self.process: subprocess.Popen[bytes] | None = None
        self.ended = False

    @property
    def peer(self) -> str:
        return f"{self.number}:127.0.0.1:{self.port + REPLICATION_OFFSET}"

    def start(self, peers: str) -> None:
        """Start it, in a process group of its own: Ctrl-C is for this program alone."""
        command = [sys.executable, str(CHECKOUT / "bin" / "meterd")]
        command += ["--node-id", str(self.number), "--data-dir", str(self.directory)]
        command += ["--port", str(self.port), "--http-port", str(self.http_port)]
        command += ["--peers", peers]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            )

    def is_well(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/readyz", timeout=2):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def look(self) -> bool:
        """Say so when it has ended; return whether it runs."""
        assert self.process is not None
        if self.ended:
            return False
        code = self.process.poll()
        if code is None:
            return True
        self.ended = True
        say(f"node {self.number} ended with exit code {code}; the end of {self.log}:")
        for line in self.log.read_text(errors="replace").splitlines()[-LAST_LOG_LINES:]:
            say(f"  {line}")
        return False

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def await_end(self) -> None:
        """Wait until it has stopped; kill it when that takes too long."""
        if self.process is None:
            return
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            say(f"node {self.number} does not stop; killing it")
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", help="where the nodes keep their data")
    parser.add_argument("--nodes", type=int, default=3, help="how many (3)")
    parser.add_argument("--port", type=int, default=PORT, help="of the first node (7001)")
    parser.add_argument("--http-port", type=int, default=HTTP_PORT, help="of the first node (9090)")
    return parser.parse_args()


def main() -> int:
    """Run the cluster; return an exit code."""
    given = arguments()
    temporary = given.directory is None
    home = Path(tempfile.mkdtemp(prefix="meterd-cluster-") if temporary else given.directory)
    home.mkdir(parents=True, exist_ok=True)
    nodes = [
        Node(step + 1, home, given.port + step, given.http_port + step)
        for step in range(given.nodes)
    ]
    for node in nodes:
        for port in (node.port, node.port + REPLICATION_OFFSET, node.http_port):
            if not free(port):
                say(f"port {port} is in use; choose others with --port and --http-port")
                return 1
    stops: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: stops.append(number))
    try:
        return serve(nodes, home, stops)
    finally:
        for node in nodes:
            node.stop()
        for node in nodes:
            node.await_end()
        if temporary:
            shutil.rmtree(home, ignore_errors=True)
        say("all nodes have stopped")


def serve(nodes: list[Node], home: Path, stops: list[int]) -> int:
    """Start the nodes, say when all are well, and wait to be told to stop."""
    peers = ",".join(node.peer for node in nodes)
    say(f"starting {len(nodes)} nodes in {home}")
    for node in nodes:
        node.start(peers)
        say(
            f"  node {node.number}  clients 127.0.0.1:{node.port}  health and telemetry"
            f" http://127.0.0.1:{node.http_port}/health  log {node.log}"
        )
    give_up = time.monotonic() + START_SECONDS_MAX
    well = False
    while not stops:
        running = [node for node in nodes if node.look()]
        if not running:
            return 1
        if not well and all(node.is_well() for node in nodes):
            well = True
            hint(nodes)
        if not well and time.monotonic() > give_up:
            say("the nodes are not all well yet; meterctl health says why")
            give_up = float("inf")
        time.sleep(LOOK_SECONDS)
    say("stopping")
    return 0


def hint(nodes: list[Node]) -> None:
    """Say that all are well, and what to try."""
    addresses = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    say("all are well; Ctrl-C ends them.  Try:")
    say(f"  export METERCTL_NODES={addresses}")
    say("  bin/meterctl topology")
    say("  bin/meterctl metric put api_calls --aggregation count")
    say("  bin/meterctl bench --seconds 5")
    say(f"  kill -9 a node ({nodes[-1].process.pid if nodes[-1].process else '-'}), and look again")


if __name__ == "__main__":
    sys.exit(main())

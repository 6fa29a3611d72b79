"""`meterctl drill`: proves that the newest backup can be restored, and how long that takes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meterd.commands.backup import (
    configured_directory,
    from_option,
    name_option,
    node_option,
    open_shelf,
    scratch_option,
    tell_nodes,
    tell_option,
)
from meterd.commands.console import Progress, field_lines, to_json
from meterd.commands.durations import parse_duration
from meterd.commands.session import AdminError, Session, command
from meterd.exits import AdminExit

if TYPE_CHECKING:
    from meterd.actors.backups.restoring import Plan

READY_SECONDS = 3_600.0
STOP_SECONDS = 120.0
NOTIFY_SIZE = 4_096
NS = 1_000_000_000


@command("drill", short_help="Prove that the newest backup can be restored.")
@from_option
@name_option
@node_option
@scratch_option
@click.option("--max-rto", callback=parse_duration, metavar="DURATION",
              help="Exit code 1 when restore and start take longer.")
@click.option("--max-rpo", callback=parse_duration, metavar="DURATION",
              help="Exit code 1 when the backup is older.")
@click.option("--report", metavar="FILE", help="Write the JSON result there as well.")
@tell_option
def drill(session: Session, source: str, name: str | None, node: int | None, scratch: str | None,
          max_rto: int | None, max_rpo: int | None, report: str | None, tell: bool) -> None:
    """Restore the newest backup into a scratch directory, start a node on it, compare, remove it.

    Where backups of several nodes lie, of the node of this machine's data directory, or of --node.
    No node is started on that of a member of a cluster, which would wait for the others.

    RTO is the time from nothing to a node that serves, control totals compared on the way; RPO is
    the age of the backup. Exit code 1: a limit is exceeded; 9: the backup is damaged; 11: no room.
    """
    from meterd.actors.backups import restoring

    shelf, contents = open_shelf(source)
    # With a name it is not asked whose backup is meant, and no configuration is needed.
    manifest = restoring.choose(contents, name, node, "" if name else configured_directory())
    rpo = (time.time_ns() - manifest.cut.taken) / NS
    home = tempfile.mkdtemp(prefix="meterd-drill-", dir=scratch)
    try:
        began = time.monotonic()
        todo = restoring.plan(shelf, manifest, os.path.join(home, "data"), "node")
        progress = Progress()
        findings = restoring.carry_out(shelf, todo, "replay", progress.update)
        progress.clear()
        restored = time.monotonic()
        alone = not findings and restoring.is_alone(todo.data_dir)
        position = None if findings else str(manifest.cut.sequence)
        if alone:  # one of several waits for the others; what it holds has been compared
            position = _position_of_started(todo, Path(home))
        ready = time.monotonic()
    finally:
        shutil.rmtree(home)
    equal = not findings and position == str(manifest.cut.sequence)
    document: dict[str, Any] = {
        "backup": manifest.name,
        "totals_equal": equal,
        "events": manifest.events,
        "size": manifest.size,
        "restore_seconds": round(restored - began, 3),
        "started": alone,
        "start_seconds": round(ready - restored, 3),
        "rto_seconds": round(ready - began, 3),
        "rpo_seconds": round(rpo, 3),
        "findings": [{"file": one.file, "problem": one.problem} for one in findings],
    }
    if report:
        Path(report).write_text(to_json(document, 1) + "\n")
    session.console.show(document, lambda: field_lines(
        (key.replace("_", " "), str(value)) for key, value in document.items()
    ))
    if tell:
        figures = {name: int(document[f"{name}_seconds"] * 1_000) for name in ("rto", "rpo")}
        tell_nodes(session, proof="drill", good=equal,
                   **{f"{name}_ms": max(0, value) for name, value in figures.items()})
    if not equal:
        raise SystemExit(AdminExit.CORRUPT)
    late = max_rto is not None and document["rto_seconds"] > max_rto
    if late or (max_rpo is not None and rpo > max_rpo):
        raise SystemExit(AdminExit.NO)


def _position_of_started(todo: "Plan", home: Path) -> str:
    """Start a node on the restored directory; return how far its log was applied when ready."""
    from meterd.client import Client

    with _started(todo, home) as address, Client([address], timeout=60) as client:
        # Its first own record, if any, is that nothing is expired: the replayed ones are before.
        replayed = client.status()["log"]["records"]
        return str(min(int(replayed), todo.manifest.cut.sequence))


@contextmanager
def _started(todo: "Plan", home: Path) -> Iterator[str]:
    port, http_port = _free_ports(2)
    flags = {"--data-dir": todo.data_dir, "--node-id": str(todo.manifest.node_id),
             "--port": str(port), "--http-port": str(http_port), "--bootstrap": "recover"}
    command = [sys.executable, "-m", "meterd", *(text for pair in flags.items() for text in pair)]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        (home / "log").open("wb") as log,
    ):
        notify.bind(str(home / "notify"))
        notify.settimeout(0.1)
        environment = {key: value for key, value in os.environ.items()
                       if not key.startswith("METERD")}
        environment |= {"NOTIFY_SOCKET": str(home / "notify"), "PYTHONPATH": _code_path()}
        with subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
            try:
                _await_ready(process, notify, home / "log")
                yield f"127.0.0.1:{port}"
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()


def _await_ready(process: "subprocess.Popen[bytes]", notify: socket.socket, log: Path) -> None:
    give_up = time.monotonic() + READY_SECONDS
    while time.monotonic() < give_up:
        try:
            if b"READY=1" in notify.recv(NOTIFY_SIZE):
                return
        except TimeoutError:
            if process.poll() is not None:
                break
    lines = log.read_text("utf-8", "replace").splitlines()
    raise AdminError(AdminExit.CORRUPT, "corrupt",
                     f"the restored node did not start: {lines[-1] if lines else ''}")


def _code_path() -> str:
    import meterd

    own = str(Path(meterd.__file__).resolve().parent.parent)
    return os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports

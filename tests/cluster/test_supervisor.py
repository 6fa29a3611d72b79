"""The supervisor with toy actors: real processes, real signals, real deaths."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meterd.actors.supervisor import STOP_SECONDS
from tests.support.processes import is_gone
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent.parent


class ToyNode:
    """One run of tests/support/toy_node.py."""

    def __init__(self, behaviour: str = "", **environment: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mtoy", dir="/tmp"))
        self.output = self.directory / "stderr"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.toy_node", str(self.directory), behaviour],
                cwd=ROOT,
                stderr=output,
                env={**os.environ, **environment},
            )

    def actors(self) -> dict[str, Any]:
        try:
            page = json.loads((self.directory / "run" / "actors.json").read_text())
        except FileNotFoundError:
            return {}
        return page["actors"] if page["state"] == "running" else {}

    def running(self) -> dict[str, Any]:
        return eventually(self.actors, f"all actors ready\n{self.output.read_text()}")

    def pids(self) -> dict[str, int]:
        return {name: actor["pid"] for name, actor in self.running().items()}

    def restarted(self, before: dict[str, int], names: set[str]) -> dict[str, int]:
        """Wait until exactly `names` have new processes."""

        def changed() -> dict[str, int]:
            now = {name: actor["pid"] for name, actor in self.actors().items()}
            return now if {n for n in now if now[n] != before[n]} >= names else {}

        after = eventually(changed, f"{names} started again")
        assert {name for name in after if after[name] != before[name]} == names
        return after

    def log(self) -> str:
        return self.output.read_text()

    def remove(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory)


@pytest.fixture
def start() -> Iterator[Callable[..., ToyNode]]:
    nodes: list[ToyNode] = []

    def starter(behaviour: str = "", **environment: str) -> ToyNode:
        nodes.append(ToyNode(behaviour, **environment))
        return nodes[-1]

    yield starter
    for node in nodes:
        node.remove()


def test_a_member_of_the_chain_takes_the_chain_with_it(start: Callable[..., ToyNode]) -> None:
    node = start()
    before = node.pids()
    os.kill(before["second"], signal.SIGKILL)
    node.restarted(before, {"first", "second"})
    assert is_gone(before["first"])
    assert node.running()["first"]["restarts"] == 1
    assert node.running()["alone"]["restarts"] == 0


def test_an_actor_outside_the_chain_restarts_alone(start: Callable[..., ToyNode]) -> None:
    node = start()
    before = node.pids()
    os.kill(before["alone"], signal.SIGKILL)
    node.restarted(before, {"alone"})


def test_a_frozen_actor_is_noticed_and_replaced(start: Callable[..., ToyNode]) -> None:
    node = start()
    before = node.pids()
    os.kill(before["alone"], signal.SIGSTOP)
    node.restarted(before, {"alone"})
    assert "alone is silent" in node.log()


def test_a_boot_failure_halts_the_node_with_its_code(start: Callable[..., ToyNode]) -> None:
    node = start("boot_failed")
    assert node.process.wait(20) == 79
    assert "second: this is the wrong directory" in node.log()


def test_corruption_halts_the_node_and_names_the_place(start: Callable[..., ToyNode]) -> None:
    node = start("corrupt")
    assert node.process.wait(20) == 65
    assert "wal.log at offset 4096" in node.log()


def test_an_actor_that_never_starts_ends_the_node(start: Callable[..., ToyNode]) -> None:
    node = start("dies")
    assert node.process.wait(30) == 70
    assert "never ready" in node.log()
    assert "RuntimeError: a bug" in node.log()


def test_sigterm_stops_in_order_and_leaves_nobody(start: Callable[..., ToyNode]) -> None:
    node = start()
    pids = node.pids()
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(20) == 0
    assert "graceful shutdown complete" in node.log()
    assert int((node.directory / "run" / "closed").read_text()) == pids["alone"]
    assert all(is_gone(pid) for pid in pids.values())


def test_who_does_not_stop_is_killed_and_named(start: Callable[..., ToyNode]) -> None:
    node = start("hangs")
    pids = node.pids()
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(20) == 0
    assert "stopped; killed: router" in node.log()
    assert "graceful shutdown complete" not in node.log()
    assert (node.directory / "run" / "closed").exists()
    assert all(is_gone(pid) for pid in pids.values())


@pytest.mark.parametrize("behaviour", ["leads", "leads_on", "dies_leading"])
def test_leadership_is_handed_over_before_anybody_stops_but_not_waited_for_too_long(
    start: Callable[..., ToyNode], behaviour: str
) -> None:
    node = start(behaviour)
    node.running()
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(20) == 0
    assert (node.directory / "run" / "leaving").exists()
    assert (node.directory / "run" / "closed").exists()
    assert ("leadership is not handed over" in node.log()) == (behaviour == "leads_on")


def test_a_second_sigterm_ends_the_wait(start: Callable[..., ToyNode]) -> None:
    node = start("leads_on")
    node.running()
    node.process.send_signal(signal.SIGTERM)
    eventually((node.directory / "run" / "leaving").exists, "it hands over")
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(20) == 0
    assert "leadership is not handed over" not in node.log(), "it has waited to the end"


def test_ctrl_c_reaches_every_process_and_still_stops_in_order(
    start: Callable[..., ToyNode],
) -> None:
    node = start()
    pids = node.pids()
    for pid in [*pids.values(), node.process.pid]:
        os.kill(pid, signal.SIGINT)
    assert node.process.wait(20) == 0
    assert (node.directory / "run" / "closed").exists()


def test_nobody_outlives_a_killed_supervisor(start: Callable[..., ToyNode]) -> None:
    node = start()
    pids = node.pids()
    node.process.kill()
    node.process.wait()
    eventually(lambda: all(is_gone(pid) for pid in pids.values()), "the actors are gone")


def test_a_second_node_in_the_same_directory_is_told_who_holds_it(
    start: Callable[..., ToyNode],
) -> None:
    node = start()
    node.running()
    second = subprocess.run(
        [sys.executable, str(ROOT / "bin" / "meterd"), "--data-dir", str(node.directory)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 75
    assert f"in use by process {node.process.pid}" in second.stderr


def test_sighup_takes_over_what_may_change(start: Callable[..., ToyNode]) -> None:
    node = start()
    node.running()
    (node.directory / "level").write_text("debug")
    node.process.send_signal(signal.SIGHUP)
    reloaded = node.directory / "run" / "reloaded"
    eventually(lambda: reloaded.exists() and reloaded.read_text() == "debug", "a reload")


def test_sighup_with_a_wrong_configuration_changes_nothing(start: Callable[..., ToyNode]) -> None:
    node = start()
    before = node.pids()
    (node.directory / "level").write_text("loud")
    node.process.send_signal(signal.SIGHUP)
    eventually(lambda: "configuration not reloaded" in node.log(), "the complaint")
    assert node.pids() == before
    assert not (node.directory / "run" / "reloaded").exists()


def test_a_reload_before_the_node_is_ready_does_not_say_that_it_is(
    start: Callable[..., ToyNode],
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="mnot", dir="/tmp") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{directory}/notify")
        manager.settimeout(20)
        node = start("starts_late", NOTIFY_SOCKET=f"{directory}/notify")
        page = node.directory / "run" / "actors.json"
        eventually(lambda: page.exists() and '"first": {"pid"' in page.read_text(), "it starts")
        node.process.send_signal(signal.SIGHUP)
        eventually(lambda: "configuration reloaded" in node.log(), "it has heard")
        (node.directory / "go").touch()
        message = manager.recv(4096).decode()
        while "READY=1" not in message:
            message = manager.recv(4096).decode()
        assert "STATUS=running" in message


def test_systemd_hears_ready_reload_and_stop(start: Callable[..., ToyNode]) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="mnot", dir="/tmp") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{directory}/notify")
        manager.settimeout(20)
        node = start(NOTIFY_SOCKET=f"{directory}/notify", WATCHDOG_USEC="1000000")

        def hear(word: str) -> str:
            while True:
                message = manager.recv(4096).decode()
                if word in message:
                    return message

        hear("READY=1")
        hear("WATCHDOG=1")
        node.process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in hear("RELOADING=1")
        hear("READY=1")
        node.process.send_signal(signal.SIGTERM)
        hear("STOPPING=1")
        assert node.process.wait(20) == 0


def test_a_node_that_halts_does_not_wait_long_for_those_who_wait_for_the_dead(start):
    """Half of what an orderly stop may take would be too long."""
    node = start("waits")
    node.running()
    (node.directory / "fail").touch()
    eventually(lambda: node.process.poll() is not None, "it ends", STOP_SECONDS / 2)
    assert node.process.returncode == 74
    assert "first does not stop; killing it" in node.log()

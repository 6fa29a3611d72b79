"""What a service manager hears."""

import socket
import threading
import time
from pathlib import Path

import pytest

from meterd.actors.machine import notify


def test_what_takes_long_asks_for_time_again_and_again_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "EXTEND_AGAIN_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(10)
        notifier = notify.Notifier({"NOTIFY_SOCKET": str(tmp_path / "n")})
        before = threading.active_count()
        with notifier.patience("compiling"):
            for _ in range(3):
                assert "STATUS=compiling\nEXTEND_TIMEOUT_USEC=" in manager.recv(4096).decode()
        assert threading.active_count() == before
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                manager.recv(4096)
        time.sleep(0.05)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)


def test_without_a_service_manager_there_is_no_thread() -> None:
    before = threading.active_count()
    with notify.Notifier({}).patience("compiling"):
        assert threading.active_count() == before

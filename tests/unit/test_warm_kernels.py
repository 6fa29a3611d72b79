"""What a start says before it compiles kernels."""

import logging
import select
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from meterd.actors import node
from tests.support.waiting import eventually


def said(caplog: pytest.LogCaptureFixture) -> bool:
    found = any("compiling kernels" in record.message for record in caplog.records)
    caplog.clear()
    return found


def test_a_start_says_that_it_compiles_until_all_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(node.numba_config, "CACHE_DIR", str(tmp_path))

    def stopped() -> None:
        Path(tmp_path, "some kernel").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(node, "warm", stopped)
    with pytest.raises(KeyboardInterrupt):
        node.warm_kernels()
    assert said(caplog)
    monkeypatch.setattr(node, "warm", lambda: None)
    node.warm_kernels()
    assert said(caplog)
    node.warm_kernels()
    assert not said(caplog)


# Begins while another one compiles, and says whether all was compiled when its turn came.
OTHER = """
import sys
from pathlib import Path
from meterd.actors import node

folder = node.numba_config.CACHE_DIR = sys.argv[1]
node.warm = lambda: print(any(Path(folder).glob("compiled-*[!k]")), flush=True)
print("begins", flush=True)
node.warm_kernels()
"""


def waits_for_lock(process: int) -> bool:
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f" {process} " in line for line in lines)


def said_more(stream: IO[str]) -> bool:
    return bool(select.select([stream], [], [], 0)[0])


def test_of_starts_at_once_one_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.numba_config, "CACHE_DIR", str(tmp_path))
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None

        def others_begin() -> None:
            assert other.stdout is not None
            assert other.stdout.readline() == "begins\n"
            eventually(lambda: waits_for_lock(other.pid) or said_more(other.stdout), "its turn", 20)

        monkeypatch.setattr(node, "warm", others_begin)
        node.warm_kernels()
        assert other.stdout.read() == "True\n"
    assert other.returncode == 0

"""What a start says before it compiles kernels."""

import logging
from pathlib import Path

import pytest

from meterd.actors import node


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

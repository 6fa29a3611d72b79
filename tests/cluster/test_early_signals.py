"""Signals that come while a node starts, before its supervisor listens to them."""

from __future__ import annotations

import signal

import pytest

from tests.support.node import Node
from tests.support.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_a_start_and_a_reload_does_not(number: signal.Signals) -> None:
    with Node() as node:
        assert node.stop() == 0
        before = node.log()
        node.start(wait=False)
        eventually(lambda: "locked" in node.log().removeprefix(before), "it has begun")
        node.process.send_signal(signal.SIGHUP)
        node.process.send_signal(number)
        assert node.process.wait(60) == 0
        said = node.log().removeprefix(before)
        assert "graceful shutdown complete" in said
        assert "kernels loaded" not in said  # it had not come so far
        node.start()

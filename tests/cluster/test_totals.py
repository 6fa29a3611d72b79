"""A running node's answers against the plain-Python model, on input that looks like life."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.generator import Generator, Mix
from tests.support.node import Node
from tests.support.totals_check import check

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

EVENTS = 20_000


def test_every_answer_equals_the_model(tmp_path: Path) -> None:
    """Resends, conflicts, late events, unknown metrics and all: totals, groups and series agree."""
    generator = Generator(7, time.time_ns(), Mix(accounts=400, users=60))
    with Node() as node:
        report = check(f"127.0.0.1:{node.port}", generator, EVENTS, tmp_path / "events.ndjson")
    assert report.mismatches == []
    assert report.comparisons["total"] > 5_000
    assert report.comparisons["group"] > 500

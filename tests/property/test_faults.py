"""However a directory is damaged, no answer is wrong (a few of what `bench.faults` does)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fault_campaign import FAULTS, KINDS, Campaign

SEEDS = {"bit": 3, "sector": 1, "cut": 1, "lost": 1}


@pytest.fixture(scope="module", params=[False, True], ids=["with log files", "segments alone"])
def campaign(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Campaign]:
    logging.disable(logging.CRITICAL)
    yield Campaign(tmp_path_factory.mktemp("faults"), request.param)
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_right_or_refused_whatever_is_damaged(campaign: Campaign, kind: str) -> None:
    for fault in FAULTS:
        for seed in range(SEEDS[fault]):
            campaign.run(kind, fault, 10_000 + seed)
    assert not campaign.violations


def test_a_sound_directory_is_right(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, False)
    assert campaign.look("nothing", 0) == "right"
    assert not campaign.violations

"""How backups were proved is told to the node, which shows it and remembers it."""

import time

import pytest

from meterd.actors.frames.bundle import bundle
from meterd.actors.housekeeping.backups import STATE_FILE
from meterd.actors.measuring import catalog
from meterd.actors.retention_sweeper import RetentionSweeper
from tests.support.recording import answers, recorded, request


@pytest.fixture
def start(tmp_path):
    made = []

    def start():
        made.append(recorded(RetentionSweeper, tmp_path))
        return made[-1]

    yield start
    for sweeper in made:
        sweeper.close()


def tell(sweeper, **report):
    sweeper.handle([b"requests", *bundle([b"rid", *request("backup_report", report)])])
    sweeper.flush()
    return answers(sweeper)[0]


def shown(sweeper):
    """What telemetry says of proofs, by name."""
    return {
        name: value
        for name, value in sweeper.telemetry._gauges.items()
        if name.startswith(("backup_verified", "backups_", "drill_"))
    }


def test_nothing_is_shown_before_anything_was_told(start):
    assert shown(start()) == {}


def test_a_good_verification_and_drill_are_shown_and_outlive_a_restart(start):
    before, sweeper = time.time(), start()
    assert tell(sweeper, proof="checksum", good=True, present=3, broken=0) == ("ok", {})
    assert tell(sweeper, proof="drill", good=True, rto_ms=24_500, rpo_ms=3_600_000) == ("ok", {})
    found = shown(sweeper)
    assert shown(start()) == found
    moments = ('backup_verified_timestamp_seconds{level="checksum"}',)
    moments += ("drill_last_success_timestamp_seconds",)
    assert all(before <= found.pop(name) <= time.time() for name in moments)
    assert found == {
        "backups_present": 3,
        "backups_broken": 0,
        "drill_rto_seconds": 24.5,
        "drill_rpo_seconds": 3_600,
    }


def test_a_bad_one_leaves_the_time_of_the_last_good_one(start):
    sweeper = start()
    tell(sweeper, proof="replay", good=True, present=2, broken=0)
    tell(sweeper, proof="drill", good=True, rto_ms=1, rpo_ms=1)
    good = shown(sweeper)
    tell(sweeper, proof="replay", good=False, present=2, broken=1)
    tell(sweeper, proof="drill", good=False)
    assert shown(sweeper) == good | {"backups_broken": 1}


def test_all_of_it_is_in_the_catalogue(start):
    sweeper = start()
    tell(sweeper, proof="manifest", good=True, present=1, broken=0)
    tell(sweeper, proof="drill", good=True, rto_ms=1, rpo_ms=1)
    assert {name.partition("{")[0] for name in shown(sweeper)} <= {
        family.name.removeprefix(catalog.PREFIX) for family in catalog.FAMILIES
    }


def test_a_state_that_cannot_be_read_says_nothing(start, tmp_path):
    tell(start(), proof="manifest", good=True)
    raw = bytearray((tmp_path / STATE_FILE).read_bytes())
    raw[20] ^= 1
    (tmp_path / STATE_FILE).write_bytes(raw)
    assert shown(start()) == {}


@pytest.mark.parametrize(
    "report",
    [
        {"proof": "drill"},
        {"good": True},
        {"proof": "hope", "good": True},
        {"proof": "drill", "good": True, "rto_ms": -1},
    ],
)
def test_what_says_nothing_is_refused(start, report):
    status, error = tell(start(), **report)
    assert (status, error["code"]) == ("error", "bad_request")

"""Totals files that a node takes over of a peer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from meterd.actors.adopting import totals
from meterd.actors.files.totals_files import ADOPTED, Covered, read_totals, rewrite
from meterd.core.questions.zones import UTC
from meterd.core.state.erasures import Erasures
from meterd.core.state.registry import Registry
from meterd.protocol.limits import I64_MIN
from meterd.protocol.log_format import GROUP_COUNT
from meterd.protocol.metric import MetricDefinition
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory


def loaded(files, erasures: Erasures) -> SimpleNamespace:
    """What is looked at of a loaded directory."""
    state = SimpleNamespace(erasures=erasures, totals_horizon=I64_MIN)
    return SimpleNamespace(totals=files, replayer=SimpleNamespace(state=state))


@pytest.fixture
def donor(tmp_path) -> LogDirectory:
    """A totals file with accounts b, c and d; b and then c are erased after it was made."""
    registry = Registry()
    definition = {"code": "m", "aggregation": "sum", "decimals": 0}
    registry.put(MetricDefinition.from_map(definition), UTC, False, 1)
    (tmp_path / "donor").mkdir()
    log = LogDirectory(tmp_path / "donor")
    log.write([LoggedEvent(account, account, 1, 5, 10) for account in "bcd"])
    log.seal(segmented=True)
    log.fold([1], registry, I64_MIN)
    log.erase("b")
    rewrite(str(log.path), log.files.totals(), log.making(I64_MIN))
    log.erase("c")
    log.files.refresh()
    return log


def test_a_peer_may_have_heard_of_erasures_in_another_order_than_its_files_were_written(
    donor, tmp_path
):
    of_b, of_c = donor.erasures
    other_order = Erasures([of_c, of_b], donor.erasures.key)
    (tmp_path / "own").mkdir()
    everything = np.ones(GROUP_COUNT, np.bool_)
    own, peer = loaded((), other_order), loaded(donor.files.totals(), other_order)
    assert totals.adopt(own, peer, everything, other_order, str(tmp_path / "own")) == 1
    file = read_totals(str(tmp_path / "own" / Covered(ADOPTED, ADOPTED).name))
    assert file.accounts((0, file.account_count)) == ["d"]
    assert file.applied == {of_b.partition: of_b.floor, of_c.partition: of_c.floor}

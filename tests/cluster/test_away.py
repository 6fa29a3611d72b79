"""A node that was away catches up while clients write: the short form of `python -m bench.away`."""

from __future__ import annotations

import pytest

from tests.support.absence import LITTLE_LOG, Absence
from tests.support.cluster import Cluster
from tests.support.column_load import ColumnLoad

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.slow]

RATE = 5_000.0
# Of the second case: so many that the log of the time before is deleted.
MISSED = {False: 100_000, True: 800_000}


@pytest.mark.parametrize("gone", [False, True], ids=["from the log", "from a copy"])
def test_who_was_away_catches_up_while_clients_write(gone: bool) -> None:
    environment = LITTLE_LOG | {"METERD__WAL__SEGMENT_SIZE": "4MiB"} if gone else {}
    with Cluster(3, environment) as cluster, ColumnLoad(cluster.addresses) as load:
        found = Absence(cluster, load, print, gone).run(MISSED[gone], RATE)
    assert found["violations"] == []
    assert found["catching_up"]["events"] > 0
    assert found["calls_that_failed"] == 0

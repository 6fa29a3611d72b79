"""Health: what makes a node unready for what."""

import pytest

from meterd.actors.measuring.health import Disk, Quorum, checks_of, ready_for, report

ACTORS = ("router", "ingest", "replication", "wal_writer", "usage", "query", "metrics")
FREE = Disk(free=100, warn=50, stop=10, refusing=False)


def page(*, state: str = "running", dead: str = "") -> dict[str, object]:
    actors = {name: {"ready": name != dead, "pid": 1, "restarts": 0} for name in ACTORS}
    return {"state": state, "started": 1000.0, "actors": actors}


def test_a_node_whose_actors_are_all_ready_is_healthy() -> None:
    body = report(page(), FREE, {"node_id": 3}, 1012.5)
    assert body["status"] == "pass"
    assert body["state"] == "active"
    assert body["uptime_seconds"] == 12.5
    assert body["node_id"] == 3
    assert body["ready"] == {"read": True, "write": True}
    assert set(body["checks"]) == {f"actor_{name}" for name in ACTORS} | {"disk"}


def test_an_actor_that_is_away_stops_what_passes_it_and_nothing_else() -> None:
    for dead, read, write in (
        ("query", False, True),
        ("ingest", True, False),
        ("usage", False, False),
        ("metrics", True, True),
    ):
        body = report(page(state="degraded", dead=dead), FREE, {}, 1000.0)
        assert body["ready"] == {"read": read, "write": write}, dead
        assert body["status"] == "fail"
        assert f"actor_{dead}" in body["message"]


def test_an_actor_that_is_missing_is_not_ready() -> None:
    assert not ready_for("read", checks_of({}, FREE))


def test_little_space_warns_and_too_little_stops_writes_but_not_reads() -> None:
    for free, refusing, status, write in (
        (40, False, "warn", True),
        (9, False, "fail", False),
        (60, True, "fail", False),
    ):
        body = report(page(), Disk(free, 50, 10, refusing), {}, 1000.0)
        assert body["status"] == status
        assert body["ready"] == {"read": True, "write": write}


def test_a_node_that_starts_or_stops_is_not_healthy() -> None:
    for state, name in (("starting", "starting"), ("stopping", "stopping")):
        body = report(page(state=state), FREE, {}, 1000.0)
        assert (body["status"], body["state"]) == ("fail", name)


@pytest.mark.parametrize(
    ("quorum", "status", "writes"),
    [
        (Quorum(257, 85, 0), "pass", True),
        (Quorum(257, 0, 0), "pass", True),  # it leads nothing, and knows who does
        (Quorum(257, 85, 3), "warn", True),
        (Quorum(257, 0, 200), "warn", True),
        (Quorum(257, 0, 257), "fail", False),  # a minority
        (Quorum(257, 85, 0, 86), "warn", True),  # one of the others does not hear it
        (Quorum(257, 0, 0, 257), "fail", False),  # it hears all, and nobody hears it
        (Quorum(257, 0, 100, 157), "fail", False),
    ],
)
def test_a_node_that_knows_no_leader_takes_no_events(
    quorum: Quorum, status: str, writes: bool
) -> None:
    body = report(page(), FREE, {}, 1000.0, quorum)
    assert body["checks"]["quorum"]["status"] == status
    assert body["ready"] == {"read": True, "write": writes}
    assert body["status"] == status
    assert "quorum" not in report(page(), FREE, {}, 1000.0)["checks"]

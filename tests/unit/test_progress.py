"""Runs that are kept in a file, and what is judged of all of them."""

from pathlib import Path
from typing import Any

from bench import cluster_faults, failover
from bench.progress import Progress
from tests.support.cluster_campaign import Report, Struck
from tests.support.cluster_strokes import ALONE, PARTITIONS, TOGETHER, Stroke, Strokes, draw_plan


def test_the_same_command_goes_on_another_day(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    Progress(path).add({"kills": {"node": 2, "usage": 1}, "found": ["a"], "missing": 1})
    again = Progress(path)
    again.add({"kills": {"node": 3}, "found": ["b", "c"], "missing": 0})
    again.note({"found": ["d"]})
    third = Progress(path)
    assert third.totals("kills") == {"node": 5, "usage": 1}
    assert third.all("found") == ["a", "d"]
    assert third.total("missing") == 1
    assert sum(third.commits().values()) == 2


def test_without_a_file_runs_are_kept_for_the_process() -> None:
    progress = Progress(None)
    progress.add({"missing": 2})
    assert progress.total("missing") == 2


def struck(kind: str, served: float) -> Struck:
    return Struck(Stroke(kind, 1, 2, "usage", 1.0), served, 3.0)


def test_campaigns_add_up() -> None:
    progress = Progress(None)
    for seed in (7, 8):
        unfinished = Struck(Stroke("cut_pair", 1, 2, "usage", 1.0))
        report = Report([struck("kill_node", 1.5), struck("isolate", 2.0), unfinished])
        report.kills.update({("node", ""): 1, ("usage", "catching up"): 2})
        report.partitions = 1
        report.violations = ["lost"] * (seed == 8)
        progress.add({"nodes": 3, "seed": seed, **cluster_faults.kept(report), "seconds": 60.0})
    document = cluster_faults.document(progress)
    assert document["kills"] == 6
    assert document["kills_by_victim"] == {"node": 2, "usage, catching up": 4}
    assert document["partitions"] == 2
    assert document["kinds"]["kill_node"]["served_seconds"]["max"] == 1.5
    assert document["violations"] == ["seed 8: lost"]


def trial(served: float, **fields: Any) -> dict[str, Any]:
    good = {"affected": 85, "grown": {1: 85, 2: 85}, "miscounted": [], "failures": [], "wrong": []}
    return {"served_seconds": served, "calls": 10, **good, **fields}


def judged(*trials: dict[str, Any]) -> list[str]:
    progress = Progress(None)
    progress.runs = list(trials)
    return failover.violations(progress)


def test_one_failover_in_a_hundred_may_be_slow_and_none_very() -> None:
    fast = [trial(1.4) for _ in range(99)]
    assert judged(*fast, trial(3.9)) == []
    assert len(judged(*fast[1:], trial(2.6), trial(2.6))) == 1
    assert len(judged(*fast, trial(4.1))) == 1


def test_a_failover_that_breaks_anything_is_told() -> None:
    wrong = [
        trial(1.0, grown={1: 85, 2: 86}),
        trial(1.0, miscounted=["partition 7: 2 new leaders instead of 1"]),
        trial(1.0, failures=["no answer"]),
        trial(1.0, wrong=["node 2: calls"]),
    ]
    assert len(judged(trial(1.0), *wrong)) == len(wrong)


def test_every_kind_of_stroke_can_be_carried_out() -> None:
    for kind in {*ALONE, *TOGETHER, "full_disk"} - {*PARTITIONS}:
        assert hasattr(Strokes, f"_{kind}")
    plan = draw_plan(1, dict.fromkeys(TOGETHER, 3), 3)
    assert len(plan) == 3 * len(TOGETHER)
    assert all(stroke.node != stroke.other for stroke in plan)

"""Breaks a cluster again and again: `python -m bench.cluster_faults [--campaigns N] [--each N]`.

A campaign is a new cluster that gets every kind of fault (`tests.support.cluster_strokes` says
which) N times while clients ingest `sync` through all nodes.  Exits 1 when an acknowledged event is
missing, an event is counted twice, a read goes back or lacks what was acknowledged, or replicas
differ.  How long partitions were away is in the result; `python -m bench.failover` judges it.

With `--progress FILE` every campaign is noted there, and the same command goes on behind it: the
result file is of all of them.  A violation leaves the logs of its nodes beside that file.
"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from bench.kills import ranked
from bench.progress import Progress
from bench.support import say, write_result
from tests.support.cluster import Cluster
from tests.support.cluster_campaign import ENVIRONMENT, Campaign, Report
from tests.support.cluster_strokes import ALONE, FULL_DISK, TOGETHER, draw_plan
from tests.support.small_disk import MIB, SmallDisk

FULL_DISK_NODE = 2
FULL_DISK_SIZE = 1024 * MIB
# So many campaigns with violations say enough.
VIOLATED_MAX = 3


def one_campaign(
    nodes: int, seed: int, kinds: list[str], each: int, checks: int, logs: Path | None
) -> dict[str, Any]:
    """Make a cluster, break it, and return what is to be kept of that."""
    began = time.monotonic()
    disks = {FULL_DISK_NODE: SmallDisk(FULL_DISK_SIZE)} if FULL_DISK in kinds else {}
    plan = [
        stroke._replace(node=FULL_DISK_NODE) if stroke.kind == FULL_DISK else stroke
        for stroke in draw_plan(seed, {kind: each * kinds.count(kind) for kind in kinds}, nodes)
    ]
    data_dirs = {number: one.data_dir for number, one in disks.items()}
    try:
        with Cluster(nodes, ENVIRONMENT, data_dirs) as cluster:
            report = Campaign(cluster, seed, say, disks).run(plan, checks)
            if report.violations:
                keep_logs(cluster, seed, logs)
    finally:
        for disk in disks.values():
            disk.__exit__(None, None, None)
    return {"nodes": nodes, "seed": seed, **kept(report), "seconds": time.monotonic() - began}


def keep_logs(cluster: Cluster, seed: int, logs: Path | None) -> None:
    """Keep what the nodes have written, for who looks for the reason."""
    if logs is None:
        say(cluster.log())
    else:
        Path(f"{logs}.{seed}.log").write_text(cluster.log())


def kept(report: Report) -> dict[str, Any]:
    """Return what of a report is worth keeping, as plain values."""
    return {
        "strokes": [
            [one.stroke.kind, round(one.served_seconds, 3), round(one.whole_seconds, 3)]
            for one in report.struck
            if one.whole_seconds != float("inf")  # else it is a violation
        ],
        "kills": {
            f"{victim}{f', {meanwhile}' if meanwhile else ''}": count
            for (victim, meanwhile), count in report.kills.items()
        },
        "partitions": report.partitions,
        "counters": dict(report.counters),
        "missing": report.missing,
        "doubled": report.doubled,
        "violations": report.violations,
    }


def document(progress: Progress) -> dict[str, Any]:
    """Return everything for a result file."""
    strokes = progress.all("strokes")
    kinds = {
        kind: {
            "strokes": sum(one[0] == kind for one in strokes),
            "served_seconds": ranked([one[1] for one in strokes if one[0] == kind]),
            "whole_seconds": ranked([one[2] for one in strokes if one[0] == kind]),
        }
        for kind in sorted({one[0] for one in strokes})
    }
    kills = progress.totals("kills")
    return {
        "settings": ENVIRONMENT,
        "campaigns": len(progress.runs),
        "commits": progress.commits(),
        "strokes": len(strokes),
        "kills": sum(kills.values()),
        "kills_by_victim": kills,
        "partitions": progress.total("partitions"),
        "kinds": kinds,
        **progress.totals("counters"),
        "missing": progress.total("missing"),
        "doubled": progress.total("doubled"),
        "violations": [
            f"seed {run['seed']}: {line}" for run in progress.runs for line in run["violations"]
        ],
        "campaign_seconds": round(sum(run["seconds"] for run in progress.runs)),
    }


@click.command()
@click.option("--nodes", default=3, show_default=True)
@click.option("--each", default=2, show_default=True, help="strokes of each kind in a campaign")
@click.option("--campaigns", default=1, show_default=True, help="so many more")
@click.option("--minutes", default=float("inf"), help="begin no campaign after so long")
@click.option("--kinds", default="", help="only these, with commas between; one may be named again")
@click.option("--checks", default=1, show_default=True, help="of everything, on the way")
@click.option("--first", default=20_261_126, show_default=True, help="seed of the first campaign")
@click.option("--progress", "path", type=click.Path(path_type=Path), help="note there; go on")
@click.option("--disk", is_flag=True, help="fill a disk, too (mounts a tmpfs: needs root)")
def main(
    nodes: int,
    each: int,
    campaigns: int,
    minutes: float,
    kinds: str,
    checks: int,
    first: int,
    path: Path | None,
    disk: bool,
) -> None:
    """Break a cluster and see what it remembers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nodes and disks go, too
    until = time.monotonic() + minutes * 60
    chosen = list(ALONE + TOGETHER if nodes > 1 else ALONE) + [FULL_DISK] * disk
    chosen = kinds.split(",") if kinds else chosen
    progress = Progress(path)
    before = len(progress.runs)
    for _ in range(campaigns):
        violated = sum(bool(run["violations"]) for run in progress.runs[before:])
        if time.monotonic() >= until or violated >= VIOLATED_MAX:
            break
        seed = first + len(progress.runs)
        progress.add(one_campaign(nodes, seed, chosen, each, checks, path))
        say(f"{sum(progress.totals('kills').values())} kills, "
            f"{progress.total('partitions')} partitions so far")  # fmt: skip
    result = document(progress)
    print(write_result("cluster-faults", result))
    for line in result["violations"]:
        print(line)
    sys.exit(1 if result["violations"] or result["missing"] or result["doubled"] else 0)


if __name__ == "__main__":
    main()

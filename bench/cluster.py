"""Measures a cluster on this machine: `python -m bench.cluster [--nodes N] [--seconds S]`.

All nodes and the clients share the machine.  With default settings: events a second at batch 500
(`meterctl bench`, which verifies all totals) and what each actor's processor time was per event;
requests a second with one event each; how long one durable event takes alone; and what a cluster
costs that does nothing.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from bench.node import processes_of
from bench.support import CHECKOUT, fdatasync_us, say, write_result
from tests.support.cluster import Cluster
from tests.support.failover import CALM_SECONDS, is_calm
from tests.support.waiting import eventually

IN_FLIGHT = {"throughput": 256, "requests": 4096, "latency": 1}
BATCH = {"throughput": 500, "requests": 1, "latency": 1}
SHORT_SECONDS = 10.0


def await_leaders(cluster: Cluster) -> None:
    """Wait until every partition is led where the plan wants it, so that no leader moves."""
    eventually(
        lambda: all(is_calm(node) for node in cluster.nodes), "leaders are at home", CALM_SECONDS
    )


def meterctl_bench(cluster: Cluster, **options: Any) -> dict[str, Any]:
    """Load the cluster through all its nodes; the totals must be what was sent."""
    program = [sys.executable, str(CHECKOUT / "bin" / "meterctl"), "-o", "json"]
    program += ["-n", ",".join(cluster.addresses)]
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    done = subprocess.run([*program, "bench", *flags], capture_output=True, text=True)
    if not done.stdout:
        raise RuntimeError(f"meterctl bench: exit {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    found["exit_code"] = done.returncode
    return found


def cpu_seconds(cluster: Cluster) -> Counter[str]:
    """Processor time of each actor, all nodes together, and of what they have started."""
    found: Counter[str] = Counter()
    for node in cluster.nodes:
        known = {pid: name for name, pid in node.pids().items()}
        assert node.process is not None
        for process in processes_of(node.process.pid):
            times = process.cpu_times()
            found[known.get(process.pid, "jobs")] += times.user + times.system
    return found


def per_event_us(spent: Counter[str], found: dict[str, Any]) -> dict[str, float]:
    """Share processor seconds of actors out over the events of a `meterctl bench`."""
    events = max(1, found["received"])
    return {name: round(used * 1e6 / events, 3) for name, used in sorted(spent.items()) if used > 0}


def measured(cluster: Cluster, what: str, seconds: float, clients: int) -> dict[str, Any]:
    """Run one load; return what `meterctl bench` says and the processor time per event."""
    before = cpu_seconds(cluster)
    found = meterctl_bench(
        cluster,
        batch=BATCH[what],
        in_flight=IN_FLIGHT[what],
        clients=clients,
        seconds=seconds,
        warm_up=3,
    )
    spent = cpu_seconds(cluster)
    spent.subtract(before)
    found["cpu_us_per_event"] = per_event_us(spent, found)
    say(f"{what}: {found['events_per_second']} events/s, {found['latency_us']}, {spent}")
    return found


def idle(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """What a cluster costs that does nothing, in parts of a core."""
    before, began = cpu_seconds(cluster), time.monotonic()
    time.sleep(seconds)
    spent, elapsed = cpu_seconds(cluster), time.monotonic() - began
    spent.subtract(before)
    by_actor = {name: round(used / elapsed, 4) for name, used in sorted(spent.items())}
    return {
        "seconds": round(elapsed, 1),
        "cores": round(sum(spent.values()) / elapsed, 4),
        "by_actor": by_actor,
    }


@click.command()
@click.option("--nodes", default=3, show_default=True)
@click.option("--seconds", default=30.0, show_default=True, help="of the load at batch 500")
@click.option("--idle-seconds", default=120.0, show_default=True)
@click.option("--clients", default=1, show_default=True, help="client processes")
def main(nodes: int, seconds: float, idle_seconds: float, clients: int) -> None:
    """Measure a cluster whose nodes share this machine."""
    document: dict[str, Any] = {"nodes": nodes, "fdatasync_us": fdatasync_us(Path("/tmp"))}
    with Cluster(nodes, cuts=False) as cluster:
        await_leaders(cluster)
        document["idle"] = idle(cluster, idle_seconds)  # before there is anything to merge
        document["latency"] = measured(cluster, "latency", SHORT_SECONDS, 1)
        document["requests"] = measured(cluster, "requests", SHORT_SECONDS, clients)
        document["throughput"] = measured(cluster, "throughput", seconds, clients)
    print(write_result("cluster", document))


if __name__ == "__main__":
    main()

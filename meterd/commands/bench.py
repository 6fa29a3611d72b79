"""`meterctl bench`: a load generator that proves afterwards that nothing was lost or doubled.

The client processes are forked before this process makes a ZeroMQ context (`bench_client.py`).
They send during a warm-up and a measured time; rates and latencies are those of the measured time
alone, counts those of the whole run. Afterwards the totals of every account are asked for and
their growth is compared with the sums of what the node said it had stored.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from meterd.commands.bench_report import percentile_us
from meterd.commands.console import Progress, field_lines, warn
from meterd.commands.session import AdminError, Session, command
from meterd.commands.tables import group_thousands
from meterd.exits import AdminExit
from meterd.protocol.limits import PAGE_SIZE_MAX

if TYPE_CHECKING:
    from meterd.client import Client
    from meterd.commands.bench_client import Load, SharedRun

READY_SECONDS_MAX = 60.0
POLL_SECONDS = 0.02
PROGRESS_SECONDS = 0.5
SETTLE_SECONDS_MAX = 30.0  # async events may be counted a little later than they are accepted
VERIFY_TIMEOUT = 60.0
BAR_WIDTH = 20
MISMATCHES_SHOWN = 5
DURABILITIES = ("sync", "async")
Totals = dict[tuple[str, str], int]


@dataclass(frozen=True)
class Sample:
    """What had happened at one moment."""

    at: float
    requests: int
    events: int
    cpu_us: int


@command("bench", short_help="Measure a node with a load of random events, and verify it.")
@click.option("--batch", type=click.IntRange(1, 10_000), default=500, show_default=True,
              help="Events in each request.")
@click.option("--clients", type=click.IntRange(1, 256), default=1, show_default=True,
              help="Client processes.")
@click.option("--in-flight", type=click.IntRange(1, 10_000), default=256, show_default=True,
              help="Requests under way per client.")
@click.option("--durability", type=click.Choice(DURABILITIES), default="sync", show_default=True,
              help="sync: answered when stored; async: when taken.")
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), default=10.0, show_default=True,
              help="How long to measure.")
@click.option("--warm-up", type=click.FloatRange(0, 3600), default=1.0, show_default=True,
              help="Seconds of load before measuring.")
@click.option("--accounts", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True,
              help="Accounts the events are spread over.")
@click.option("--metrics", type=click.IntRange(1, 64), default=5, show_default=True,
              help="Sum metrics: bench_0, bench_1, ...; registered if missing.")
@click.option("--events-per-account", type=click.IntRange(1, 10_000), default=1, show_default=True,
              help="Neighbouring events of a request that share an account.")
@click.option("--rate", type=click.FloatRange(0, 1e9), default=0.0, metavar="EVENTS",
              help="Send at most so many events a second; 0: as many as are taken.")
@click.option("--verify/--no-verify", default=True, show_default=True,
              help="Compare the accounts' totals with what was sent.")
def bench(session: Session, in_flight: int, seconds: float, warm_up: float,
          verify: bool, **shape: Any) -> None:
    """Measure a node: send random events for a while, then verify its totals.

    Every event has an id of its own. The events stay in the node, under the accounts bench-...,
    until they expire. Exit code 1 means that a total is not what was sent, 7 that some requests
    failed or were not answered.
    """
    from meterd.commands.bench_client import Load

    load = Load(nodes=session.nodes, in_flight=in_flight, timeout=session.patience(30.0), **shape)
    document = _run(session, load, seconds, warm_up, verify)
    session.console.show(document, lambda: _lines(document))
    if (code := _exit_code(document)) is not AdminExit.GOOD:
        raise SystemExit(code)


def _run(
    session: Session, load: "Load", seconds: float, warm_up: float, verify: bool
) -> dict[str, Any]:
    from meterd.commands.bench_client import MEASURE, STOP, WARM_UP, SharedRun

    shared = SharedRun(load)
    progress = Progress()
    with _client_processes(load, shared) as pids, session.connect(VERIFY_TIMEOUT) as client:
        _register_metrics(session, load)
        before = _totals(client, load) if verify else {}
        _await(shared, "ready", load.clients, pids, READY_SECONDS_MAX)
        shared.phase[0] = WARM_UP
        _watch(shared, warm_up, pids, progress, "warming up")
        shared.phase[0] = MEASURE
        start, end = _watch(shared, seconds, pids, progress, "")
        shared.phase[0] = STOP
        _await(shared, "done", load.clients, pids, load.timeout + READY_SECONDS_MAX)
        progress.update("verifying totals ...")
        mismatches = _verify(client, load, shared, before) if verify else None
        progress.clear()
    return _document(load, shared, start, end, mismatches)


def _register_metrics(session: Session, load: "Load") -> None:
    """Register what is sent; a node that is away is told here, after the usual timeout."""
    with session.connect() as client:
        for code in load.metric_codes:
            client.put_metric(code, aggregation="sum", decimals=0, unit="units", period="month")


@contextmanager
def _client_processes(load: "Load", shared: "SharedRun") -> Iterator[list[int]]:
    """Fork the clients; end those that are left in every case."""
    pids = [_fork_client(load, shared, number) for number in range(load.clients)]
    try:
        yield pids
    finally:
        for pid in pids:
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _fork_client(load: "Load", shared: "SharedRun", number: int) -> int:
    from meterd.commands.bench_client import Client

    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked, and ends us
        Client(load, shared, number).run()
        status = 0
    except BaseException as error:  # a forked process must not return into the parent's code
        warn(f"client process {number} failed: {error!r}")
    finally:
        os._exit(status)


def _await(
    shared: "SharedRun", name: str, count: int, pids: list[int], seconds: float
) -> None:
    """Wait until so many clients have set a flag."""
    deadline = time.monotonic() + seconds
    while shared.total(name) < count:
        _check_alive(pids)
        if time.monotonic() > deadline:
            raise AdminError(AdminExit.INTERNAL, "internal", f"a client process is not {name}")
        time.sleep(POLL_SECONDS)


def _check_alive(pids: list[int]) -> None:
    for pid in pids:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None and ended.si_status != 0:
            raise AdminError(AdminExit.INTERNAL, "internal", f"client process {pid} ended early")


def _sample(shared: "SharedRun") -> Sample:
    return Sample(
        time.monotonic(), shared.total("requests"), shared.total("received"), shared.total("cpu_us")
    )


def _watch(
    shared: "SharedRun", seconds: float, pids: list[int], progress: Progress, note: str
) -> tuple[Sample, Sample]:
    """Let the clients work for a time, showing how it goes; samples of its start and end."""
    start = last = now = _sample(shared)
    deadline = start.at + seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, PROGRESS_SECONDS))
        _check_alive(pids)
        last, now = now, _sample(shared)
        elapsed = max(now.at - last.at, 1e-9)
        done = min(1.0, (now.at - start.at) / seconds)
        bar = ("#" * int(done * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
        events = (now.events - last.events) / elapsed
        requests = (now.requests - last.requests) / elapsed
        progress.update(
            f"[{bar}] {done:4.0%}  {events:,.0f} events/s  {requests:,.0f} requests/s  "
            f"{shared.total('errors')} errors  {note}"
        )
    return start, _sample(shared)


def _totals(client: "Client", load: "Load") -> Totals:
    """What every account has of every metric in the current period."""
    return {
        (row.account, code): int(row.value or 0)
        for code in load.metric_codes
        for row in client.accounts(code, page_size=PAGE_SIZE_MAX)
    }


def _verify(
    client: "Client", load: "Load", shared: "SharedRun", before: Totals
) -> list[str]:
    """Compare totals with what was sent; one line for each account and metric that differs."""
    deadline = time.monotonic() + (SETTLE_SECONDS_MAX if load.durability == "async" else 0)
    while True:
        mismatches = _compare(_totals(client, load), before, load, shared)
        if not mismatches or time.monotonic() > deadline:
            return mismatches
        time.sleep(PROGRESS_SECONDS)


def _compare(after: Totals, before: Totals, load: "Load", shared: "SharedRun") -> list[str]:
    stored = shared.stored.sum(axis=0).tolist()
    undecided = shared.undecided.sum(axis=0).tolist()
    codes = load.metric_codes
    mismatches = []
    for account_number in range(load.accounts):
        account = load.account(account_number)
        for metric_number, code in enumerate(codes):
            pair = account_number * load.metrics + metric_number
            key = (account, code)
            growth = after.get(key, 0) - before.get(key, 0)
            if not stored[pair] <= growth <= stored[pair] + undecided[pair]:
                mismatches.append(f"{account} {code}: grew by {growth}, sent {stored[pair]}")
    return mismatches


def _document(
    load: "Load", shared: "SharedRun", start: Sample, end: Sample, mismatches: list[str] | None
) -> dict[str, Any]:
    from meterd.commands.bench_client import COUNTS

    elapsed = end.at - start.at
    latency = shared.latency.sum(axis=0).tolist()
    counts = {name: shared.total(name) for name in COUNTS if name not in ("ready", "done")}
    counts.pop("cpu_us")
    decided = sum(counts[name] for name in _OUTCOMES)
    for line in (mismatches or [])[:MISMATCHES_SHOWN]:
        warn(line)
    return {
        "events_per_second": round((end.events - start.events) / elapsed),
        "requests_per_second": round((end.requests - start.requests) / elapsed),
        "latency_us": {
            "p50": percentile_us(latency, 0.5),
            "p99": percentile_us(latency, 0.99),
            "p999": percentile_us(latency, 0.999),
        },
        **counts,
        "sent": (counts["requests"] + counts["unanswered"]) * load.batch,
        "balanced": counts["received"] == decided,
        "verified": None if mismatches is None else not mismatches,
        "mismatches": len(mismatches or []),
        "client_cores": round((end.cpu_us - start.cpu_us) / elapsed / 1e6, 2),
        "seconds": round(elapsed, 3),
        "batch": load.batch,
        "clients": load.clients,
        "in_flight": load.in_flight,
        "rate": load.rate,
        "durability": load.durability,
        "accounts": load.accounts,
        "metrics": load.metrics,
    }


_OUTCOMES = ("stored", "duplicate", "conflict", "rejected", "unknown", "accepted")


def _exit_code(document: dict[str, Any]) -> AdminExit:
    if document["verified"] is False or not document["balanced"]:
        return AdminExit.NO
    if document["errors"] or document["unanswered"] or document["rejected"] or document["unknown"]:
        return AdminExit.PARTLY
    return AdminExit.GOOD


def _lines(document: dict[str, Any]) -> Iterator[str]:
    latency = "  ".join(
        f"{name} {group_thousands(str(value))} µs" for name, value in document["latency_us"].items()
    )
    verified = {None: "not asked for", True: "every total is exact", False: "TOTALS DIFFER"}
    outcomes = ", ".join(
        f"{group_thousands(document[name])} {name}"
        for name in (*_OUTCOMES, "errors", "unanswered")
        if document[name] or name == "stored"
    )
    yield from field_lines(
        [
            ("events", f"{group_thousands(document['events_per_second'])} a second"),
            ("requests", f"{group_thousands(document['requests_per_second'])} a second"),
            ("latency", latency),
            ("outcome", outcomes),
            ("verified", verified[document["verified"]]),
            ("clients", f"{document['clients']}, using {document['client_cores']} cores"),
        ]
    )

#!/usr/bin/env python3
"""Meters this machine for a while, kills the node in the middle, and writes a bill per user.

Every process of the machine uses processor time, memory and disk. This program looks at all of
them again and again, sends what each has used since the last look, and keeps a count of its own.
Half-way it kills the node with SIGKILL and starts it again. In the end it asks the node what was
used and compares that with its own count to the last digit, sends acknowledged events once more,
sees that each is a duplicate, and prints what every user owes at made-up prices.

Exit code 0 means that everything matched. The node and its directory are gone afterwards.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

import psutil  # noqa: E402

from meterd.client import Client, Event  # noqa: E402
from meterd.commands.tables import Column, group_thousands, render  # noqa: E402

LOOK_SECONDS = 0.5
START_SECONDS_MAX = 120.0  # the first start compiles the kernels
ANSWER_SECONDS_MAX = 60.0  # longer than the node needs to come back
RESENT_COUNT = 1000
LAST_LOG_LINES = 20


class Price(NamedTuple):
    """One metric: how it is registered, and what it costs."""

    unit: str
    decimals: int
    price: Decimal  # of one unit


PRICES = {
    "cpu_seconds": Price("s", 2, Decimal("0.0125")),
    "memory_gb_seconds": Price("GB s", 6, Decimal("0.0021")),
    "bytes_read": Price("bytes", 0, Decimal("0.0000000004")),
    "bytes_written": Price("bytes", 0, Decimal("0.0000000011")),
}


class Reading(NamedTuple):
    """What a process has used since it began; whole numbers only."""

    cpu_hundredths: int
    bytes_read: int
    bytes_written: int


def say(text: str) -> None:
    print(text, flush=True)


def check(holds: bool, claim: str) -> None:
    """Say a claim that was checked; end the demonstration if it does not hold."""
    say(f"  {'ok  ' if holds else 'FAIL'}  {claim}")
    if not holds:
        raise SystemExit(1)


class Node:
    """A node in a process group of its own, so that nothing of it can stay behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.http_port = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.log_path = folder / "node.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the node and wait until it answers."""
        command = [sys.executable, str(CHECKOUT / "bin" / "meterd"), "--node-id", "1"]
        command += ["--data-dir", str(self.folder / "data"), "--port", str(self.port)]
        command += ["--http-port", str(self.http_port)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the node ended with exit code {self.process.returncode}")
            with contextlib.suppress(Exception), Client([self.address], timeout=1.0) as client:
                client.hello()
                return
        raise RuntimeError("the node does not answer")

    def kill(self) -> None:
        """Kill the supervisor with SIGKILL; its actors end by themselves."""
        assert self.process is not None
        actors = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(actors, timeout=10)
        check(not alive, f"the node was killed, and its {len(actors)} actors ended with it")

    def clean_up(self) -> None:
        """End whatever is left of the node."""
        if self.process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.terminate()
            self.process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses at the moment."""
    with contextlib.ExitStack() as sockets:
        probes = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Meter:
    """Looks at all processes and makes events of what they used since the last look."""

    def __init__(self) -> None:
        self.last: dict[tuple[int, float], Reading] = {}
        self.looked_at = time.monotonic()

    def look(self) -> list[Event]:
        """The usage since the last look, as events."""
        now = time.monotonic()
        elapsed_ms, self.looked_at = round((now - self.looked_at) * 1000), now
        events, seen = [], {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError), process.oneshot():
                key = (process.pid, process.create_time())
                seen[key] = reading = read_process(process)
                before = self.last.get(key)
                if before is None:
                    continue  # what it used before we looked is not ours to bill
                used = [new - old for new, old in zip(reading, before, strict=True)]
                amounts = {
                    "cpu_seconds": Decimal(used[0]).scaleb(-2),
                    "bytes_read": Decimal(used[1]),
                    "bytes_written": Decimal(used[2]),
                    "memory_gb_seconds": memory_time(process.memory_info().rss, elapsed_ms),
                }
                events += events_of(process.username(), process.name(), amounts)
        self.last = seen
        return events


def read_process(process: psutil.Process) -> Reading:
    times = process.cpu_times()
    cpu = round((times.user + times.system) * 100)
    try:
        transfer = process.io_counters()
    except (psutil.AccessDenied, OSError):
        return Reading(cpu, 0, 0)  # other users' transfers are shown to root only
    return Reading(cpu, transfer.read_chars, transfer.write_chars)


def memory_time(size: int, elapsed_ms: int) -> Decimal:
    """Gigabytes times seconds, rounded down to the millionth that the metric counts."""
    return Decimal(size * elapsed_ms // 10**6).scaleb(-6)


def events_of(user: str, program: str, amounts: dict[str, Decimal]) -> Iterator[Event]:
    for metric, amount in amounts.items():
        if amount > 0:
            yield Event(user, metric, amount, properties={"program": program})


class Demonstration:
    """The run from the first look to the bill, with its own count of everything."""

    def __init__(self, node: Node, client: Client) -> None:
        self.node = node
        self.client = client
        self.meter = Meter()
        self.sent: list[Event] = []  # every event that was acknowledged
        self.repeated = 0  # events that had to be sent twice
        self.count: dict[tuple[str, str], Decimal] = defaultdict(Decimal)

    def register_metrics(self) -> None:
        for code, price in PRICES.items():
            self.client.put_metric(
                code,
                aggregation="sum",
                decimals=price.decimals,
                unit=price.unit,
                dimensions=["program"],
            )

    def send(self, events: list[Event]) -> None:
        """Send events and count them; the client repeats them, with their ids, until acknowledged.

        A duplicate is an event that was stored when the node died before it could say so.
        """
        if not events:
            return
        result = self.client.ingest(events)
        self.repeated += result.duplicate
        if result.stored + result.duplicate != len(events):
            check(False, f"{len(events)} events sent, {result.stored} stored: {result.items[:3]}")
        self.sent += events
        for event in events:
            self.count[event.account, event.metric] += Decimal(event.value)

    def watch(self, seconds: float) -> None:
        """Meter the machine for a time and show how usage grows."""
        deadline = time.monotonic() + seconds
        shown = 0.0
        self.meter.look()
        while time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            self.send(self.meter.look())
            if time.monotonic() - shown >= 4 * LOOK_SECONDS:
                shown = time.monotonic()
                self.show_usage()

    def show_usage(self) -> None:
        totals = {code: self.total_of(code) for code in PRICES}
        text = "   ".join(f"{code} {group_thousands(total)}" for code, total in totals.items())
        say(f"  {len(self.sent):>6,} events   {text}")

    def total_of(self, code: str) -> str:
        rows = self.client.accounts(code, period="current")
        return format(sum((Decimal(row.value) for row in rows), Decimal()), "f")

    def compare(self) -> None:
        """The node's totals must be our own count, to the last digit."""
        differing = []
        for code in PRICES:
            stored = {
                row.account: Decimal(row.value)
                for row in self.client.accounts(code, period="current")
            }
            counted = {u: total for (u, metric), total in self.count.items() if metric == code}
            users = sorted(stored.keys() | counted.keys())
            differing += [(code, u) for u in users if stored.get(u) != counted.get(u)]
        users = len({user for user, _ in self.count})
        claim = f"all totals of {users} users equal our own count of {len(self.sent):,} events"
        check(not differing, claim + (f"; not so: {differing[:3]}" if differing else ""))

    def send_again(self) -> None:
        """What was acknowledged must be known, and counting it again must change nothing."""
        again = self.sent[:: max(1, len(self.sent) // RESENT_COUNT)][:RESENT_COUNT]
        result = self.client.ingest(again)
        check(
            result.duplicate == len(again),
            f"{len(again):,} of these events sent again: {result.duplicate:,} duplicates",
        )

    def bill(self) -> None:
        """Print what every user owes, asking the node alone."""
        columns = [Column("USER"), Column("METRIC"), Column("PROGRAM", elastic=True)]
        columns += [Column(title, right=True) for title in ("USED", "UNIT", "AMOUNT")]
        users = sorted({user for user, _ in self.count})
        for user in users:
            rows, owed = [], Decimal()
            for code, price in PRICES.items():
                usage = self.client.usage(user, code, period="current", group_by=["program"])
                total = Decimal(usage.value or 0)
                amount = total * price.price
                owed += amount
                top = max(usage.groups, key=lambda group: Decimal(group.value), default=None)
                share = f"most by {top.key['program']}" if top else ""
                used = group_thousands(format(total, "f"))
                rows.append([user, code, share, used, price.unit, f"{amount:.6f}"])
            rows.append(["", "", "", "", "total", f"{owed:.6f}"])
            say("")
            for line in render(columns, rows, None, False):
                say(f"  {line}")


def demonstrate(folder: Path, seconds: float) -> None:
    node = Node(folder)
    try:
        say(f"Starting a node on {node.address} ...")
        node.start()
        with Client([node.address], timeout=ANSWER_SECONDS_MAX) as client:
            run(Demonstration(node, client), seconds)
    except BaseException:
        if node.log_path.exists():
            lines = node.log_path.read_text(errors="replace").splitlines()
            sys.stderr.write("\n".join(["the node said last:", *lines[-LAST_LOG_LINES:], ""]))
        raise
    finally:
        node.clean_up()


def run(demonstration: Demonstration, seconds: float) -> None:
    demonstration.register_metrics()
    say("Metering every process of this machine:")
    with ThreadPoolExecutor(1) as background:
        metering = background.submit(demonstration.watch, seconds)
        wait([metering], seconds / 2)
        say("Killing the node with SIGKILL while events are under way:")
        demonstration.node.kill()
        began = time.monotonic()
        demonstration.node.start()
        say(f"  the node is back after {time.monotonic() - began:.1f} s; metering goes on")
        metering.result()
    say("Checking every total, and that nothing is counted twice:")
    demonstration.compare()
    demonstration.send_again()
    demonstration.compare()
    if demonstration.repeated:
        say(f"  ({demonstration.repeated:,} events had been stored when the node was killed, but")
        say("   not acknowledged: they were sent again by the client, and counted once.)")
    say("What every user owes, at made-up prices:")
    demonstration.bill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to meter")
    seconds = parser.parse_args().seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="bill-"))
    try:
        demonstrate(folder, seconds)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

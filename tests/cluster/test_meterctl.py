"""meterctl against a real node, run the way people run it: as a program, with files and pipes."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.node import ROOT, Node
from tests.support.ports import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


class Shell:
    """Runs meterctl against one node."""

    def __init__(self, address, folder):
        self.folder = folder
        self.environment = {**os.environ, "METERCTL_NODES": address}

    def command(self, *args):
        return [sys.executable, str(ROOT / "bin" / "meterctl"), *map(str, args)]

    def run(self, *args, given=None, exit_code=0):
        done = subprocess.run(
            self.command(*args),
            input=given,
            capture_output=True,
            env=self.environment,
            timeout=120,
            check=False,
            cwd=self.folder,
        )
        assert done.returncode == exit_code, done.stderr.decode()
        self.errors = done.stderr.decode()
        return done.stdout.decode()

    def json(self, *args, given=None, exit_code=0):
        return json.loads(self.run("-o", "json", *args, given=given, exit_code=exit_code))


@pytest.fixture(scope="module")
def node():
    """A node that all tests of this file share, each with accounts of its own."""
    with Node() as node:
        shell = Shell(node.address, node.home)
        shell.run("--timeout", 60, "wait", "--for", "healthy")
        yield shell


@pytest.fixture
def shell(node, tmp_path):
    node.folder = tmp_path
    return node


def event_line(account, number, **fields):
    event = {"account": account, "metric": "calls", "id": f"{account}-{number}"}
    return json.dumps({**event, "timestamp": time.time_ns(), **fields}) + "\n"


@pytest.fixture(scope="module")
def calls(node):
    """A metric to count with."""
    put = ("metric", "put", "calls", "--aggregation", "sum", "--decimals", 2, "--unit", "calls")
    node.json(*put, "--dimension", "region")
    return put


def test_a_metric_is_registered_shown_changed_and_deleted(shell):
    put = ("metric", "put", "seats", "--aggregation", "unique", "--unique-on", "member")
    assert shell.json(*put)["outcome"] == "created"
    assert shell.json(*put)["outcome"] == "unchanged"
    shell.run(*put, "--period", "day", exit_code=6)
    assert "metric_conflict" in shell.errors and "--replace" in shell.errors
    assert shell.json(*put, "--period", "day", "--replace")["outcome"] == "replaced"
    shown = shell.json("metric", "show", "seats")
    assert shown["metric"]["period"]["kind"] == "day" and len(shown["versions"]) == 2
    assert "seats" in [row["code"] for row in shell.json("metric", "list")["metrics"]]
    assert "unique" in shell.run("-o", "table", "metric", "list")
    shell.run("metric", "delete", "seats", exit_code=6)
    shell.run("metric", "delete", "seats", "--yes")
    shell.run("metric", "show", "nothing", exit_code=5)


def test_files_are_counted_once_and_every_line_has_its_outcome(shell, calls):
    file = shell.folder / "events.ndjson"
    file.write_text("".join(event_line("acme", n, value="0.25") for n in range(1000)))
    expected = {"received": 1000, "stored": 1000, "duplicate": 0, "conflict": 0, "rejected": 0}
    expected |= {"unknown": 0, "reasons": {}}
    assert shell.json("ingest", file, "--batch", 300) == expected
    expected |= {"stored": 0, "duplicate": 1000}
    assert shell.json("ingest", file) == expected
    usage = shell.json("usage", "acme", "calls")
    assert usage["value"] == "250" and usage["count"] == 1000
    assert "250 calls" in shell.run("-o", "table", "usage", "acme", "calls")


def test_bad_lines_are_refused_by_number_and_the_others_are_stored(shell, calls):
    lines = [
        event_line("mixed", 1, value=1),
        "no json\n",
        event_line("mixed", 2, metric="unheard"),
        event_line("mixed", 3, value="0.001"),
        event_line("mixed", 4, timestamp=1),
        "\n",
        event_line("mixed", 5, value=2, properties={"region": "eu"}),
        event_line("mixed", 1, value=9),
        event_line("mixed", 6, vaule=2),
        event_line("m" * 129, 1),
        event_line("mixed", 7, metric="M" * 64),
    ]
    result = shell.json("ingest", "-", given="".join(lines).encode(), exit_code=7)
    reasons = result.pop("reasons")
    assert result == {
        "received": 10,
        "stored": 2,
        "duplicate": 0,
        "conflict": 1,
        "rejected": 7,
        "unknown": 0,
    }
    assert reasons == {
        "bad_json": 1,
        "unknown_metric": 1,
        "bad_value": 1,
        "too_old": 1,
        "unknown_field": 1,
        "bad_account": 1,
        "bad_metric": 1,
    }
    for place in ("-:2: bad_json", "-:3: rejected: unknown_metric", "-:8: conflict"):
        assert place in shell.errors
    assert shell.json("usage", "mixed", "calls")["value"] == "3"
    refused = shell.json("events", "rejected")["events"]
    assert {"unknown_metric", "bad_value", "too_old"} <= {row["reason"] for row in refused}


def test_async_events_are_accepted_and_then_there(shell, calls):
    lines = "".join(event_line("async", n) for n in range(10)).encode()
    result = shell.json("ingest", "-", "--async", given=lines)
    assert result["accepted"] == result["received"] == 10
    deadline = time.monotonic() + 30
    while (counted := shell.json("usage", "async", "calls")["value"]) != "10":
        assert time.monotonic() < deadline, counted


def test_an_access_log_is_counted_once_grown_rotated_or_packed(shell):
    moment = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime())
    line = f'192.0.2.1 - alice [{moment}] "GET /x?y HTTP/1.1" %d %d "-" "agent"\n'
    log = shell.folder / "access.log"
    log.write_text(line % (200, 100) + line % (200, 100) + line % (404, 7) + "not a line\n")
    result = shell.json("ingest", log, "--from-log", "combined", exit_code=7)
    assert (result["stored"], result["rejected"]) == (6, 1) and result["reasons"] == {"bad_line": 1}
    grown = log.read_text().replace("not a line\n", line % (200, 50))
    rotated = shell.folder / "access.log.1.gz"
    rotated.write_bytes(gzip.compress(grown.encode()))
    result = shell.json("ingest", rotated, "--from-log", "combined")
    assert (result["stored"], result["duplicate"]) == (2, 6)
    assert shell.json("usage", "alice", "requests")["value"] == "4"
    by_status = shell.json("usage", "alice", "bytes", "--group-by", "status")
    assert by_status["value"] == "257"
    groups = {group["key"]["status"]: group["value"] for group in by_status["groups"]}
    assert groups == {"200": "250", "404": "7"}


def test_questions_by_range_group_filter_and_window(shell, calls):
    lines = [event_line("q", n, properties={"region": "eu" if n % 3 else "us"}) for n in range(9)]
    shell.json("ingest", "-", given="".join(lines).encode())
    assert shell.json("usage", "q", "calls", "--start", "-1h")["value"] == "9"
    assert shell.json("usage", "q", "calls", "--start", "-2h", "--end", "-1h")["value"] == "0"
    filtered = shell.json("usage", "q", "calls", "--filter", "region=eu")
    assert filtered["value"] == "6"
    series = shell.json("usage", "q", "calls", "--start", "-2h", "--window", "hour")["series"]
    assert sum(float(point["value"] or 0) for point in series) == 9
    table = shell.run("-o", "table", "usage", "q", "calls", "--group-by", "region")
    assert "REGION" in table and "6 calls" in table
    top = shell.json("accounts", "calls", "--sort", "usage", "--top", 1)["rows"]
    assert len(top) == 1 and top[0]["account"] == "acme"
    rows = shell.run("-o", "ndjson", "accounts", "calls").splitlines()
    accounts = [json.loads(row)["account"] for row in rows]
    assert accounts == sorted(accounts) and {"acme", "q", "mixed"} <= set(accounts)


def test_events_are_listed_and_the_feed_goes_on_behind_a_cursor(shell, calls):
    lines = [event_line("listed", n, properties={"region": "eu"}) for n in range(5)]
    shell.json("ingest", "-", given="".join(lines).encode())
    events = shell.json("events", "listed", "--limit", 3)["events"]
    assert [event["id"] for event in events] == ["listed-0", "listed-1", "listed-2"]
    assert events[0]["properties"] == {"region": "eu"} and events[0]["value"] == "1"
    assert "region=eu" in shell.run("-o", "table", "events", "listed")
    first = shell.json("feed", "--limit", 2, "--account", "listed")
    rest = shell.json("feed", "--after", first["next"], "--account", "listed")
    ids = [event["id"] for event in first["events"] + rest["events"]]
    assert sorted(ids) == [f"listed-{n}" for n in range(5)]


def test_tail_shows_what_is_stored_and_ends_by_interrupt(shell, calls):
    tail = subprocess.Popen(
        shell.command("-o", "ndjson", "events", "tail", "--account", "tailed"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=shell.environment,
    )
    try:
        number = 0
        os.set_blocking(tail.stdout.fileno(), False)
        seen, deadline = b"", time.monotonic() + 60
        while b"tailed" not in seen and time.monotonic() < deadline:
            number += 1
            shell.json("ingest", "-", given=event_line("tailed", number).encode())
            seen += tail.stdout.read() or b""
        assert json.loads(seen.splitlines()[0])["account"] == "tailed"
        tail.send_signal(signal.SIGINT)
        assert tail.wait(30) == 130
    finally:
        tail.kill()
        tail.wait()
        tail.stdout.close()


def test_a_reader_that_goes_away_is_no_error(shell, calls):
    accounts = "".join(event_line(f"pipe-{n}", 0) for n in range(5000)).encode()
    shell.json("ingest", "-", given=accounts)
    listing = subprocess.Popen(
        shell.command("-o", "ndjson", "accounts", "calls"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=shell.environment,
    )
    with listing:
        listing.stdout.readline()
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 0


def test_nodes_are_looked_at_also_when_one_is_away(shell):
    assert shell.json("health")["status"] in ("pass", "warn")
    status = shell.json("status")
    assert status["reachable"] == status["configured"] == 1
    assert "1/1 reachable" in shell.run("-o", "table", "status")
    nodes = shell.environment["METERCTL_NODES"] + f",127.0.0.1:{free_ports(1)[0]}"
    health = shell.json("-n", nodes, "--timeout", 0.5, "health", exit_code=7)
    assert [node["reachable"] for node in health["nodes"]] == [True, False]
    shell.run("-n", f"127.0.0.1:{free_ports(1)[0]}", "--timeout", 0.3, "health", exit_code=3)
    shell.run(
        "-n",
        f"127.0.0.1:{free_ports(1)[0]}",
        "--timeout",
        0.3,
        "wait",
        "--for",
        "healthy",
        exit_code=8,
    )
    rows = shell.json("metrics", "--filter", "billing_events_ingested_total")["metrics"]
    assert {row["name"] for row in rows} == {"billing_events_ingested_total"}
    assert shell.json("version")["nodes"][0]["version"] == shell.json("version")["meterctl"]


def test_the_disk_is_described_and_its_reserve_given_back(shell):
    (found,) = shell.json("disk", "status")["nodes"]
    assert found["state"] in ("ok", "warn")
    assert {"log", "reserve", "checkpoints", "other"} <= {one["kind"] for one in found["kinds"]}
    text = shell.run("-o", "table", "disk")
    assert "GROWTH/DAY" in text and "not meterd" in text and f"next         {found['next']}" in text
    assert "./run" in shell.run("-o", "table", "disk", "status", "--inodes")
    deadline = time.monotonic() + 20
    while not found["reserve"] and time.monotonic() < deadline:  # it is made a piece at a time
        (found,) = shell.json("disk", "status")["nodes"]
    (freed,) = shell.json("disk", "free-reserve")["nodes"]
    assert freed["freed"] >= found["reserve"] > 0
    again = shell.json("disk", "free-reserve", exit_code=6)
    assert again["nodes"][0]["error"] == "not_needed"
    nodes = shell.environment["METERCTL_NODES"] + f",127.0.0.1:{free_ports(1)[0]}"
    both = shell.json("-n", nodes, "--timeout", 0.5, "disk", "status", exit_code=7)
    assert (both["reachable"], both["configured"]) == (1, 2)
    shell.run("-n", f"127.0.0.1:{free_ports(1)[0]}", "--timeout", 0.3, "disk", exit_code=3)


@pytest.mark.parametrize("options", [("--in-flight", 1), ("--clients", 2)])
def test_bench_keeps_to_a_rate(shell, options):
    began = time.monotonic()
    flags = ("--batch", 10, "--rate", 500, "--seconds", 2, "--warm-up", 0.2, *options)
    result = shell.json("bench", *flags)
    assert result["verified"] is True and result["rate"] == 500
    # Each client may begin with one request.
    assert 10 <= result["sent"] <= 500 * (time.monotonic() - began) + 20


@pytest.mark.parametrize(("batch", "durability"), [(1, "sync"), (200, "sync"), (500, "async")])
def test_bench_verifies_every_total(shell, batch, durability):
    result = shell.json(
        "bench",
        "--batch",
        batch,
        "--durability",
        durability,
        "--seconds",
        1,
        "--warm-up",
        0.2,
        "--accounts",
        100,
        "--clients",
        2,
    )
    assert result["verified"] is True and result["errors"] == 0
    assert result["received"] == result["sent"] == result["stored"] + result["accepted"]
    assert result["events_per_second"] > 0 and result["latency_us"]["p50"] > 0

"""A real node: accounts erased, balances brought, a feed followed, across kill -9 and restores."""

from __future__ import annotations

import json
import shutil
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from meterd.client import Event
from meterd.protocol.errors import MeterdError
from tests.support.meterctl import call
from tests.support.node import Node
from tests.support.waiting import eventually

pytestmark = pytest.mark.cluster
DAY = 86_400_000_000_000
NOW = time.time_ns()


@pytest.fixture
def node():
    with Node() as running:
        yield running


def admin(node: Node, *arguments: str, stdin: bytes = b"") -> tuple[int, Any, str]:
    """Exit code, document and errors of one command of meterctl."""
    ended = call("-n", node.address, "-o", "json", *arguments, stdin=stdin)
    return ended.code, json.loads(ended.out) if ended.code == 0 else None, ended.errors


def event(account: str, number: int, **more: Any) -> Event:
    properties = {"region": "eu", "note": "secret-note"}
    return Event(account, "calls", 1, NOW, f"id-{number}", properties=properties, **more)


def put(node: Node) -> None:
    with node.client() as client:
        client.put_metric("calls", aggregation="sum", dimensions=["region"])


def value(node: Node, account: str, **question: Any) -> Decimal:
    with node.client() as client:
        found: Decimal = client.usage(account, "calls", **question).value
        return found


def holds(directory: Path, text: bytes, *patterns: str) -> list[str]:
    """Which files of these patterns hold a text."""
    paths = [path for pattern in patterns for path in directory.glob(pattern)]
    return [path.name for path in paths if text in path.read_bytes()]


def test_an_erased_account_is_gone_and_its_ids_stay_used(node):
    put(node)
    odd = {"start": NOW - DAY, "end": NOW + DAY}
    with node.client() as client:
        client.ingest([event("acme/x", 1), event("acme/y", 2), event("other", 3)])
    code, document, _ = admin(node, "account", "erase", "acme", "--subtree", "--yes")
    assert (code, document["erased"]) == (0, True)

    def check() -> None:
        for account in ("acme/x", "acme/y"):
            assert value(node, account) == value(node, account, **odd) == 0
            with node.client() as client:
                assert list(client.events(account)) == []
        assert value(node, "other") == value(node, "other", **odd) == 1
        with node.client() as client:
            assert [row.account for row in client.accounts("calls")] == ["other"]
            assert [one.account for one in client.feed()] == ["other"]
            again = client.ingest([event("acme/x", 1), event("acme/y", 2)])
            assert (again.duplicate, again.stored) == (2, 0)

    check()
    node.kill9()
    node.start()
    check()
    with node.client() as client:
        assert client.ingest([event("acme/x", 4)]).stored == 1
    assert value(node, "acme/x") == value(node, "acme/x", **odd) == 1
    eventually(
        lambda: not holds(node.data_dir, b"acme/y", "checkpoint*.bin", "erased.bin"),
        "no checkpoint holds the erased account",
    )
    node.restart()
    assert value(node, "acme/x") == value(node, "acme/x", **odd) == 1


def test_a_restored_older_copy_erases_again(node):
    """Beside the copy only erased.bin is kept, as a restore does."""
    put(node)
    with node.client() as client:
        client.ingest([event("acme", 1), event("other", 2)])
    assert node.stop() == 0
    copy = node.home / "copy"
    shutil.copytree(node.data_dir, copy, ignore=shutil.ignore_patterns("run"))
    node.start()
    assert admin(node, "account", "erase", "acme", "--yes")[0] == 0
    assert node.stop() == 0
    erased = (node.data_dir / "erased.bin").read_bytes()
    assert b"acme" not in erased
    shutil.rmtree(node.data_dir)
    copy.rename(node.data_dir)
    (node.data_dir / "erased.bin").write_bytes(erased)
    node.start()
    assert value(node, "acme") == value(node, "acme", start=NOW - DAY, end=NOW + DAY) == 0
    assert value(node, "other") == 1
    with node.client() as client:
        assert client.ingest([event("acme", 1)]).duplicate == 1
        assert client.ingest([event("acme", 9)]).stored == 1
    node.restart()
    assert value(node, "acme") == 1


def test_a_restored_backup_erases_again(node, tmp_path):
    """The restore carries the erasures over from the directory that it replaces."""
    put(node)
    with node.client() as client:
        client.ingest([event("acme", 1), event("other", 2)])
    backups = tmp_path / "backups"
    backups.mkdir()
    assert admin(node, "backup", "create", "--to", str(backups))[0] == 0
    assert admin(node, "account", "erase", "acme", "--yes")[0] == 0
    assert node.stop() == 0
    where = ("--from", str(backups), "--data-dir", str(node.data_dir))
    code, _, errors = admin(node, "restore", "node", *where, "--yes")
    assert code == 0, errors
    node.start()
    assert value(node, "acme") == value(node, "acme", start=NOW - DAY, end=NOW + DAY) == 0
    assert value(node, "other") == 1
    with node.client() as client:
        assert list(client.events("acme")) == []


def test_balances_count_once(node, tmp_path):
    put(node)
    rows = [
        {
            "account": f"acme/{n}",
            "metric": "calls",
            "dimensions": {"region": "us"},
            "at": NOW - DAY,
            "count": 4,
            "sum": "2.5",
        }
        for n in range(30)
    ]
    file = tmp_path / "balances.ndjson"
    file.write_text("\n".join(map(json.dumps, rows)))
    code, document, _ = admin(node, "account", "import", str(file))
    assert (code, document["imported"], document["unchanged"]) == (0, 30, 0)
    code, document, _ = admin(node, "account", "import", str(file))
    assert (code, document["imported"], document["unchanged"]) == (0, 0, 30)
    node.kill9()
    node.start()
    with node.client() as client:
        client.ingest([event("acme/7", 1)])
    around = {"start": NOW - 2 * DAY, "end": NOW + DAY}
    assert value(node, "acme/7", **around) == Decimal("3.5")
    assert value(node, "acme", subtree=True, **around) == 76
    assert value(node, "acme/7", start=NOW - DAY + 1, end=NOW + DAY) == 1
    with node.client() as client:
        answer = client.usage("acme/7", "calls", group_by=["region"], **around)
        found = {group.key["region"]: group.value for group in answer.groups}
        assert found == {"eu": 1, "us": Decimal("2.5")}
        with pytest.raises(MeterdError) as caught:
            client.import_balances(f"{document['id']}:0", rows[:1])
        assert caught.value.code == "import_conflict"
        assert client.usage("acme/7", "calls", **around).value == Decimal("3.5")
    assert admin(node, "account", "import", "-", stdin=b'{"account": "a"}')[0] == 2


def test_totals_outlive_the_log_files_that_they_were_in():
    """Files past the retention are folded; their totals answer, across kill -9 and coarsening."""
    settings = {
        "METERD__WAL__SEGMENT_SIZE": "4MiB",
        "METERD__STORAGE__CHECKPOINT_EVENTS": "1000",
        "METERD__STORAGE__CHECKPOINT_INTERVAL": "1s",
        "METERD__RETENTION__SWEEP_INTERVAL": "1s",
    }
    old = NOW - 30 * DAY
    with Node(environment=settings) as node:
        with node.client() as client:
            client.put_metric("calls", aggregation="sum", dimensions=["region"])
            client.put_metric("seats", aggregation="unique", unique_on="user")
            client.put_metric("level", aggregation="latest")
            padded = {"properties": {"pad": "x" * 200}}
            joined = {"operation": "add", "properties": {"user": "u"}}
            client.ingest(
                [
                    Event("acme", "seats", 1, old, "seat", **joined),
                    Event("acme", "level", 7, old, "level"),
                ]
            )
            for batch in range(20):
                ids = [f"{batch}-{n}" for n in range(4_000)]
                client.ingest(
                    [Event("acme", "calls", 1, old + batch, one, **padded) for one in ids]
                )
            client.ingest([event("acme", n) for n in range(4_000)])
        full = len(list(node.data_dir.glob("wal-0*.log")))
        assert full >= 3
        assert node.stop() == 0
        more = {"METERD__RETENTION__DAYS": "7", "METERD__RETENTION__TOTALS_DAYS": "60"}
        node._environment |= more
        node.start()

        def folded(count: int) -> bool:
            # Whatever is stored moves the two checkpoints on.
            with node.client() as client:
                client.ingest([Event("other", "calls", 1, NOW, f"{time.monotonic_ns()}")])
            return len(list(node.data_dir.glob("wal-0*.log"))) <= count

        eventually(lambda: folded(full - 3), "old log files are gone", 120)
        first = f"seg-{1:012d}-*"
        eventually(lambda: not list(node.data_dir.glob(first)), "segments are gone", 60)
        assert list(node.data_dir.glob("totals-*.tot"))

        def check() -> None:
            assert value(node, "acme", start=0, end=NOW + DAY) == 84_000
            with node.client() as client:
                now = {"start": NOW - DAY, "end": NOW + DAY}
                assert client.usage("acme", "seats", **now).value == 1
                assert client.usage("acme", "level", start=0, end=NOW + DAY).value == 7

        check()
        quarter = old - old % 900_000_000_000
        assert value(node, "acme", start=quarter, end=NOW - DAY) == 80_000
        assert value(node, "acme", start=quarter - DAY, end=quarter) == 0
        node.kill9()
        node.start()
        check()
        code, _, errors = admin(
            node, "usage", "acme", "calls", "--start", str(old + 1), "--end", str(NOW)
        )
        assert (code, "range_expired" in errors) == (5, True)
        node._environment["METERD__RETENTION__TOTALS_DAYS"] = "0"
        node.kill9()
        node.start()
        eventually(lambda: refused(node, quarter + 900_000_000_000), "totals are coarse", 120)
        check()


def refused(node: Node, end: int) -> bool:
    """Is a range that begins within the past and ends there refused?"""
    code, _, errors = admin(
        node, "usage", "acme", "seats", "--start", str(end - DAY), "--end", str(NOW)
    )
    return code == 5 and "range_expired" in errors


def test_a_feed_goes_on_at_its_cursor(node):
    put(node)
    with node.client() as client:
        client.ingest([event("a", n) for n in range(5)])
    code, document, _ = admin(node, "feed", "--limit", "3")
    assert (code, len(document["events"])) == (0, 3)
    code, document, _ = admin(node, "feed", "--after", document["next"])
    assert [one["id"] for one in document["events"]] == ["id-3", "id-4"]
    code, _, errors = admin(node, "feed", "--after", "f.0.0")
    assert code == 5
    assert "range_expired" in errors and "f.1.0" in errors

"""Telemetry: what actors count, how it survives restarts, and how it looks on the page."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from meterd.actors.measuring.catalog import BY_NAME, FAMILIES, PREFIX
from meterd.actors.measuring.collected import Collected, key_of
from meterd.actors.measuring.exposition import render
from meterd.actors.measuring.kept_page import HEAD, PLACE_SIZE, KeptPage
from meterd.actors.measuring.telemetry import BOUNDS, REPEAT_TURNS, Telemetry

ROOT = Path(__file__).resolve().parent.parent.parent


def snapshot(pid: int, telemetry: Telemetry) -> dict[str, object]:
    taken = telemetry.snapshot()
    assert taken is not None
    return {**taken, "pid": pid}


def page_of(collected: Collected) -> dict[str, dict[tuple[str, ...], float]]:
    """Return {sample name: {label values: value}} as a scraper reads it."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    page = render(collected.numbers(), collected.histograms()).decode()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_a_snapshot_is_given_when_something_changed_and_now_and_then_anyway() -> None:
    telemetry = Telemetry("toy")
    assert telemetry.snapshot() is not None
    assert telemetry.snapshot() is None
    telemetry.add("wal_appends_total")
    assert telemetry.snapshot() is not None
    telemetry.set("inflight_requests", 3)
    assert telemetry.snapshot() is not None
    telemetry.set("inflight_requests", 3)
    given = [telemetry.snapshot() is not None for _ in range(REPEAT_TURNS)]
    assert given == [False] * (REPEAT_TURNS - 1) + [True]


def test_an_observation_falls_into_the_first_bucket_that_holds_it() -> None:
    telemetry = Telemetry("toy")
    name = "wal_fsync_duration_seconds"
    telemetry.observe(name, BOUNDS[3], 2)
    telemetry.observe(name, BOUNDS[3] * 1.01)
    telemetry.observe(name, 1e9)
    collected = Collected()
    collected.take("wal_writer", snapshot(1, telemetry))
    page = page_of(collected)
    buckets = page[f"{PREFIX}{name}_bucket"]
    assert [*buckets.values()][:6] == [0, 0, 0, 2, 3, 3]
    assert buckets[("+Inf",)] == page[f"{PREFIX}{name}_count"][()] == 4


def test_counters_never_fall_when_an_actor_restarts() -> None:
    collected = Collected()
    for pid, added in ((1, 5), (1, 7), (2, 1), (3, 2)):
        telemetry = Telemetry("toy")
        telemetry.add("wal_appends_total", added)
        telemetry.observe("wal_fsync_duration_seconds", 10.0, added)
        telemetry.set("wal_offset_bytes", pid * 100)
        collected.take("wal_writer", snapshot(pid, telemetry))
    page = page_of(collected)
    assert page["billing_wal_appends_total"][()] == 7 + 1 + 2
    assert page["billing_wal_fsync_duration_seconds_count"][()] == 7 + 1 + 2
    assert page["billing_wal_fsync_duration_seconds_sum"][()] == 100
    assert page["billing_wal_offset_bytes"][()] == 300


def test_a_restart_of_who_collects_forgets_nothing() -> None:
    collected = Collected()
    for pid, added in ((1, 5), (2, 1)):
        telemetry = Telemetry("toy")
        telemetry.add("wal_appends_total", added)
        telemetry.add("surprises_total")
        telemetry.observe("wal_fsync_duration_seconds", 10.0, added)
        telemetry.set("peers", 2)
        telemetry.keep("view_changes_total", 85)
        collected.take("wal_writer", snapshot(pid, telemetry))
    restored = Collected.restored(collected.to_bytes())
    assert page_of(restored) == page_of(collected)
    assert restored.unknown == collected.unknown
    assert restored.gauge("peers") == 2
    telemetry = Telemetry("toy")
    telemetry.add("wal_appends_total", 2)
    restored.take("wal_writer", snapshot(3, telemetry))
    assert page_of(restored)["billing_wal_appends_total"][()] == 5 + 1 + 2


def test_processor_time_does_not_fall_with_a_process() -> None:
    collected, shown = Collected(), []
    for pid, seconds in ((1, 5.25), (1, 7.5), (2, 0.25), (2, 1.0)):
        collected.take_processor_time("usage", pid, seconds)
        shown.append(page_of(collected)["billing_actor_cpu_seconds_total"][("usage",)])
    assert shown == [5.25, 7.5, 7.75, 8.5]


def test_a_page_that_was_not_written_whole_leaves_the_one_before() -> None:
    kept = KeptPage()
    assert kept.read() is None
    for page in (b"first", b"second", b"third and longest"):
        kept.write(page)
        assert kept.read() == page
    newest = 3 % 2 * PLACE_SIZE + HEAD.size
    kept._memory[newest] ^= 1
    assert kept.read() == b"second"
    kept.write(b"fourth")
    assert kept.read() == b"fourth"
    kept.write(bytes(PLACE_SIZE))
    assert kept.read() == b"fourth"


def test_a_new_number_in_front_of_an_old_page_does_not_make_it_the_newest() -> None:
    kept = KeptPage()
    for page in (b"first", b"second"):
        kept.write(page)
    kept._memory[PLACE_SIZE : PLACE_SIZE + 8] = (3).to_bytes(8, "little")  # and killed then
    assert kept.read() == b"second"


def test_a_total_that_the_state_keeps_is_taken_as_it_is() -> None:
    """View changes are counted in the state: each process of usage says all of them again."""
    collected = Collected()
    for pid, total in ((1, 85), (2, 85), (3, 171)):
        telemetry = Telemetry("usage")
        telemetry.keep("view_changes_total", total)
        collected.take("usage", snapshot(pid, telemetry))
    assert page_of(collected)["billing_view_changes_total"] == {(): 171}
    assert collected.unknown == set()


def test_what_two_actors_count_under_one_name_is_added() -> None:
    collected = Collected()
    for actor in ("ingest", "usage"):
        telemetry = Telemetry(actor)
        telemetry.add('events_rejected_total{reason="too_old"}', 2)
        collected.take(actor, snapshot(1, telemetry))
    assert page_of(collected)["billing_events_rejected_total"][("too_old",)] == 4


def test_every_counter_with_known_labels_is_there_from_the_start() -> None:
    page = page_of(Collected())
    for family in FAMILIES:
        for labels in family.initial:
            sample = family.name + ("_count" if family.kind == "histogram" else "")
            assert page[PREFIX + sample][labels] == 0
    assert page["billing_events_ingested_total"] == {("sync",): 0, ("async",): 0}
    assert page["billing_view_changes_total"] == {(): 0}


def test_a_name_that_no_table_has_is_kept_off_the_page() -> None:
    telemetry = Telemetry("toy")
    telemetry.add("surprises_total")
    telemetry.add('wal_appends_total{colour="red"}')
    telemetry.set("wal_rotations_total", 1)  # a counter, not a gauge
    collected = Collected()
    collected.take("toy", snapshot(1, telemetry))
    assert collected.unknown == {
        "surprises_total",
        'wal_appends_total{colour="red"}',
        "wal_rotations_total",
    }
    assert page_of(collected)["billing_wal_rotations_total"][()] == 0


def test_names_follow_the_rules_of_prometheus() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert family.help.endswith(".")
        assert not {"account", "id"} & set(family.labels)
        assert family.name.endswith("_seconds") or family.kind != "histogram"


def test_actors_use_only_names_of_the_table() -> None:
    """A name that an actor misspells would silently be missing from the page."""
    written = re.compile(
        r"""telemetry\.(?:add|set|keep|observe)\(\s*f?(['"])(.+?)\1[,)]""", re.DOTALL
    )
    used = set()
    for path in (ROOT / "actors").rglob("*.py"):
        for _, name in written.findall(path.read_text()):
            used.add((path.name, name))
    assert len(used) > 10
    wrong = []
    for file, name in used:
        labels = re.findall(r'([a-z_]+)="', name)
        family = BY_NAME.get(name.partition("{")[0])
        spelled_out = not name.endswith("{{{path}}}")  # that label is made once, elsewhere
        if family is None or (spelled_out and tuple(labels) != family.labels):
            wrong.append((file, name))
    assert not wrong


def test_every_name_of_the_table_is_set_by_somebody() -> None:
    files = [path for path in (ROOT / "actors").rglob("*.py") if path.name != "catalog.py"]
    code = "\n".join(path.read_text() for path in files)
    assert {name for name in BY_NAME if not re.search(rf"\b{name}\b", code)} == set()


def test_keys_are_read_in_the_order_of_the_table() -> None:
    assert key_of('events_ingested_total{mode="sync"}') == ("events_ingested_total", ("sync",))
    assert key_of("events_ingested_total") is None
    assert key_of("wal_appends_total") == ("wal_appends_total", ())

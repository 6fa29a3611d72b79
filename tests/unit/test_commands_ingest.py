"""meterctl ingest against a node that loses, refuses and repeats: every event once, all counted."""

import json

import pytest

from meterd import admin
from tests.support.fake_node import FakeNode

COUNTS = ("stored", "duplicate", "conflict", "rejected", "unknown")


def write_events(path, numbers, metric="calls"):
    lines = [
        json.dumps({"account": f"a{n % 7}", "metric": metric, "id": f"e{n}", "timestamp": n})
        for n in numbers
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def ingest(node, capsys, *args, timeout="10"):
    exit_code = admin.run(args=["-n", node.address, "--timeout", timeout, "ingest", *args])
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["received"] == sum(result[name] for name in COUNTS)
    return exit_code, result, captured.err


@pytest.mark.slow
def test_whatever_the_node_does_to_answers_each_event_is_there_once(tmp_path, capsys):
    file = write_events(tmp_path / "events", range(100))
    script = ["overloaded", "restarting", "twice", "garbage", "late", "lose", "shutting_down"]
    with FakeNode(script) as node:
        exit_code, result, _ = ingest(node, capsys, file, "--batch", "10")
        assert exit_code == 0 and result["stored"] + result["duplicate"] == 100
        assert len(node.model.events) == 100
        exit_code, result, _ = ingest(node, capsys, file)
        assert (exit_code, result["duplicate"]) == (0, 100)


def test_lines_count_in_their_order_also_when_one_is_sent_again(tmp_path, capsys):
    file = tmp_path / "events"
    event = {"account": "a", "metric": "calls", "id": "e", "timestamp": 1}
    file.write_text("".join(json.dumps(event | {"value": value}) + "\n" for value in (1, 2, 3)))
    with FakeNode(["overloaded"]) as node:
        exit_code, result, errors = ingest(node, capsys, str(file), "--batch", "1")
    assert exit_code == 7 and (result["stored"], result["conflict"]) == (1, 2)
    assert f"{file}:1:" not in errors
    assert f"{file}:2: conflict" in errors and f"{file}:3: conflict" in errors


def test_several_files_and_long_lines(tmp_path, capsys):
    first = write_events(tmp_path / "first", range(10))
    second = tmp_path / "second"
    second.write_text('{"account": "' + "x" * 200_000 + '"}\n' + "{}\n\n")
    with FakeNode() as node:
        exit_code, result, errors = ingest(node, capsys, first, str(second))
    assert exit_code == 7 and result["stored"] == 10 and result["rejected"] == 2
    assert result["reasons"] == {"bad_account": 1, "line_too_long": 1}
    assert f"{second}:1: line_too_long" in errors and f"{second}:2: bad_account" in errors


def test_what_the_node_refuses_is_named_by_line_up_to_a_limit(tmp_path, capsys):
    file = write_events(tmp_path / "events", range(100), metric="unknown")
    with FakeNode() as node:
        exit_code, result, errors = ingest(node, capsys, file, "--batch", "30")
    assert exit_code == 7 and result["reasons"] == {"unknown_metric": 100}
    assert f"{file}:20: rejected" in errors and f"{file}:21: rejected" not in errors
    assert "80 more" in errors


@pytest.mark.slow
def test_events_without_an_answer_are_unknown(tmp_path, capsys):
    file = write_events(tmp_path / "events", range(20))
    with FakeNode(["ignore"] * 50) as node:
        exit_code, result, errors = ingest(node, capsys, file, timeout="0.2")
    assert exit_code == 3 and result["unknown"] == 20 and "lines 1 to 20" in errors


@pytest.mark.parametrize(("behaviour", "expected"), [("overloaded", 10), ("restarting", 10)])
def test_events_that_are_declined_until_time_is_over_end_as_the_node_said(
    tmp_path, capsys, behaviour, expected
):
    file = write_events(tmp_path / "events", range(20))
    with FakeNode([behaviour] * 500) as node:
        exit_code, result, _ = ingest(node, capsys, file, timeout="0.3")
    assert (exit_code, result["unknown"]) == (expected, 20)


def test_a_file_that_breaks_off_is_partly_done(tmp_path, capsys):
    broken = tmp_path / "broken.gz"
    broken.write_bytes(b"\x1f\x8b\x08\x00 not gzip at all")
    good = write_events(tmp_path / "good", range(3))
    with FakeNode() as node:
        exit_code, result, errors = ingest(node, capsys, str(broken), good)
    assert exit_code == 7 and result["stored"] == 3 and "cannot be read" in errors


def test_what_is_under_way_when_interrupted_is_still_counted(tmp_path, capsys, monkeypatch):
    file = write_events(tmp_path / "events", range(30))

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("meterd.commands.ingest.LineSource.progress", interrupt)
    monkeypatch.setattr("meterd.commands.ingest.LINES_PER_LOOK", 25)
    monkeypatch.setattr("meterd.commands.ingest.PROGRESS_SECONDS", -1)
    monkeypatch.setattr("meterd.commands.console.sys.stderr.isatty", lambda: True)
    with FakeNode() as node:
        exit_code, result, _ = ingest(node, capsys, file, "--batch", "10")
    assert exit_code == 130 and result["stored"] == 20

"""The command line itself: help everywhere, documented, and an exit code for every ending."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from meterd import admin
from meterd.actors.backups.shelf import Shelf
from meterd.client import Unsendable
from meterd.commands import nodes
from meterd.commands.console import Console, Listing
from meterd.commands.session import AdminError
from meterd.commands.tables import Column
from meterd.exits import AdminExit, worst
from meterd.protocol.errors import (
    CODES,
    DeadlineExceeded,
    MetricConflict,
    Overloaded,
    Refused,
    Unreachable,
)
from tests.support.backup_manifests import manifest
from tests.support.ports import free_ports

DOCUMENT = (Path(admin.__file__).parent.parent / "docs" / "METERCTL.md").read_text()


def commands_below(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands_below(command, (*path, name))


COMMANDS = dict(commands_below(admin.cli))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_option_has_help_and_is_documented(path):
    command = COMMANDS[path]
    assert command.help and command.get_short_help_str()
    assert re.search(rf"\b{path[0]}\b", DOCUMENT) and re.search(rf"\b{path[-1]}\b", DOCUMENT)
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            for name in (*option.opts, *option.secondary_opts):
                assert f"`{name}" in DOCUMENT or f" {name}" in DOCUMENT, name


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_of_every_command_is_printed(path, capsys):
    assert admin.run(args=[*path, "--help"]) == 0
    assert "Usage: meterctl" in capsys.readouterr().out


def test_no_command_is_said_to_be_missing_that_is_there():
    groups = [each for each in COMMANDS.values() if isinstance(each, click.Group)]
    for group in (admin.cli, *groups):
        assert not group.later.keys() & group.commands.keys()
        for name in group.later:
            assert re.search(rf"\b{name}\b", DOCUMENT), name


def test_a_restore_goes_to_the_configured_directory_unless_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    option = next(each for each in COMMANDS["restore", "node"].params if each.name == "data_dir")
    context = click.Context(COMMANDS["restore", "node"])
    assert option.process_value(context, None) == str(tmp_path / "data")
    monkeypatch.setenv("METERD__NODE__DATA_DIR", "/var/lib/meterd")
    assert option.process_value(context, None) == "/var/lib/meterd"
    assert option.process_value(context, "/x") == "/x"


def test_a_configuration_is_checked_and_shown_without_a_node(tmp_path, monkeypatch, capsys):
    path = tmp_path / "meterd.toml"
    path.write_text('[wal]\nretention_days = 9\n[node]\nid = 1\npeers = "2:b:8001"\n')
    assert admin.run(args=["config", "validate", "--file", str(path)]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["valid"] and "odd number" in captured.err
    monkeypatch.setenv("METERD_CONFIG", str(path))
    assert admin.run(args=["config", "show"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)["settings"]}
    assert rows["wal.retention_days"] == {
        "key": "wal.retention_days",
        "value": "9",
        "default": "7",
        "reloads": True,
    }
    path.write_text("[wal]\nretention_day = 9\n")
    assert admin.run(args=["config", "validate"]) == 78
    assert "retention_days" in capsys.readouterr().err


def test_every_code_of_the_protocol_ends_with_a_known_exit_code():
    for code in CODES:
        error = type("Coded", (Overloaded,), {"code": code})("text")
        ended = admin.admin_error_of(error)
        assert ended.exit_code is not AdminExit.GOOD
        assert "ids" not in ended.hint.split(), "most commands send no events"


@pytest.mark.parametrize(
    ("code", "exit_code"), [("overloaded", 10), ("disk_stop", 11), ("not_leader", 10), (None, 3)]
)
def test_who_was_declined_until_time_was_over_ends_as_the_last_answer_says(
    code: str | None, exit_code: int
):
    error = DeadlineExceeded("was not settled within 5 s")
    error.__cause__ = None if code is None else Refused(code, "no", "later", "")
    assert admin.admin_error_of(error).exit_code == exit_code


@pytest.mark.parametrize(
    ("args", "exit_code", "text"),
    [
        (["usage", "a"], 2, "Missing argument"),
        (["nonsense"], 2, "No such command"),
        (["void", "acme", "id-1"], 2, "void is not in this version: store an event"),
        (["quota", "show", "acme"], 2, "quota is not in this version\n"),
        (["account", "set", "acme"], 2, "account set is not in this version"),
        (["node", "replace", "1", "4"], 2, "node replace is not in this version: add"),
        (["-n", "here:1", "config", "reload"], 2, "config reload is not in this version: send"),
        (["config", "validate", "--file", "/nowhere"], 78, "cannot read /nowhere"),
        (["backup", "list"], 2, "--from DIR|URL, or METERCTL_BACKUPS"),
        (["restore", "node", "--plan"], 2, "--from DIR|URL"),
        (["-n", "here", "status"], 2, "HOST:PORT"),
        (["status", "-n", "here:0"], 2, "HOST:PORT"),
        (["status", "-n", "here:²"], 2, "HOST:PORT"),
        (["status", "--timeout", "nan"], 2, "no number of seconds"),
        (["usage", "a", "m", "--period", "current", "--start", "-1h"], 2, "--period"),
        (["usage", "a", "m", "--start", "soon"], 2, "no point in time"),
        (["usage", "a", "m", "--start", "now", "--end", "-1h"], 2, "before"),
        (["usage", "a", "m", "--filter", "eu"], 2, "KEY=VALUE"),
        (["metric", "put", "m", "--aggregation", "sum", "--period", "fixed:x"], 2, "fixed"),
        (["metric", "put", "m", "--aggregation", "sum", "--threshold", "half"], 2, "CODE=VALUE"),
        (["metric", "put", "m", "--aggregation", "sum", "--threshold", "a=1:x=2"], 2, "every=N"),
        (["metric", "delete", "m"], 6, "--yes"),
        (["ingest", "/nowhere/at-all"], 2, "does not exist"),
        (["--timeout", "0.05", "-n", "127.0.0.1:1", "usage", "a", "m"], 3, "unreachable"),
    ],
)
def test_a_wrong_or_unanswered_command_says_why_on_standard_error(
    args, exit_code, text, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert admin.run(args=args) == exit_code
    captured = capsys.readouterr()
    assert text in captured.err and captured.out == ""


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (Unreachable("no"), 3),
        (Unsendable("half a character"), 2),
        (MetricConflict("other"), 6),
        (Overloaded(), 10),
        (AdminError(AdminExit.NO, "no", "no"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("a bug"), 70),
    ],
)
def test_every_ending_has_its_exit_code(error, exit_code, monkeypatch, capsys):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(admin.cli, "main", fail)
    assert admin.run() == exit_code
    assert capsys.readouterr().out == ""


def test_a_full_disk_under_standard_output_is_said_to_be_one(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert admin.run(args=["config", "show"]) == AdminExit.NO_SPACE
    assert capsys.readouterr().err == "meterctl: disk_full: output: No space left on device\n"


@contextmanager
def nobody_reads(name: str, monkeypatch, *, buffered: bool) -> Iterator[None]:
    """A standard stream whose reader has gone away."""
    reading, writing = os.pipe()
    os.close(reading)
    with (
        open(writing, "wb", -1 if buffered else 0) as raw,
        io.TextIOWrapper(raw, write_through=not buffered) as stream,
    ):
        monkeypatch.setattr(sys, name, stream)
        yield
        monkeypatch.undo()


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("output", ["json", "ndjson", "table"])
def test_who_stops_reading_changes_no_verdict(output, name, buffered, tmp_path, monkeypatch):
    (tmp_path / "meterd-one.partial").mkdir()
    Shelf.at(str(tmp_path)).publish(manifest("meterd-one"))  # without the files that it names
    events = tmp_path / "events"
    events.write_text("no event\n")
    damaged = ("backup", "verify", "--from", str(tmp_path))
    told = (*damaged, "--tell", "-n", f"127.0.0.1:{free_ports(1)[0]}", "--timeout", "0.05")
    cases = (
        (damaged, AdminExit.CORRUPT),
        (told, AdminExit.CORRUPT),
        (("ingest", str(events)), AdminExit.PARTLY),
        (("backup", "list", "--from", str(tmp_path), "--max-age", "1s"), AdminExit.NO),
        (("config", "show"), AdminExit.GOOD),
        (("nonsense",), AdminExit.USAGE),
        (("backup", "verify", "--from", str(tmp_path), "--backup", "x"), AdminExit.NOT_FOUND),
    )
    for words, exit_code in cases:
        with nobody_reads(name, monkeypatch, buffered=buffered):
            ended = admin.run(args=["-o", output, *words])
        assert ended == exit_code, words


def test_a_directory_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    def missing(*_args):
        raise FileNotFoundError(2, "No such file or directory", "/nonexistent/scratch")

    monkeypatch.setattr("meterd.commands.backup.open_shelf", missing)
    assert admin.run(args=["backup", "list", "--from", str(tmp_path)]) == AdminExit.NOT_FOUND
    assert "/nonexistent/scratch: No such file" in capsys.readouterr().err


def test_closed_standard_streams_are_no_bug():
    program = Path(admin.__file__).parent.parent / "bin" / "meterctl"
    cases = ((">&-", "config show"), ("<&-", "metric delete calls"), ("2>&-", "metric delete x"))
    for closed, args in cases:
        line = f"{sys.executable} {program} {args} {closed}"
        ended = subprocess.run(["sh", "-c", line], capture_output=True, check=False, text=True)
        assert ended.returncode in (AdminExit.GOOD, AdminExit.REFUSED), ended.stderr


def test_a_question_that_no_node_takes_as_put_is_a_wrong_argument():
    answers = [{"address": "a:1", "error": "bad_request", "message": "filter: long", "hint": ""}]
    with pytest.raises(AdminError) as ended:
        nodes.reached(answers)
    assert ended.value.exit_code is AdminExit.USAGE


def test_the_worst_exit_code_wins():
    assert worst([]) == AdminExit.GOOD
    assert worst([AdminExit.NO, AdminExit.PARTLY, AdminExit.UNREACHABLE]) == AdminExit.PARTLY
    assert worst([AdminExit.BUSY, AdminExit.CORRUPT]) == AdminExit.CORRUPT


def test_global_options_may_stand_on_both_sides_and_the_later_wins(monkeypatch):
    monkeypatch.setenv("METERCTL_NODES", "env:1")
    seen = []
    probe = click.Command("probe")
    probe = admin.AdminGroup.command_class(
        "probe", callback=click.pass_obj(lambda session: seen.append(session)), help="x"
    )
    monkeypatch.setitem(admin.cli.commands, "probe", probe)
    for args in (["probe"], ["-n", "a:1", "probe"], ["-n", "a:1", "probe", "-n", "b:2,c:3"]):
        assert admin.run(args=["--timeout", "7", *args]) == 0
    assert [session.nodes for session in seen] == [("env:1",), ("a:1",), ("b:2", "c:3")]
    assert {session.timeout for session in seen} == {7.0}


@pytest.mark.parametrize("address", ["bad host:1", "*:7001", "n\u00f6de:1", "a:1,b"])
def test_an_address_that_nobody_can_connect_to_is_a_usage_error(address, capsys):
    assert admin.run(args=["-n", address, "status"]) == 2
    assert "is not HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "account", "metric"),
    [
        (["acme"], "acme", None),
        (["--metric", "m", "acme"], "acme", "m"),
        (["acme", "--metric", "tail"], "acme", "tail"),
        (["list", "list"], "list", None),
        (["-n", "x:1", "list", "tail"], "tail", None),
        (["--metric", "rejected", "acme"], "acme", "rejected"),
        (["--limit", "5", "tail"], "tail", None),
        (["-nx:1", "--timeout=5", "--yes", "-o", "json", "list", "acme"], "acme", None),
        (["-n", "tail:1", "acme"], "acme", None),
        (["--output", "json", "acme", "--subtree"], "acme", None),
    ],
)
def test_events_of_an_account_need_no_command(args, account, metric, monkeypatch):
    seen = []
    callback = click.pass_obj(lambda _session, **given: seen.append(given))
    monkeypatch.setattr(COMMANDS["events", "list"], "callback", callback)
    assert admin.run(args=["events", *args]) == 0
    assert (seen[0]["account"], seen[0]["metric"]) == (account, metric)


def test_options_of_the_default_command_do_not_go_with_another(capsys):
    assert admin.run(args=["compact", "--all", "status"]) == AdminExit.USAGE
    assert "unexpected extra argument (status)" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_the_program(shell, capsys):
    assert admin.run(args=["completion", shell]) == 0
    assert "_METERCTL_COMPLETE" in capsys.readouterr().out


LISTING = Listing("rows", [Column("A"), Column("B")], lambda row: (row["a"], str(row["b"])))
ROWS = [{"a": "x", "b": 1}, {"a": "ü", "b": 2}]


def shown(output, rows, capsys):
    console = Console(output, sys.stdout)
    console.show_listing(LISTING, iter(rows), {"head": 1}, lambda: {"tail": None})
    return capsys.readouterr().out


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS])
def test_a_listing_is_the_same_in_every_form(rows, capsys):
    document = json.loads(shown("json", rows, capsys))
    assert document == {"head": 1, "rows": rows, "tail": None}
    assert shown("json", rows, capsys).count("\n") == 1
    assert [json.loads(line) for line in shown("ndjson", rows, capsys).splitlines()] == rows
    assert len(shown("table", rows, capsys).splitlines()) == len(rows) + 1


def test_a_listing_that_fails_at_once_writes_no_half_document(capsys):
    def no_rows():
        raise Unreachable("no answer")
        yield

    with pytest.raises(Unreachable):
        shown("json", no_rows(), capsys)
    assert capsys.readouterr().out == ""


def test_thresholds_of_a_metric_are_sent_as_the_protocol_has_them():
    option = next(each for each in COMMANDS["metric", "put"].params if each.name == "thresholds")
    context = click.Context(COMMANDS["metric", "put"])
    assert option.type_cast_value(context, ["half=50"]) == ("half=50",)
    assert option.process_value(context, ["half=50", "more=1.5:every=10"]) == [
        {"code": "half", "value": "50"},
        {"code": "more", "value": "1.5", "every": "10"},
    ]


def test_a_document_about_rows_is_a_line_for_each_as_json_lines(capsys):
    document = {"reachable": 2, "rows": ROWS}
    Console("ndjson", sys.stdout).show(document, list, "rows")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS
    Console("json", sys.stdout).show(document, list, "rows")
    assert json.loads(capsys.readouterr().out) == document


def test_without_a_terminal_the_result_is_json_and_without_colour(capsys):
    console = Console(None, sys.stdout)
    assert console.output == "json" and not console.colour


def test_moments_and_counts_of_a_node_are_told_apart():
    assert nodes.scalar_text(1_790_000_000_000_000_000) == "2026-09-21T14:13:20Z"
    assert nodes.scalar_text(5_000_000_000) == "5,000,000,000"
    assert [nodes.scalar_text(value) for value in (None, True, 1.5)] == ["-", "yes", "1.5"]

"""Runs meterctl against a node under test, in this process: a new one takes half a second to start.

`tests/cluster/test_meterctl.py` runs the program as people do.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

from meterd import admin
from meterd.exits import AdminExit
from tests.support.node import Node
from tests.support.waiting import eventually

SHORT_SECONDS = 20.0
WHOLE_SECONDS = 300.0


class Ended(NamedTuple):
    """What a command left: its exit code, and what it said."""

    code: int
    out: str
    errors: str


def call(*arguments: Any, stdin: bytes = b"") -> Ended:
    """Run a command."""
    out, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(errors), reading(stdin):
        code = admin.run(args=[str(argument) for argument in arguments])
    return Ended(code, said(out), said(errors))


def run(node: Node, *arguments: str, timeout: float = SHORT_SECONDS) -> tuple[int, Any]:
    """Run a command; return its exit code, and its JSON or its complaint."""
    options = ("-n", node.address, "-o", "json", "--timeout", timeout, "--yes")
    ended = call(*options, *arguments)
    return ended.code, json.loads(ended.out) if ended.out else ended.errors


def good(node: Node, *arguments: str, timeout: float = SHORT_SECONDS) -> Any:
    """Run a command that must succeed; return its JSON."""
    code, found = run(node, *arguments, timeout=timeout)
    assert code == 0, f"{arguments}: {code} {found}"
    return found


def topology(node: Node, *options: str, timeout: float = SHORT_SECONDS) -> Any:
    """Return what `topology` says once nothing is missing; just after a change something may be."""
    found: Any = None

    def whole() -> bool:
        nonlocal found
        code, found = run(node, "topology", *options, timeout=timeout)
        assert code in (AdminExit.GOOD, AdminExit.NO), f"{code} {found}"
        return code == AdminExit.GOOD

    try:
        eventually(whole, "nothing is missing", WHOLE_SECONDS)
    except AssertionError as error:
        rows = found.get("partitions", ())
        lacking = [row for row in rows if not row["leader"] or row["missing"]]
        raise AssertionError(f"{error}: {found['nodes']} {lacking}") from None
    return found


def said(stream: io.TextIOWrapper) -> str:
    stream.flush()
    written = stream.detach()
    assert isinstance(written, io.BytesIO)
    return written.getvalue().decode()


@contextmanager
def reading(text: bytes) -> Iterator[None]:
    """Let standard input say `text`."""
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")
    try:
        yield
    finally:
        sys.stdin = before

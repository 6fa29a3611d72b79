"""Runs `bin/meterctl` against a node under test."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.support.node import ROOT, Node

SHORT_SECONDS = 20.0


def run(node: Node, *arguments: str, timeout: float = SHORT_SECONDS) -> tuple[int, Any]:
    """Run a command; return its exit code, and its JSON or its complaint."""
    command = [sys.executable, str(ROOT / "bin" / "meterctl"), "-n", node.address, "-o", "json"]
    command += ["--timeout", str(timeout), "--yes", *arguments]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout + 60, check=False
    )
    return ended.returncode, json.loads(ended.stdout) if ended.stdout else ended.stderr


def good(node: Node, *arguments: str, timeout: float = SHORT_SECONDS) -> Any:
    """Run a command that must succeed; return its JSON."""
    code, said = run(node, *arguments, timeout=timeout)
    assert code == 0, f"{arguments}: {code} {said}"
    return said

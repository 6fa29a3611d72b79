"""After `warm` no kernel is compiled any more, whatever comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

# In a process of its own: other tests have compiled kernels for whatever they liked.
PROGRAM = """
import importlib, pkgutil, sys, tempfile
from numba.core.dispatcher import Dispatcher
import meterd.core.kernels
from meterd.core.warm import warm

modules = [
    importlib.import_module(f"meterd.core.kernels.{found.name}")
    for found in pkgutil.iter_modules(meterd.core.kernels.__path__)
]

def compiled():
    return {
        f"{kernel.py_func.__module__}.{name}": len(kernel.signatures)
        for module in modules
        for name, kernel in vars(module).items()
        if isinstance(kernel, Dispatcher)
    }

warm()
before = compiled()
from tests.support.every_request import every_request
from tests.support.every_segment import every_segment
for use in (every_request, every_segment):
    with tempfile.TemporaryDirectory() as directory:
        use(directory)
from tests.sim.runner import run_fast
run_fast(1)  # leaders and followers
after = compiled()
assert sum(before.values()) > 20
grown = [name for name in after if after[name] != before[name]]
sys.exit(f"compiled too late: {grown}" if grown else 0)
"""


@pytest.mark.slow
def test_every_kind_of_request_finds_its_kernels_compiled():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]

"""Kernels are loaded without their bitcode, and other kernels can still be compiled with them."""

import subprocess
import sys

import pytest

MODULE = """
from numba import njit
import meterd.core.kernels
from meterd.core.kernels.lean_library import LeanLibrary

@njit(cache=True)
def inner(x):
    return x * 3

@njit
def outer(x):
    return inner(x) + 1
"""
MAKE = "import kernel; assert kernel.inner(2) == 6; assert not kernel.inner.stats.cache_hits"
LOAD = """
import kernel
assert kernel.inner(2) == 6
assert kernel.inner.stats.cache_hits and not kernel.inner.stats.cache_misses
(loaded,) = kernel.inner.overloads.values()
assert isinstance(loaded.library, kernel.LeanLibrary)
assert loaded.library._shared_module is None
assert kernel.outer(2) == 7
assert loaded.library._shared_module is not None
assert kernel.inner(4) == 12
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "kernel.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))

    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

    return run


def test_bitcode_is_parsed_when_another_kernel_needs_it(run):
    run(MAKE)
    run(LOAD)


def test_another_numba_loads_its_own_way(run):
    other = "import numba; numba.version_info = numba.version_info._replace(short=(0, 99))\n"
    run(other + MAKE)
    run(
        other + "import kernel; assert kernel.outer(2) == 7; assert kernel.inner(2) == 6\n"
        "(loaded,) = kernel.inner.overloads.values()\n"
        "assert not isinstance(loaded.library, kernel.LeanLibrary)"
    )

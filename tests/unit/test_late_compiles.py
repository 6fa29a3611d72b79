"""A kernel that was not there before actors ran is told of; under test it ends the actor."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
from meterd.actors.machine import late_compiles
from meterd.core.kernels.sectors import count_zero_sectors, first_nonzero

words = np.zeros(64, np.uint64)
count_zero_sectors(words)
late_compiles.tell()
assert count_zero_sectors(words) == 1
first_nonzero(words)
print("went on")
"""


def run(cache, *, under_test):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    environment.pop("METERD_TEST_COMPILED", None)
    if under_test:
        environment["METERD_TEST_COMPILED"] = ""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_what_was_not_loaded_before_is_told_of(tmp_path):
    code, _, errors = run(tmp_path, under_test=True)
    assert code == 1 and "InvariantViolation" in errors and "first_nonzero" in errors
    code, output, errors = run(tmp_path, under_test=False)
    assert (code, output) == (0, "went on\n") and "is compiled while the node runs" in errors
    # It is in the cache now: nothing is compiled any more, and it was still missed.
    code, output, errors = run(tmp_path, under_test=False)
    assert (code, output, errors) == (0, "went on\n", "")
    code, _, errors = run(tmp_path, under_test=True)
    assert code == 1 and "InvariantViolation" in errors and "first_nonzero" in errors

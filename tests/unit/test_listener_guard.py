"""The guard judges the memory of its process, so its tests have a process to themselves.

What other tests have freed would be given back, or used again, while it looks.
"""

import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("listener_guard_cases.py")


def test_the_guard_of_the_client_port() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout

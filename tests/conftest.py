"""What all tests share: how generated tests run, and that no test leaves a process behind."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
from hypothesis import settings

# The time of an example says nothing: the first one may compile a kernel.
settings.register_profile("meterd", deadline=None)
settings.load_profile("meterd")


@pytest.fixture(autouse=True, scope="session")
def no_process_stays() -> Iterator[None]:
    """Fail when a test has left a process running."""
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.is_running()]
    assert not left, f"left behind: {left}"

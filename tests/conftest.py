"""What all tests share: how generated tests run, no process left behind, a pipe for an actor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import settings

from meterd.actors.actor import Lifeline

# The time of an example says nothing: the first one may compile a kernel.
settings.register_profile("meterd", deadline=None)
settings.load_profile("meterd")


@pytest.fixture(autouse=True, scope="session")
def no_process_stays() -> Iterator[None]:
    """Fail when a test has left a process running."""
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.is_running()]
    assert not left, f"left behind: {left}"


@pytest.fixture
def lifeline() -> Iterator[Lifeline]:
    """What an actor in the test's own process speaks into; nobody reads it."""
    reading, writing = os.pipe()
    yield Lifeline(writing)
    os.close(reading)
    os.close(writing)

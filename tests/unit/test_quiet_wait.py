"""The router's wait: it ends with news, with time, or when the memory is another one."""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Iterator

import pytest

from meterd.actors.listening.tcp_connections import ProcessMemory

LONG, LOOK = 30.0, 0.001
SIZE = 8 << 20


class Waiting:
    """An epoll with one pipe, and the memory of this process."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.reader, self.writer = os.pipe()
        self.epoll.register(self.reader, select.EPOLLIN)
        self.memory = ProcessMemory()
        self.wait(2 * LOOK)  # what the first call needs is there

    def wait(self, seconds: float) -> bool:
        self.memory.resident()
        return self.memory.wait_unchanged(self.epoll, seconds, LOOK)

    def close(self) -> None:
        self.memory.close()
        self.epoll.close()
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    made = Waiting()
    yield made
    made.close()


def test_news_end_the_wait_and_are_still_there(waiting: Waiting) -> None:
    os.write(waiting.writer, b"x")
    assert waiting.wait(LONG)
    assert waiting.epoll.poll(0) == [(waiting.reader, select.EPOLLIN)]


def test_it_ends_by_itself(waiting: Waiting) -> None:
    waiting.wait(5 * LOOK)
    assert waiting.epoll.poll(0) == []


def test_memory_that_grows_ends_the_wait(waiting: Waiting) -> None:
    waiting.memory.resident()
    with mmap.mmap(-1, SIZE) as grown:  # what Python allocates may have been here before
        grown.write(bytes(range(256)) * (SIZE // 256))
        assert not waiting.memory.wait_unchanged(waiting.epoll, LONG, LOOK)

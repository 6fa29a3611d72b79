"""Work beside an actor's loop: one thread at a time, its result taken by the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """One lane of work.  What a piece of work raises is raised where its result is taken."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._result: T | None = None
        self._failure: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Is something under way, or its result not taken yet?"""
        return self._thread is not None

    @property
    def working(self) -> bool:
        """Is something under way that has not ended?"""
        return self._thread is not None and self._thread.is_alive()

    def ended(self, wait: bool = False) -> bool:
        """Is there a result to take?  With `wait`: once what is under way has ended."""
        if self._thread is not None and wait:
            self._thread.join()
        return self.busy and not self.working

    def start(self, work: Callable[[], T]) -> None:
        """Begin a piece of work; only when not busy."""
        self._result = self._failure = None
        self._thread = threading.Thread(target=self._run, args=(work,), name=self._name)
        self._thread.start()

    def take(self, wait: bool = False) -> T | None:
        """Return the result of work that has ended; None when there is none (yet)."""
        if not self.ended(wait):
            return None
        self._thread = None
        if self._failure is not None:
            raise self._failure
        return self._result

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._result = work()
        except BaseException as error:  # handed to the actor's loop
            self._failure = error

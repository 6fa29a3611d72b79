"""Lets system calls fail as they do on a full disk: the n-th and as many more as told."""

from __future__ import annotations

import os
from typing import Any

import pytest

# What needs bytes, an inode, a descriptor or a place in a directory.
CALLS = ("open", "pwrite", "posix_fallocate", "rename", "replace", "link")


class FailingCalls:
    """While `left` is a number: that many calls work, then `times` calls fail with `error`.

    A write that fails takes a part of its bytes first, as a disk does that becomes full.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.times = 1
        self.error = 0  # errno
        self.failed = 0
        self._cut = False
        for name in CALLS:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))

    def begin(self, calls: int, error: int, times: int = 1) -> None:
        """Let everything work for so many calls, then fail so often, then work again."""
        self.left, self.error, self.times, self.failed = calls, error, times, 0

    def _counted(self, name: str, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.left is None or (name == "open" and not args[1] & os.O_CREAT):
                return call(*args, **kwargs)
            if self.left > 0:
                self.left -= 1
                return call(*args, **kwargs)
            if self.failed == self.times:
                return call(*args, **kwargs)
            if name == "pwrite" and len(args[1]) > 1 and not self._cut:
                self._cut = True  # a short write, and only the next call says why
                return call(args[0], args[1][: len(args[1]) // 2 + 1], *args[2:])
            self._cut = False
            self.failed += 1
            raise OSError(self.error, os.strerror(self.error))

        return counted

"""What a process says on standard error: one line a message, for people or for machines.

Set up anew in every process after the fork, so each line names its actor.  A line is written by one
system call: lines of several actors never mix, and no buffer is lost by a kill.  Fields go in by
``logger.info("text", extra={"fields": {...}})``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator

from meterd.actors.options import Log

STANDARD_ERROR = 2
# Levels as options name them.
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class Lines(logging.Handler):
    """Writes records to a file descriptor, one line each."""

    def __init__(self, actor: str, form: str, descriptor: int = STANDARD_ERROR) -> None:
        super().__init__()
        self._actor = actor
        self._descriptor = descriptor
        self._write = {"json": self._json, "text": self._text}[form]

    def emit(self, record: logging.LogRecord) -> None:
        line = self._write(record, record.getMessage(), getattr(record, "fields", {}))
        # Nobody reads standard error any more, or it is a file on a full disk: the node goes on.
        with contextlib.suppress(OSError):
            os.write(self._descriptor, line.encode("utf-8", "backslashreplace") + b"\n")

    def _json(self, record: logging.LogRecord, message: str, fields: dict[str, object]) -> str:
        entry: dict[str, object] = {
            "time": _moment(record.created),
            "level": record.levelname.lower(),
            "actor": self._actor,
            "message": message,
            **fields,
        }
        if record.exc_info:
            entry["trace"] = _trace(record)
        return json.dumps(entry, default=str)

    def _text(self, record: logging.LogRecord, message: str, fields: dict[str, object]) -> str:
        pairs = "".join(f" {key}={value}" for key, value in fields.items())
        moment = _moment(record.created)
        line = f"{moment} {record.levelname.lower():7} {self._actor}: {message}{pairs}"
        return f"{line}\n{_trace(record)}" if record.exc_info else line


def _moment(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"


def _trace(record: logging.LogRecord) -> str:
    return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""


def open_journal(actor: str, options: Log) -> None:
    """Direct this process's messages to standard error."""
    root = logging.getLogger()
    root.handlers[:] = [Lines(actor, options.format)]
    root.setLevel(LEVELS[options.level])


@contextlib.contextmanager
def timed(what: str, **fields: object) -> Iterator[None]:
    """Write what was done, and how long it took; what fails is not written."""
    began = time.monotonic()
    yield
    fields["seconds"] = f"{time.monotonic() - began:.3f}"
    logging.getLogger(__name__).info(what, extra={"fields": fields})


def set_level(level: str) -> None:
    """Change how much is written."""
    logging.getLogger().setLevel(LEVELS[level])

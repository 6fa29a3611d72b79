"""What a node says on standard error: one line a message, in two forms."""

import json
import logging
import os

import pytest

from meterd.actors.machine.journal import Lines


def written(form: str, *, error: bool = False) -> str:
    reading, writing = os.pipe()
    logger = logging.Logger("toy")
    logger.addHandler(Lines("router", form, writing))
    fields = {"fields": {"seconds": "0.123", "path": "/x"}}
    try:
        raise ValueError("a cause")
    except ValueError:
        logger.warning("took %d", 3, extra=fields, exc_info=error)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read().decode()


def test_text_is_one_line_with_time_level_actor_and_fields() -> None:
    line = written("text")
    assert line.endswith(" warning router: took 3 seconds=0.123 path=/x\n")
    assert line[:2] == "20" and line[23] == "Z"


def test_json_is_one_object_a_line() -> None:
    line = written("json", error=True)
    assert line.count("\n") == 1
    entry = json.loads(line)
    assert entry["level"] == "warning"
    assert entry["actor"] == "router"
    assert entry["message"] == "took 3"
    assert entry["path"] == "/x"
    assert "ValueError: a cause" in entry["trace"]


def test_a_trace_follows_its_message() -> None:
    assert "ValueError: a cause" in written("text", error=True)


@pytest.mark.parametrize("form", ["text", "json"])
def test_nobody_listening_is_no_error(form: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    logger = logging.Logger("toy")
    logger.addHandler(Lines("router", form, writing))
    logger.warning("nobody hears this")
    os.close(writing)

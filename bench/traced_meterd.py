"""Runs meterd, and notes when its actors wake, send, and write: a program for `bench.where`.

Takes what bin/meterd takes; the notes of each actor go to `$TRACE_DIR/NAME`, a line each: what
happened, and monotonic nanoseconds.  It costs a microsecond or two a note.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meterd.actors.actor import Actor
from meterd.actors.log.wal_log import Log
from meterd.actors.router import Router
from meterd.daemon import main

NOTES: list[tuple[str, int]] = []


def note(what: str) -> None:
    NOTES.append((what, time.monotonic_ns()))


def trace() -> None:
    """Put the notes around what an actor does."""
    wait, send, beat = Actor.wait, Actor.send, Actor._beat
    reply, append = Router._reply, Log.append

    def traced_wait(self: Actor, seconds: float) -> list[tuple[int, int]]:
        found = wait(self, seconds)
        if found:
            note("wakes")
        return found

    def traced_send(self: Actor, actor: str, frames: Sequence[Any]) -> None:
        send(self, actor, frames)
        note(f"to {actor}")

    def traced_reply(self: Router, frames: Sequence[Any]) -> bool:
        sent = reply(self, frames)
        note("to client")
        return sent

    def traced_append(self: Log, entries: Any) -> bytes:
        note("disk begins")
        durable = append(self, entries)
        note("disk ends")
        return durable

    def traced_beat(self: Actor) -> None:
        beat(self)
        with Path(os.environ["TRACE_DIR"], self.name).open("a") as file:
            file.writelines(f"{what}\t{moment}\n" for what, moment in NOTES)
        NOTES.clear()

    for owner, name, traced in (
        (Actor, "wait", traced_wait),
        (Actor, "send", traced_send),
        (Actor, "_beat", traced_beat),
        (Router, "_reply", traced_reply),
        (Log, "append", traced_append),
    ):
        setattr(owner, name, traced)


if __name__ == "__main__":
    trace()
    main(prog_name="meterd")

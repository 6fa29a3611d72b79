"""Says for the usage actor when there is no room: in tables, or on the disk for a checkpoint."""

from __future__ import annotations

from typing import Final

import msgpack

from meterd.actors.actor import Actor

# Beyond this no new events are taken, so that what is in the log always finds room.
FILL_MAX: Final = 0.95
FULL_RETRY_MS: Final = 10_000


class Room:
    """Tells router and retention sweeper, whenever it has changed."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._full: bool | None = None  # what the router has been told; None: nothing
        self._waits = False  # has the sweeper been told that a checkpoint waits for space?

    def forget_waits(self) -> None:
        """The sweeper has started anew."""
        self._waits = False

    def forget_full(self) -> None:
        """The router has started anew."""
        self._full = None

    def turn(self, fill: float, waits: bool) -> None:
        """Say how it stands: how full the fullest table is, and whether a checkpoint waits."""
        name = self._actor.name
        full = fill > FILL_MAX
        if full != self._full:
            self._full = full
            code = "memory_full" if full else None
            said = {"source": name, "code": code, "retry_after_ms": FULL_RETRY_MS}
            self._actor.send("router", [b"admission", msgpack.packb(said)])
        self._actor.telemetry.set("checkpoint_waiting", int(waits))
        if waits != self._waits:
            self._waits = waits
            frames = [b"no_room", name.encode(), b"1" if waits else b"0"]
            self._actor.send("retention_sweeper", frames)

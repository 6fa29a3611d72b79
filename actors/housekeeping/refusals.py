"""Keeps `refused.log`, and lists what is in it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgpack

from meterd.actors.housekeeping.refused_log import RefusedLog
from meterd.actors.housekeeping.service import NEVER, Service
from meterd.core.state.erasures import Erasures
from meterd.protocol.decimal_text import format_decimal
from meterd.protocol.errors import UnknownMetric

if TYPE_CHECKING:
    from meterd.actors.retention_sweeper import RetentionSweeper


class Refusals(Service):
    """See the module."""

    messages = (b"refused_events",)
    requests = ("rejected",)

    def __init__(self, sweeper: RetentionSweeper) -> None:
        super().__init__(sweeper)
        self._log = RefusedLog(self.directory)
        self.due = NEVER

    def handle(self, frames: list[Any]) -> None:
        now = time.time_ns()
        events = msgpack.unpackb(frames[1], unicode_errors="surrogateescape")
        if self.sweeper.holds_still:
            left_out = len(events)
        else:
            readable = [self._readable(event, now) for event in events]
            left_out = self._log.write(readable, now // 1_000_000_000)
        if left_out:
            self.sweeper.telemetry.add("refused_log_left_out_total", left_out)

    def answer(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        return self._log.page(fields["limit"], fields["after"])

    def forget(self, erasures: Erasures) -> None:
        """Forget what refused events of erased accounts said, if they came before that."""
        if len(erasures):
            by_time = Erasures(
                (replace(one, floor=one.time) for one in erasures), self.sweeper.files.identity_key
            )
            self._log.forget(lambda event: by_time.is_erased(event["account"], event["time"]))

    def close(self) -> None:
        self._log.close()

    def _readable(self, event: dict[str, Any], now: int) -> dict[str, Any]:
        """Return a refused event as it is listed: its metric by code, its value as text."""
        metric, exponent, reason = event["metric"], event.get("exponent", 0), event["reason"]
        # What could not be read is 0 or 1 in its column, and these fit every metric.
        read = reason != "bad_value" or exponent or event["value"] not in (0, 1)
        if isinstance(metric, int):
            try:
                entry = self.sweeper.registry.entry(metric)
                metric, exponent = entry.code, entry.definition.decimals
            except UnknownMetric:
                metric = str(metric)
        return {
            "time": now,
            "account": event["account"],
            "metric": metric,
            "id": event["id"],
            "reason": reason,
            "timestamp": None if reason == "bad_timestamp" else event["timestamp"],
            "value": format_decimal(event["value"], exponent) if read else None,
        }

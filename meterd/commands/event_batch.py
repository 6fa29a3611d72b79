"""Collects the events of lines into columns until a request is full."""

from typing import Any

from meterd.commands.event_lines import Fields

BATCH_SIZE_MAX = 2 * 1024 * 1024  # bytes of lines; a request must stay below 4 MiB
PROPERTY_KEYS_MAX = 200  # distinct keys; a request may have 256


class EventBatch:
    """The events of neighbouring lines of one file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.rows: list[Fields] = []
        self.line_numbers: list[int] = []
        self.size = 0
        self.property_keys: dict[str, None] = {}

    def add(self, fields: Fields, line_number: int) -> None:
        self.rows.append(fields)
        self.line_numbers.append(line_number)
        if fields[6]:
            self.property_keys.update(dict.fromkeys(fields[6]))

    @property
    def count(self) -> int:
        return len(self.rows)

    def is_full(self, count: int) -> bool:
        return (
            len(self.rows) >= count
            or self.size >= BATCH_SIZE_MAX
            or len(self.property_keys) >= PROPERTY_KEYS_MAX
        )

    def columns(self) -> dict[str, Any]:
        """The arguments of `Client.ingest_columns`."""
        account, metric, value, timestamp, event_id, operation, properties = map(
            list, zip(*self.rows, strict=True)
        )
        columns: dict[str, Any] = {
            "account": account,
            "metric": metric,
            "value": value,
            "timestamp": timestamp,
            "id": event_id,
        }
        if any(name != "none" for name in operation):
            columns["operation"] = operation
        if self.property_keys:
            columns["properties"] = {
                key: [row.get(key) for row in properties] for key in self.property_keys
            }
        return columns

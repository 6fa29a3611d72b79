"""Cuts an event that fits into no request to one that a node rejects for the same reason.

One bad event must not fail those that are sent with it, and its answer is for the node to give: the
reason, or that its identity is known. So nothing is judged here. A text that is too long for any
event is cut to where it is still too long, half a character becomes bytes that are no UTF-8, and of
too many properties one too many is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from meterd.protocol.columns import ColumnInput, TextColumn
from meterd.protocol.limits import (
    ACCOUNT_SIZE_MAX,
    DECIMAL_TEXT_SIZE_MAX,
    ID_SIZE_MAX,
    METRIC_CODE_SIZE_MAX,
    PROPERTIES_MAX,
    PROPERTY_KEY_SIZE_MAX,
    PROPERTY_VALUE_SIZE_MAX,
)


def cut_text(text: Any, size_max: int) -> Any:
    """Give a text as it is sent when it may have so many bytes; what is no text as it is."""
    if not isinstance(text, str):
        return text
    over = size_max + 1
    # As the bytes they would have, which "surrogateescape" sends as they are.
    return text[:over].encode("utf-8", "surrogatepass")[:over].decode("utf-8", "surrogateescape")


def cut_constants(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Give columns without those that are None, texts that all rows share cut.

    They are wrong in every row, each of which would be cut to a request of its own.
    """
    kept = {name: rows for name, rows in columns.items() if rows is not None}
    for name, size_max in (("account", ACCOUNT_SIZE_MAX), ("metric", METRIC_CODE_SIZE_MAX)):
        if name in kept:
            kept[name] = cut_text(kept[name], size_max)
    if kept.get("properties"):
        kept["properties"] = {
            key: cut_text(texts, PROPERTY_VALUE_SIZE_MAX)
            for key, texts in kept["properties"].items()
        }
    return kept


def cut_event(columns: ColumnInput) -> ColumnInput:
    """Give the columns of one event so that they can be sent."""
    properties: dict[str, Any] = {}
    for key, texts in columns.properties.items():
        text = _only(texts)
        if text is not None and len(properties) <= PROPERTIES_MAX:
            key = cut_text(key, PROPERTY_KEY_SIZE_MAX)
            properties[key] = [cut_text(text, PROPERTY_VALUE_SIZE_MAX)]
    return replace(
        columns,
        account=[cut_text(_only(columns.account), ACCOUNT_SIZE_MAX)],
        metric=[cut_text(_only(columns.metric), METRIC_CODE_SIZE_MAX)],
        value=_value(columns.value),
        id=_id(columns.id),
        properties=properties,
    )


def _value(column: Any) -> Any:
    """Give the column of one value, if there is one; one that is no text is written out later."""
    return None if column is None else [cut_text(_only(column), DECIMAL_TEXT_SIZE_MAX)]


def _id(column: Any) -> Any:
    """Give the column of one id; one of 16 bytes is right as it is."""
    if isinstance(column, np.ndarray) and column.ndim == 2:
        return column
    return [cut_text(_only(column), ID_SIZE_MAX)]


def _only(column: Any) -> Any:
    """Give what a column of one row holds, or what a column that is one value is; bytes as text."""
    if isinstance(column, TextColumn):
        column = [column.text.tobytes()]
    row = column[0] if isinstance(column, list | tuple | np.ndarray) else column
    return row.decode("utf-8", "surrogateescape") if isinstance(row, bytes) else row

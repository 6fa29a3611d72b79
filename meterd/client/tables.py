"""Hands results over as a pandas DataFrame or an Arrow table, where those are installed.

Values stay exact: decimal.Decimal in pandas, decimal128 in Arrow, never a float. Moments become UTC
timestamps of nanosecond resolution. Neither library is a dependency: they are imported when asked
for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    import pyarrow

# Columns that hold moments, whichever table they are in.
TIME_COLUMNS = frozenset({"start", "end", "timestamp", "time"})

Columns = dict[str, Sequence[Any]]


def to_pandas(columns: Columns) -> pandas.DataFrame:
    """Make a DataFrame of these columns."""
    import pandas

    frame = pandas.DataFrame({name: pandas.Series(rows) for name, rows in columns.items()})
    for name in TIME_COLUMNS & columns.keys():
        frame[name] = pandas.to_datetime(frame[name], unit="ns", utc=True)
    return frame


def to_arrow(columns: Columns) -> pyarrow.Table:
    """Make an Arrow table of these columns."""
    import pyarrow

    def array(name: str, rows: Sequence[Any]) -> pyarrow.Array:
        if name in TIME_COLUMNS:
            return pyarrow.array(rows, pyarrow.timestamp("ns", tz="UTC"))
        return pyarrow.array(rows)

    return pyarrow.table({name: array(name, rows) for name, rows in columns.items()})


class Tabular(ABC):
    """A result that has rows and columns."""

    __slots__ = ()

    @abstractmethod
    def columns(self) -> Columns:
        """Give the columns, all of one length."""

    def to_pandas(self) -> pandas.DataFrame:
        """Give the rows as a DataFrame; needs pandas."""
        return to_pandas(self.columns())

    def to_arrow(self) -> pyarrow.Table:
        """Give the rows as an Arrow table; needs pyarrow."""
        return to_arrow(self.columns())

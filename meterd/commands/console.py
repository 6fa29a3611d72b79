"""Writes results to standard output as a table, a JSON document or JSON lines.

Invariants:
  * standard output holds the result and nothing else; progress and warnings go to standard error;
  * JSON has stable names and may grow; tables are for people and may change;
  * JSON is one line unless a person is looking, and lists are written row by row as they arrive,
    so a listing of any length needs little memory;
  * a reader who goes away, as `head` does, ends what is written and not the command: its verdict
    is the exit code.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, TextIO

from meterd.commands.tables import Column, printable, render

OUTPUTS = ("table", "json", "ndjson")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Listing:
    """Rows of one kind: their name in the document, and how a person sees them."""

    key: str  # name of the list in the JSON document
    columns: Sequence[Column]
    cells: Callable[[Row], Sequence[str]]  # one row as texts, one per column


class Console:
    """Where a command writes its result. `output` None: a table for a person, else JSON."""

    def __init__(self, output: str | None, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.output = output or ("table" if self.terminal else "json")
        self.colour = self.terminal and uses_colour()
        self.width = shutil.get_terminal_size().columns if self.terminal else None

    @property
    def is_table(self) -> bool:
        return self.output == "table"

    def write_line(self, text: str) -> None:
        self.stream.write(text + "\n")

    def show(
        self, document: Row, lines: Callable[[], Iterable[str]], rows: str | None = None
    ) -> None:
        """Write one document; `lines` makes its form for people.

        `rows` names the list in it that it is about: as JSON lines that is a line for each.
        """
        with while_read(self.stream):
            if self.is_table:
                for line in lines():
                    self.write_line(line)
            elif rows is not None and self.output == "ndjson":
                for row in document[rows]:
                    self.write_line(to_json(row))
            else:
                indent = 2 if self.terminal and self.output == "json" else None
                self.write_line(to_json(document, indent))

    def show_listing(
        self,
        listing: Listing,
        rows: Iterable[Row],
        head: Row | None = None,
        tail: Callable[[], Row] | None = None,
    ) -> None:
        """Write rows as they arrive; `head` and `tail` are the rest of the JSON document."""
        with while_read(self.stream):
            if self.is_table:
                self.write_table(listing.columns, (listing.cells(row) for row in rows))
            elif self.output == "ndjson":
                for row in rows:
                    self.write_line(to_json(row))
            else:
                self._stream_document(listing.key, rows, head or {}, tail)

    def write_table(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        for line in render(columns, rows, self.width, self.colour):
            self.write_line(line)

    def _stream_document(
        self, key: str, rows: Iterable[Row], head: Row, tail: Callable[[], Row] | None
    ) -> None:
        opening = "{" + "".join(f"{json.dumps(k)}: {to_json(v)}, " for k, v in head.items())
        opening += f"{json.dumps(key)}: ["
        separator = opening  # written with the first row: a question that fails has no result
        for row in rows:
            self.stream.write(separator + to_json(row))
            separator = ", "
        if separator is opening:
            self.stream.write(opening)
        rest = tail() if tail is not None else {}
        closing = "".join(f", {json.dumps(k)}: {to_json(v)}" for k, v in rest.items())
        self.write_line(f"]{closing}}}")


@contextmanager
def while_read(stream: TextIO) -> Iterator[None]:
    """Do what writes to a stream, up to its end or until nobody reads it any longer."""
    try:
        yield
        stream.flush()
    except BrokenPipeError:
        forget(stream)


def forget(stream: TextIO) -> None:
    """Point a stream at nothing; what it still holds goes there, too."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())


def to_json(value: object, indent: int | None = None) -> str:
    """JSON text."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def to_row(value: Any) -> Any:
    """A result of the client as JSON has it; decimals as text, or they would be read as floats."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Fraction):
        return [str(value.numerator), str(value.denominator)]
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: to_row(field) for name, field in value._asdict().items()}
    if is_dataclass(value):
        return {each.name: to_row(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, list):
        return [to_row(each) for each in value]
    return value


def field_lines(named: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of `name   value`, the values below each other; fields without a value are left out."""
    shown = [(name, printable(value)) for name, value in named if value]
    width = max((len(name) for name, _ in shown), default=0)
    return [f"{name:<{width}}  {value}" for name, value in shown]


def warn(text: str) -> None:
    """Write one line to standard error."""
    with while_read(sys.stderr):
        print(f"meterctl: {printable(text)}", file=sys.stderr)


def uses_colour() -> bool:
    """Whether people want colour on a terminal (see no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Progress:
    """One line on standard error that is rewritten in place; silent when that is no terminal."""

    def __init__(self) -> None:
        self.visible = sys.stderr.isatty()

    def update(self, text: str) -> None:
        if self.visible:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\x1b[K" + printable(text)[:width])
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away, so that what is written next starts a line of its own."""
        if self.visible:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

"""Tables a person likes to read: aligned, with thousands separators, fitting the terminal.

Rows come from an iterator and may be many: the first `MEASURED_ROWS`
are kept back to find the widths, the rest is written as it comes. Text from events may hold
anything, so control characters are written as escapes and can never drive the terminal.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

MEASURED_ROWS = 1000
GAP = "  "
SHORTEST = 8  # no column is cut below this many characters
_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class Column:
    """One column: its heading, and how its cells are set."""

    title: str
    right: bool = False  # numbers stand at the right edge
    elastic: bool = False  # may be cut when the table is wider than the terminal
    dim: bool = False  # beside the point, shown faintly


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would not show as a character."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def display_width(text: str) -> int:
    """How many terminal cells a printable text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def fit(text: str, width: int) -> str:
    """The text, cut with an ellipsis when it takes more than `width` cells."""
    if display_width(text) <= width:
        return text
    while text and display_width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def group_thousands(number: str | int) -> str:
    """`1234567.500000` as `1,234,567.5`: decimal text in, exact decimal text out."""
    text = str(number)
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, _, fraction = digits.partition(".")
    if not (whole.isascii() and whole.isdigit()):
        return text
    fraction = fraction.rstrip("0")
    return f"{sign}{int(whole):,}" + (f".{fraction}" if fraction else "")


def number_or_dash(number: str | int | None) -> str:
    """As `group_thousands`; what is not known is a dash."""
    return "-" if number is None else group_thousands(number)


def format_bytes(count: int) -> str:
    """A size for people: `1.5 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def render(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None, colour: bool
) -> Iterator[str]:
    """Yield the lines of a table. `width` None means as wide as it likes."""
    source = iter(rows)
    first = [[printable(cell) for cell in row] for row in islice(source, MEASURED_ROWS)]
    widths = _measure(columns, first, width)
    headings = _set_line(columns, [column.title for column in columns], widths, False)
    yield f"{_BOLD}{headings}{_PLAIN}" if colour else headings
    rest = ([printable(cell) for cell in row] for row in source)
    for row in chain(first, rest):
        yield _set_line(columns, row, widths, colour)


def _measure(
    columns: Sequence[Column], rows: list[list[str]], width: int | None
) -> list[int]:
    """Width of each column, elastic ones cut until the table fits."""
    widths = [display_width(column.title) for column in columns]
    for row in rows:
        widths = [max(w, display_width(cell)) for w, cell in zip(widths, row, strict=True)]
    if width is None:
        return list(widths)
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
    while excess > 0:
        elastic = [i for i, c in enumerate(columns) if c.elastic and widths[i] > SHORTEST]
        if not elastic:
            break
        widest = max(elastic, key=lambda i: widths[i])
        widths[widest] -= 1
        excess -= 1
    return list(widths)


def _set_line(
    columns: Sequence[Column], row: Sequence[str], widths: Sequence[int], colour: bool
) -> str:
    cells = []
    for column, cell, width in zip(columns, row, widths, strict=True):
        text = fit(cell, width) if column.elastic else cell
        padding = " " * (width - display_width(text))
        text = padding + text if column.right else text + padding
        cells.append(f"{_DIM}{text}{_PLAIN}" if colour and column.dim else text)
    return GAP.join(cells).rstrip()

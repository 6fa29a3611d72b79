"""Tables: every cell is there, aligned, inside the width, and harmless to a terminal."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.commands.tables import (
    MEASURED_ROWS,
    Column,
    display_width,
    fit,
    format_bytes,
    group_thousands,
    printable,
    render,
)

COLUMNS = [Column("ACCOUNT", elastic=True), Column("VALUE", right=True)]
ROWS = st.lists(st.tuples(st.text(max_size=60), st.integers().map(str)), max_size=20)


@given(ROWS)
def test_without_a_limit_every_cell_is_shown_whole(rows):
    lines = list(render(COLUMNS, rows, None, False))
    assert len(lines) == len(rows) + 1
    for line, (account, value) in zip(lines[1:], rows, strict=True):
        assert line.startswith(printable(account).rstrip()) and line.endswith(value)
        assert line.isprintable()


@given(ROWS, st.integers(40, 120))
def test_a_table_fits_the_terminal_when_what_may_be_cut_is_cut(rows, width):
    rows = [(account, value[:20]) for account, value in rows]
    for line in render(COLUMNS, rows, width, False):
        assert display_width(line) <= width


@given(st.text(max_size=40), st.integers(1, 40))
def test_a_cut_text_says_so_and_fits(text, width):
    text = printable(text)
    cut = fit(text, width)
    assert cut == text or (cut.endswith("…") and display_width(cut) <= width)


def test_numbers_stand_at_the_right_edge():
    lines = list(render(COLUMNS, [("a", "1"), ("b", "1,000")], None, False))
    assert lines == ["ACCOUNT  VALUE", "a            1", "b        1,000"]


def test_colour_only_when_asked_for():
    rows = [("a", "1")]
    assert "\x1b" not in "".join(render(COLUMNS, rows, None, False))
    assert next(iter(render(COLUMNS, rows, None, True))).startswith("\x1b[1m")


def test_text_of_events_cannot_drive_the_terminal():
    line = list(render(COLUMNS, [("\x1b[2Jgone\n", "1")], None, False))[1]
    assert line == r"\x1b[2Jgone\n      1"


def test_rows_beyond_the_measured_ones_are_written_as_they_come():
    taken = []

    def rows():
        for number in range(MEASURED_ROWS + 10):
            taken.append(number)
            yield ("a", str(number))

    lines = render(COLUMNS, rows(), None, False)
    next(lines)
    assert len(taken) == MEASURED_ROWS
    assert sum(1 for _ in lines) == MEASURED_ROWS + 10


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_grouped_numbers_are_still_the_same_numbers(number):
    assert Decimal(group_thousands(format(number, "f")).replace(",", "")) == number


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1234567.500000", "1,234,567.5"), ("-1000", "-1,000"), ("0.000", "0"), ("-", "-")],
)
def test_thousands(text, expected):
    assert group_thousands(text) == expected


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**40, "5.0 TiB")]
)
def test_sizes_for_people(size, text):
    assert format_bytes(size) == text

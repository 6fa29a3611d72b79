"""Decimal text against Python's decimal module, which is the oracle of what a text means."""

from decimal import Context, Decimal, InvalidOperation

from hypothesis import given
from hypothesis import strategies as st

from meterd.protocol.decimal_text import format_decimal, parse_decimal

EXACT = Context(prec=200)
I64 = st.integers(-(2**63), 2**63 - 1)


@given(I64, st.integers(0, 18))
def test_what_is_written_is_read_back(value, exponent):
    parsed = parse_decimal(format_decimal(value, exponent).encode())
    assert parsed is not None
    assert Decimal(parsed[0]).scaleb(-parsed[1], EXACT) == Decimal(value).scaleb(-exponent, EXACT)
    assert parsed[1] <= exponent
    assert parsed[1] == 0 or parsed[0] % 10 != 0


@given(I64, st.integers(0, 18))
def test_text_is_what_decimal_would_write(value, exponent):
    expected = Decimal(value).scaleb(-exponent, EXACT).normalize(EXACT)
    assert format_decimal(value, exponent) == (format(expected, "f") if value else "0")


@given(st.text("0123456789.+-eE _", max_size=70))
def test_any_text_means_what_decimal_says_or_nothing(text):
    parsed = parse_decimal(text.encode())
    if parsed is not None:
        assert Decimal(text) == Decimal(parsed[0]).scaleb(-parsed[1], EXACT)
        assert -(2**63) <= parsed[0] < 2**63 and 0 <= parsed[1] <= 18


@given(st.from_regex(r"[+-]?[0-9]{1,25}(\.[0-9]{1,25})?", fullmatch=True))
def test_a_number_is_refused_only_when_it_does_not_fit(text):
    number = Decimal(text)
    parsed = parse_decimal(text.encode())
    reduced = number.normalize(EXACT) if number else Decimal(0)
    exponent = max(0, -reduced.as_tuple().exponent)
    fits = exponent <= 18 and -(2**63) <= int(reduced.scaleb(exponent, EXACT)) < 2**63
    assert (parsed is not None) == fits


@given(st.binary(max_size=70))
def test_any_bytes_are_a_number_or_nothing(raw):
    parsed = parse_decimal(raw)
    if parsed is not None:
        try:
            Decimal(raw.decode())
        except InvalidOperation:
            raise AssertionError(raw) from None

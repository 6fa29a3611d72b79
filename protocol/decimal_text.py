"""Turns decimal text into an integer with an exponent and back, exactly.

A value is value * 10^-exponent with value in 64 bits and exponent from 0 to 18. The text is an
optional sign, digits, and optionally a point and more digits; no exponent, no spaces, no other
digits than ASCII's, so every language reads and writes the same. Zeros at the end of the fraction
carry nothing and are dropped, so equal numbers become equal pairs.
"""

import re

from meterd.protocol.limits import DECIMAL_TEXT_SIZE_MAX, EXPONENT_MAX, I64_MAX, I64_MIN

DECIMAL_TEXT = re.compile(rb"([+-]?[0-9]+)(?:\.([0-9]+))?")


def parse_decimal(text: bytes) -> tuple[int, int] | None:
    """Return (value, exponent), or None when the text is no decimal number or does not fit."""
    if len(text) > DECIMAL_TEXT_SIZE_MAX:
        return None
    match = DECIMAL_TEXT.fullmatch(text)
    if match is None:
        return None
    whole, fraction = match.groups()
    fraction = (fraction or b"").rstrip(b"0")
    value = int(whole + fraction)
    if len(fraction) > EXPONENT_MAX or not I64_MIN <= value <= I64_MAX:
        return None
    return value, len(fraction)


def format_decimal(value: int, exponent: int) -> str:
    """Return value * 10^-exponent as the shortest decimal text."""
    if exponent == 0:
        return str(value)
    sign = "-" if value < 0 else ""
    digits = str(abs(value)).rjust(exponent + 1, "0")
    fraction = digits[-exponent:].rstrip("0")
    return sign + digits[:-exponent] + ("." + fraction if fraction else "")

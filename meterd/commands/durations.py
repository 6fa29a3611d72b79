"""Durations on the command line: 90s, 15m, 1h, 2d."""

import re
from typing import Any

import click

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def parse_duration(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Any:
    """The seconds of a duration; the callback of an option."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})([smhd])", text, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{text!r} is no duration such as 90s, 15m, 1h or 2d")
    return int(match[1]) * _UNITS[match[2]]

"""Small JSON files that say whether they are whole: their key `crc32c` is of all the others.

The checksum is of the fields as JSON with sorted keys, so a person may lay the file out anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from crc32c import crc32c

SIZE_MAX = 64 * 1024


def seal(fields: Mapping[str, Any]) -> bytes:
    """Return the contents of a file."""
    return json.dumps({**fields, "crc32c": _checksum(fields)}, indent=1).encode() + b"\n"


def unseal(raw: bytes) -> dict[str, Any]:
    """Return the fields that were sealed.  Raises ValueError, KeyError, TypeError for others."""
    fields: dict[str, Any] = dict(json.loads(raw))
    if fields.pop("crc32c") != _checksum(fields):
        raise ValueError("its checksum does not match")
    return fields


def _checksum(fields: Mapping[str, Any]) -> int:
    return crc32c(json.dumps(fields, sort_keys=True).encode())

"""Derives event ids from lines of a file, so that reading the same file again counts nothing twice.

The id of a line is a hash of its bytes and of how many equal lines came before it in the same
file. It does not depend on the file's name nor on where the line stands: a log that has grown, was
rotated or was cut at its front gives its lines the same ids as before. Two servers may write equal
lines in the same second for different requests; `source` is mixed into the ids to keep them apart.

How often a line has occurred is remembered for the last `DISTINCT_LINES` distinct lines at least.
Every line carries its time, so equal lines stand close together; forgetting depends on the lines
alone, and a second reading forgets the same ones.
"""

from hashlib import blake2b
from uuid import UUID

DISTINCT_LINES = 250_000  # remembered at least; twice as many at most, 60 MB
DIGEST_SIZE = 32
_VERSION_8 = 0x8 << 76  # RFC 9562: an id made in a way of one's own
_VARIANT = 0x2 << 62
_CLEARED = ~(0xF << 76 | 0x3 << 62)


class LineIdentity:
    """Counts the occurrences of the lines of one file."""

    def __init__(self, source: str = "") -> None:
        self._key = blake2b(source.encode(), digest_size=32).digest()
        self._recent: dict[bytes, int] = {}
        self._older: dict[bytes, int] = {}

    def digest(self, line: bytes) -> bytes:
        """The 32 bytes that identify this occurrence of the line."""
        digest = blake2b(line, digest_size=DIGEST_SIZE, key=self._key).digest()
        occurrence = self._recent.get(digest)
        if occurrence is None:
            occurrence = self._older.get(digest, 0)
            if len(self._recent) >= DISTINCT_LINES:
                self._older, self._recent = self._recent, {}
        self._recent[digest] = occurrence + 1
        if occurrence == 0:
            return digest
        return blake2b(
            digest + occurrence.to_bytes(8, "little"), digest_size=DIGEST_SIZE, key=self._key
        ).digest()


def id_of(half: bytes) -> str:
    """Sixteen bytes of a digest as the text of a UUID of version 8."""
    number = int.from_bytes(half, "big") & _CLEARED | _VERSION_8 | _VARIANT
    return str(UUID(int=number))

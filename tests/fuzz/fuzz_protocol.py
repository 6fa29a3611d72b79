"""Coverage-guided fuzzing of everything that decodes bytes from the network.

The first byte of an input chooses what the rest is decoded as (`TARGETS`); the oracle asserts that
only promised errors come out. msgpack is C and invisible to coverage, so half of all mutations
are made to the decoded value, and the others to the bytes.

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris numpy msgpack lz4
    PYTHONPATH=. /tmp/fuzz/bin/python tests/fuzz/fuzz_protocol.py -max_total_time=600 WORK SEEDS

where WORK is an empty directory and SEEDS is tests/fuzz/corpus. `test_corpus.py` replays that
directory with every test run; what a fuzzer finds belongs in there, beside the test of its cause.
"""

import random
import sys
from collections.abc import Callable
from typing import Any

import msgpack

from meterd.protocol.body import unpack
from meterd.protocol.envelope import RequestHeader
from meterd.protocol.errors import RemoteProtocolError
from meterd.protocol.messages import KINDS, SORTS, WINDOWS
from meterd.protocol.metric import AGGREGATIONS, PERIOD_KINDS
from tests.support import wire_oracle

SIZE_MAX = 4_096
WORDS = (
    *sorted({name for kind in KINDS.values() for name in (kind.name, *kind.fields)}),
    *("n", "id", "timestamp", "value", "exponent", "account", "operation", "properties"),
    *("durability", "async", "events", "offsets", "text", "values", "index", "uuid", "key"),
    *("status", "items", "received", "retry", "message", "hint"),
    *("kind", "anchor_day", "duration", "epoch", *AGGREGATIONS, *PERIOD_KINDS, *WINDOWS, *SORTS),
)
NUMBERS = (
    -1,
    0,
    1,
    2,
    3,
    18,
    19,
    31,
    60,
    127,
    255,
    256,
    2**16,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
RAW = (b"", b"\0" * 4, b"\xff" * 4, b"\0" * 8, b"\xff" * 8, b"\0" * 12, b"\0" * 16, b"\0" * 24)


def _request(data: bytes) -> None:
    size = data[0] if data else 0
    wire_oracle.try_request([data[1 : 1 + size], data[1 + size :]])


def _ingest(data: bytes) -> None:
    wire_oracle.try_body(RequestHeader(1, "ingest"), data)


def _ingest_lz4(data: bytes) -> None:
    size = int.from_bytes(data[:3], "little")
    wire_oracle.try_body(RequestHeader(1, "ingest", lz4_size=size), data[3:])


def _question(data: bytes) -> None:
    kinds = sorted(KINDS)
    number = data[0] if data else 0
    wire_oracle.try_body(RequestHeader(1, kinds[number % len(kinds)]), data[1:])


def _answer(data: bytes) -> None:
    size = data[0] if data else 0
    wire_oracle.try_answer([data[1 : 1 + size], data[1 + size :]])


def _definition(data: bytes) -> None:
    try:
        value = unpack(data)
    except RemoteProtocolError:
        return
    wire_oracle.try_definition(value)


# How to decode an input, and how many bytes come before its msgpack value.
TARGETS: tuple[tuple[Callable[[bytes], None], int], ...] = (
    (_request, 1),
    (_ingest, 0),
    (_ingest_lz4, 3),
    (_question, 1),
    (_answer, 1),
    (_definition, 0),
    (wire_oracle.try_decimal, 0),
    (wire_oracle.try_answer_body, 0),
)


def decode(data: bytes) -> None:
    """Decode one input as its first byte says."""
    if data:
        TARGETS[data[0] % len(TARGETS)][0](data[1:])


class ValueMutator:
    """Changes one place of a decoded value; only through change."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def change(self, value: Any) -> Any:
        if isinstance(value, dict) and value and self.random.random() < 0.9:
            return self._change_map(value)
        if isinstance(value, list) and value and self.random.random() < 0.9:
            return self._change_list(value)
        if isinstance(value, bytes) and value and self.random.random() < 0.8:
            raw = bytearray(value)
            raw[self.random.randrange(len(raw))] = self.random.choice((0, 1, 2, 3, 0x7F, 0xFF))
            return bytes(raw)
        return self._scalar()

    def _change_map(self, value: dict[Any, Any]) -> dict[Any, Any]:
        value = dict(value)
        key = self.random.choice(list(value))
        choice = self.random.random()
        if choice < 0.1:
            del value[key]
        elif choice < 0.3:
            value[self.random.choice(WORDS)] = self._scalar()
        else:
            value[key] = self.change(value[key])
        return value

    def _change_list(self, value: list[Any]) -> list[Any]:
        value = list(value)
        at = self.random.randrange(len(value))
        choice = self.random.random()
        if choice < 0.1:
            del value[at]
        elif choice < 0.3:
            value.insert(at, value[at])
        else:
            value[at] = self.change(value[at])
        return value

    def _scalar(self) -> Any:
        text = self.random.choice(
            (*WORDS, "", "1.5", "-0.10", "ü", "\udcff", "v" * 256, "2026-01-31")
        )
        return self.random.choice(
            (
                None,
                True,
                1.5,
                text,
                self.random.choice(NUMBERS),
                self.random.choice(RAW),
                [],
                {},
                [text],
                {text: text},
                {"offsets": bytes(8), "text": b""},
                {"values": [text], "index": bytes(8)},
            )
        )


def mutate(data: bytes, seed: int) -> bytes | None:
    """Return the input with its msgpack value changed in one place, or None when it has none."""
    if not data:
        return None
    target, prefix = TARGETS[data[0] % len(TARGETS)]
    if target in (_ingest_lz4, wire_oracle.try_decimal):
        return None
    start = 1 + prefix
    if target in (_request, _answer):
        start += data[1] if len(data) > 1 else 0
    try:
        value = msgpack.unpackb(
            data[start:], unicode_errors="surrogateescape", strict_map_key=False
        )
        changed = msgpack.packb(ValueMutator(seed).change(value), unicode_errors="surrogateescape")
    except (ValueError, TypeError, OverflowError):
        return None
    return data[:start] + changed


def main() -> None:
    """Fuzz until libFuzzer's options say stop."""
    import atheris

    def custom_mutator(data: bytes, size_max: int, seed: int) -> bytes:
        changed = mutate(data, seed) if seed % 2 else None
        return (changed or atheris.Mutate(data, size_max))[:size_max]

    atheris.instrument_all()
    atheris.Setup(
        [sys.argv[0], f"-max_len={SIZE_MAX}", *sys.argv[1:]],
        decode,
        custom_mutator=custom_mutator,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()

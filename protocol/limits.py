"""Bounds everything that a client can make a node hold, each with its reason.

The limits are part of the protocol: `hello` answers them (`wire_limits`), docs/PROTOCOL.md lists
them, and the decoders check sizes before they decode or decompress anything. Raising one is
compatible; lowering one is not.
"""

# One message must fit in a client's and a router's buffers many times over; 4 MiB is 10,000 events
# with 400 bytes each. It is also ZeroMQ's MAXMSGSIZE, which counts per frame.
BODY_SIZE_MAX = 4 * 1024 * 1024
# Answers are not bounded by ZeroMQ; pages are cut so that they stay below this.
ANSWER_SIZE_MAX = 16 * 1024 * 1024
# The largest valid header takes about 90 bytes; the rest is room for keys of later versions.
HEADER_SIZE_MAX = 512
# A message is [header][body], nothing else; ZeroMQ itself sets no limit to frames.
FRAME_COUNT = 2
# Decompressed bodies: four times a plain one, so compression is worth having, and still small
# enough to be held by every request that one turn of an actor decodes.
DECOMPRESSED_SIZE_MAX = 16 * 1024 * 1024
# An LZ4 block cannot grow more than this; whoever claims more is not telling the truth.
LZ4_RATIO_MAX = 255
# One event costs about a microsecond; 10,000 keep the turn of an actor near 10 ms.
EVENTS_MAX = 10_000
# Elements of all maps and lists of one body, each costing up to 150 bytes of memory once decoded
# but as little as one on the wire. 10,000 plain events with every field and property make 430,000.
ITEMS_MAX = 1_000_000
# Bodies below this size cannot hold enough elements to matter and are not counted.
ITEMS_UNCOUNTED_SIZE_MAX = 128 * 1024
# Lists longer than the longest column dictionary are never valid.
LIST_SIZE_MAX = EVENTS_MAX
# The widest map is one of properties; far more than 32, so that too many cost their event only.
MAP_SIZE_MAX = 4_096
# Longer than any kind; an unknown one is repeated in the answer.
KIND_SIZE_MAX = 32
REQUEST_ID_MAX = 2**64 - 1
# A deadline is how long the client still waits; nobody waits longer than an hour for an answer.
DEADLINE_MS_MAX = 3_600_000
DEADLINE_MS_DEFAULT = 30_000

# Fields of an event: the log keeps their lengths in one byte.
ACCOUNT_SIZE_MAX = 128
ID_SIZE_MAX = 128
UUID_SIZE = 16
METRIC_CODE_SIZE_MAX = 63
PROPERTIES_MAX = 32
PROPERTY_KEY_SIZE_MAX = 63
PROPERTY_VALUE_SIZE_MAX = 255
# Every distinct key costs a column of 4 bytes for each event of the request.
PROPERTY_KEYS_PER_REQUEST_MAX = 256
EXPONENT_MAX = 18
# Sign, 19 digits, a point, leading and trailing zeros.
DECIMAL_TEXT_SIZE_MAX = 64
I64_MIN = -(2**63)
I64_MAX = 2**63 - 1

# Metric definitions.
DECIMALS_MAX = 9
DIMENSIONS_MAX = 8
UNIT_SIZE_MAX = 63
DESCRIPTION_SIZE_MAX = 1024
TIMEZONE_SIZE_MAX = 64
PERIOD_SECONDS_MIN = 60
PERIOD_SECONDS_MAX = 10 * 366 * 86_400

# Questions. A page may hold fewer rows than asked for; only a missing cursor means the end.
PAGE_SIZE_DEFAULT = 1_000
PAGE_SIZE_MAX = 10_000
CURSOR_SIZE_MAX = 1_024
FILTER_VALUES_MAX = 1_000
TELEMETRY_FILTER_SIZE_MAX = 256

# Opening balances of one request.
BALANCES_MAX = 1_000
COMMAND_ID_SIZE_MAX = 128
# A day of an identity has 16 bits.
RETENTION_DAYS_MAX = 36_500
# A directory or URL, a lease on files.
TARGET_SIZE_MAX = 1_024
HOLD_SECONDS_MAX = 30 * 86_400

# Partitions of a cluster, fixed when it is made.
PARTITION_COUNT = 256
# Nodes of a cluster are numbered from 1; a replica's name has eight bits for it.
NODE_MAX = 255
# Voters of one group.
VOTERS_MAX = 7
# HOST:PORT, and an id of a directory.
ADDRESS_SIZE_MAX = 300
DIRECTORY_ID_SIZE_MAX = 64


def wire_limits() -> dict[str, int]:
    """Return the limits a client has to know, as `hello` answers them."""
    return {
        "header_bytes": HEADER_SIZE_MAX,
        "body_bytes": BODY_SIZE_MAX,
        "answer_bytes": ANSWER_SIZE_MAX,
        "decompressed_bytes": DECOMPRESSED_SIZE_MAX,
        "events": EVENTS_MAX,
        "account_bytes": ACCOUNT_SIZE_MAX,
        "id_bytes": ID_SIZE_MAX,
        "metric_bytes": METRIC_CODE_SIZE_MAX,
        "properties": PROPERTIES_MAX,
        "property_key_bytes": PROPERTY_KEY_SIZE_MAX,
        "property_value_bytes": PROPERTY_VALUE_SIZE_MAX,
        "property_keys_per_request": PROPERTY_KEYS_PER_REQUEST_MAX,
        "deadline_ms": DEADLINE_MS_MAX,
        "page": PAGE_SIZE_MAX,
    }

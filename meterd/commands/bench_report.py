"""Keeps the times of requests in a histogram of fixed size, and reads percentiles from it.

A bucket is 1/64 of a power of two, so a percentile is right to 1.6 % however long the run was.
"""

from collections.abc import Sequence

_BITS = 6  # a power of two has 2^6 buckets
BUCKETS = 64 << _BITS


def bucket_of(nanoseconds: int) -> int:
    """The bucket of a duration, which must not be negative."""
    bits = nanoseconds.bit_length()
    if bits <= _BITS:
        return nanoseconds
    return (bits - _BITS) << _BITS | (nanoseconds >> (bits - _BITS - 1)) & (1 << _BITS) - 1


def duration_of(bucket: int) -> float:
    """The middle of a bucket, in nanoseconds."""
    power, fraction = bucket >> _BITS, bucket & (1 << _BITS) - 1
    if power == 0:
        return float(fraction)
    return ((1 << _BITS | fraction) + 0.5) * 2.0 ** (power - 1)


def percentile_us(counts: Sequence[int], fraction: float) -> float | None:
    """The duration, in microseconds, that this fraction of all requests did not exceed."""
    total = sum(counts)
    if total == 0:
        return None
    rank, seen = max(1, -(-total * int(fraction * 1_000_000) // 1_000_000)), 0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= rank:
            return round(duration_of(bucket) / 1000, 1)
    raise AssertionError("unreachable: the rank is at most the total")

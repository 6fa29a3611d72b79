"""Says from samples of used space how fast a disk fills and when it will be full.

Samples are kept in a bounded list: when that is full every second one goes and the distance between
them doubles, up to the age at which they are dropped, so a week costs no more than an hour.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

SAMPLES_MAX: Final = 512
# Older samples say nothing about today.
AGE_MAX_SECONDS: Final = 7 * 86_400
# A line through less than this says nothing about a day.
SPAN_MIN_SECONDS: Final = 60
DAY_SECONDS: Final = 86_400


class Sample(NamedTuple):
    """What was used at one moment."""

    at: int  # seconds since 1970
    used: int  # bytes of the whole file system
    own: int  # bytes of the data directory


class Growth:
    """The samples of one file system."""

    def __init__(self, samples: Iterable[Sample] = (), distance: int = 1) -> None:
        self.samples: list[Sample] = []
        self.distance = distance  # seconds between two samples at least
        for sample in samples:
            self.add(sample)

    def add(self, sample: Sample) -> None:
        """Keep a sample, unless the last one is too near or the clock went back."""
        samples = self.samples
        if samples and sample.at < samples[-1].at:
            samples.clear()  # the clock was set; what was before cannot be compared
        if samples and sample.at - samples[-1].at < self.distance:
            return
        samples.append(sample)
        if len(samples) > SAMPLES_MAX:
            oldest = sample.at - AGE_MAX_SECONDS
            kept = [one for one in samples if one.at >= oldest]
            if len(kept) > SAMPLES_MAX:
                kept = kept[:-1:2] + kept[-1:]
                self.distance *= 2
            samples[:] = kept

    def per_day(self, now: int) -> tuple[float, float] | None:
        """Return by how many bytes a day (used, own) grow; None when too little is known.

        The slope of the least-squares line through the last day, or through all when the node
        has looked for less.
        """
        recent = [one for one in self.samples if one.at >= now - DAY_SECONDS]
        if len(recent) < 2 or recent[-1].at - recent[0].at < SPAN_MIN_SECONDS:
            return None
        times = [one.at - recent[0].at for one in recent]
        slopes = (
            _slope(times, [one.used - recent[0].used for one in recent]),
            _slope(times, [one.own - recent[0].own for one in recent]),
        )
        return slopes[0] * DAY_SECONDS, slopes[1] * DAY_SECONDS


def _slope(times: list[int], values: list[int]) -> float:
    count, time_sum, value_sum = len(times), sum(times), sum(values)
    products = sum(time * value for time, value in zip(times, values, strict=True))
    squares = sum(time * time for time in times)
    # Whole numbers up to here, so nothing cancels; the divisor is 0 only for equal times.
    return (count * products - time_sum * value_sum) / (count * squares - time_sum * time_sum)


def full_in_seconds(free: int, per_day: float) -> float | None:
    """Return when nothing is free any more if it goes on like this; None: never."""
    return free / per_day * DAY_SECONDS if per_day > 0 else None

"""Requests that were split over several leaders: which parts are still out, and until when.

Sans-I/O.  A *split* is what somebody waits for; it has parts, each under a token of its own and
with the node that leads it.  It is done when every part has its outcome, or when the last part
that has none is no longer waited for: such a part is *not known*, which never means that it did not
happen.

Invariants:
  * every split that was added is done exactly once
  * an outcome counts once, for the part whose token it names; any other is dropped
  * at most `splits_max` splits are out: the oldest gives way, its missing parts not known
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
Token = bytes


class Part(NamedTuple):
    """What one node leads of a split."""

    token: Token
    node: int
    groups: Sequence[int]  # in which its commands or events lie


@dataclass(slots=True, eq=False)
class Split(Generic[T]):
    """Parts on their way, and for whom."""

    asked: T
    parts: Sequence[Part]
    outcomes: list[bytes | None]  # in the order of the parts; None: not known (yet)
    due: dict[Token, float] = field(default_factory=dict)  # of the parts that are out


class SplitTable(Generic[T]):
    """Changed through add, settle, led and expire; each returns the splits that it has ended."""

    def __init__(self, splits_max: int) -> None:
        self._splits_max = splits_max
        self._splits: dict[Split[T], None] = {}  # the oldest first
        self._by_token: dict[Token, tuple[Split[T], int]] = {}

    def __len__(self) -> int:
        return len(self._splits)

    def add(self, asked: T, parts: Sequence[Part], due: float) -> list[Split[T]]:
        """Wait for these parts until `due`.  Their tokens are not in use."""
        ended: list[Split[T]] = []
        if len(self._splits) >= self._splits_max:
            oldest = next(iter(self._splits))
            ended += self._give_up(oldest, list(oldest.due))
        split = Split(asked, parts, [None] * len(parts), {part.token: due for part in parts})
        if not parts:
            return [*ended, split]
        self._splits[split] = None
        self._by_token.update((part.token, (split, k)) for k, part in enumerate(parts))
        return ended

    def settle(self, token: Token, outcome: bytes | None) -> Split[T] | None:
        """Take the outcome of a part (None: it is not known); return the split if that ends it."""
        split, place = self._by_token.pop(token, (None, 0))
        if split is None:
            return None
        split.outcomes[place] = outcome
        del split.due[token]
        if split.due:
            return None
        del self._splits[split]
        return split

    def led(self, leaders: Sequence[int], soon: float, later: float) -> None:
        """Wait no longer for parts of a group that another node leads now.

        leaders: by group; 0: not known.  A node that still leads something lives and will answer:
        it is waited for until `later`, any other until `soon`.
        """
        alive = set(leaders)
        for split in self._splits:
            for part in split.parts:
                until = later if part.node in alive else soon
                due = split.due.get(part.token, until)
                if due > until and any(leaders[group] != part.node for group in part.groups):
                    split.due[part.token] = until

    def expire(self, now: float) -> list[Split[T]]:
        """End the wait for every part that is due."""
        ended: list[Split[T]] = []
        for split in list(self._splits):
            ended += self._give_up(split, [t for t, due in split.due.items() if due <= now])
        return ended

    def _give_up(self, split: Split[T], tokens: Sequence[Token]) -> Iterator[Split[T]]:
        for token in tokens:
            done = self.settle(token, None)
            if done is not None:
                yield done

"""A replica's log in memory: ops after a mark, which of them are damaged, whose configuration.

Memory holds the end of the log; what lies between `floor` and `base` is committed, applied and on
disk, and read from there for followers that are behind (`leading`).  Before the floor there is
only a snapshot.

A damaged op is a *hole*: its identity (index, term, digest) is known, its content lost.  Holes
count for everything that identity decides (votes, log matching) and for nothing that content
does (acks, apply, leading).

Invariants:
  * ops[i].index == base.index + 1 + i, terms never fall; floor <= base.index
  * the last configuration is the one in force, committed or not
  * holes is ascending and lies within the ops
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence

from meterd.protocol.raft_messages import CONFIG, Configuration, Mark, Op


class Log:
    """Change it only through its methods; `extend` does not truncate."""

    __slots__ = ("_configurations", "base", "floor", "holes", "last", "last_term", "ops")

    def __init__(self, base: Mark, ops: Iterable[Op] = (), holes: Iterable[int] = ()) -> None:
        self.base = base
        self.floor = base.index
        self.ops: list[Op] = []
        self.holes: list[int] = []
        self.last = base.index
        self.last_term = base.term
        self._configurations: list[tuple[int, Configuration]] = [(base.index, base.configuration)]
        self.extend(list(ops))
        for index in holes:
            self.damage(index)

    @property
    def configuration(self) -> Configuration:
        """The one in force: the newest, committed or not."""
        return self._configurations[-1][1]

    @property
    def configuration_index(self) -> int:
        """Where the configuration in force was appended."""
        return self._configurations[-1][0]

    @property
    def first_hole(self) -> int:
        """The lowest damaged index, or 0."""
        return self.holes[0] if self.holes else 0

    @property
    def whole_to(self) -> int:
        """The last index before the first hole."""
        return self.holes[0] - 1 if self.holes else self.last

    def configuration_at(self, index: int) -> Configuration:
        """Return the configuration in force at an index >= base.index."""
        found = self._configurations[0][1]
        for at, configuration in self._configurations:
            if at <= index:
                found = configuration
        return found

    def op(self, index: int) -> Op:
        """Return an op that is in the log."""
        return self.ops[index - self.base.index - 1]

    def term_at(self, index: int) -> int:
        """Return the term at base.index <= index <= last."""
        at = index - self.base.index
        return self.ops[at - 1].term if at else self.base.term

    def digest_at(self, index: int) -> int:
        """Return the digest at base.index <= index <= last."""
        at = index - self.base.index
        return self.ops[at - 1].digest if at else self.base.digest

    def mark(self, index: int) -> Mark:
        """Return the mark of base.index <= index <= last."""
        return Mark(index, self.term_at(index), self.digest_at(index), self.configuration_at(index))

    def last_of_term(self, term: int, below: int) -> int:
        """Return the last index up to `below`, or base.index, whose term is at most `term`."""
        index = min(below, self.last)
        while index > self.base.index and self.term_at(index) > term:
            index -= 1
        return index

    def read(self, first: int, ops_max: int, bytes_max: int) -> tuple[Op, ...]:
        """Return ops from `first` on, at least one if there is one, up to a limit or a hole."""
        start = first - self.base.index - 1
        stop = min(start + ops_max, len(self.ops))
        if self.holes:
            stop = min(stop, self.holes[0] - self.base.index - 1)
        size = 0
        for at in range(start, stop):
            size += self.ops[at].size
            if size > bytes_max and at > start:
                stop = at
                break
        return tuple(self.ops[start:stop])

    def size_behind(self, index: int) -> int:
        """Return the bytes of all ops behind an index >= base.index."""
        return sum([op.size for op in self.ops[index - self.base.index :]])

    def extend(self, ops: Sequence[Op]) -> None:
        """Append ops that follow the last one."""
        if not ops:
            return
        self.ops.extend(ops)
        self.last = ops[-1].index
        self.last_term = ops[-1].term
        for op in ops:
            if op.kind == CONFIG and op.body is not None:  # None: read from a damaged record
                self._configurations.append((op.index, op.body))

    def truncate(self, last: int) -> None:
        """Forget everything after `last` >= base.index, configurations and holes too."""
        del self.ops[last - self.base.index :]
        self.last, self.last_term = last, self.term_at(last)
        self._configurations = [c for c in self._configurations if c[0] <= last]
        self.holes = [index for index in self.holes if index <= last]

    def damage(self, index: int) -> None:
        """Take note that the content of an op is lost."""
        if self.base.index < index <= self.last and index not in self.holes:
            insort(self.holes, index)

    def fill(self, op: Op) -> None:
        """Put back the content of a damaged op."""
        self.ops[op.index - self.base.index - 1] = op
        self.holes.remove(op.index)
        if op.kind == CONFIG and (op.index, op.body) not in self._configurations:
            insort(self._configurations, (op.index, op.body))

    def forget(self, index: int) -> None:
        """Keep ops up to base.index <= index <= last on disk only."""
        floor = self.floor
        self.compact(self.mark(index))
        self.floor = floor

    def forget_to(self, mark: Mark) -> None:
        """Keep everything up to a mark behind the last op on disk only."""
        floor = self.floor
        self.compact(mark)
        self.floor = floor

    def compact(self, mark: Mark) -> bool:
        """Begin at `mark`, on disk, too; return whether the log goes on in the same history.

        What does not contain the mark's op cannot be continued: a log that conflicts there is
        wrong behind it, too.
        """
        continues = (
            self.base.index <= mark.index <= self.last and self.term_at(mark.index) == mark.term
        )
        if continues:
            del self.ops[: mark.index - self.base.index]
            later = [c for c in self._configurations if c[0] > mark.index]
        else:
            self.ops, later = [], []
        self.base, self.floor = mark, mark.index
        self._configurations = [(mark.index, mark.configuration), *later]
        self.last, self.last_term = mark.index, mark.term
        if self.ops:
            self.last, self.last_term = self.ops[-1].index, self.ops[-1].term
        self.holes = [index for index in self.holes if index > mark.index] if continues else []
        return continues

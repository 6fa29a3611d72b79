"""Decides how a node with an empty directory comes to its identity (docs/CLUSTER.md).

Sans-I/O: `hear` takes what peers say, `decide` says what to do now.  The other side, what a node
that has an identity says to one that has none, is `judge`.

Invariants, whatever is lost or late and whoever starts when:
  * only the founder, the lowest node of its list, makes a cluster; never when a peer is known to
    have data, and with `auto` only when every other node of the list has just said that it is empty
    and means the same founder
  * an identity is taken only from a node that has given it to this very directory
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

from meterd.core.cluster.members import FIRST_DIRECTORY, FIRST_INCARNATION, REMOVED, Members

# What a peer says of itself.
EMPTY, HAS_DATA = "empty", "has_data"
# What it says of the asker: take this identity; ask the founder; be added first; another directory
# has your number; ask again soon.
GIVEN, ASK_FOUNDER, UNKNOWN, TAKEN, WAIT = "given", "ask_founder", "unknown", "taken", "wait"
# An answer counts for so long.
FRESH_SECONDS: Final = 3.0
# A node that has just started may know only an old state of the members: a no must last so long.
TAKEN_SECONDS: Final = 5.0
# `new` waits so long for peers that would say no.
NEW_SECONDS: Final = 1.0


class Reply(NamedTuple):
    """What a peer said."""

    state: str
    founder: int  # by its own list
    cluster: str = ""  # hexadecimal; empty while it has none
    verdict: str = ""
    identity: Mapping[str, Any] | None = None  # of GIVEN


class Make(NamedTuple):
    """Make a new cluster."""


class Take(NamedTuple):
    """Take this identity."""

    identity: Mapping[str, Any]


class AskToBeAdded(NamedTuple):
    """Ask any of these nodes for `node_add`."""

    nodes: tuple[int, ...]


class GiveUp(NamedTuple):
    """Asking on cannot help."""

    reason: str


class Wait(NamedTuple):
    """Ask again soon."""

    reason: str


Decision = Make | Take | AskToBeAdded | GiveUp | Wait


class Founding:
    """See the module."""

    def __init__(self, node: int, nodes: Collection[int], bootstrap: str) -> None:
        """`nodes` are all of the list, `node` among them; `bootstrap` is auto, new or join."""
        self.node = node
        self.founder = min(nodes)
        self._others = [number for number in sorted(nodes) if number != node]
        self._bootstrap = bootstrap
        self._heard: dict[int, tuple[float, Reply]] = {}
        self._began: float | None = None
        self._taken_since: float | None = None

    def hear(self, source: int, reply: Reply, now: float) -> None:
        """Take an answer of a peer."""
        self._heard[source] = (now, reply)

    def decide(self, now: float) -> Decision:
        """Return what to do."""
        if self._began is None:
            self._began = now
        heard = {
            source: reply
            for source, (at, reply) in self._heard.items()
            if now - at <= FRESH_SECONDS
        }
        having = {source: reply for source, reply in heard.items() if reply.state == HAS_DATA}
        if not having:
            return self._found(heard, now - self._began)
        if self._bootstrap == "new" and self.node == self.founder:
            source, reply = next(iter(having.items()))
            return GiveUp(
                f"node {source} has data of cluster {reply.cluster}, and --bootstrap new would make"
                " a second one; start it with --bootstrap join"
            )
        return self._claim(having, now)

    def _claim(self, having: Mapping[int, Reply], now: float) -> Decision:
        """Get the identity that the cluster of the peers has for this directory."""
        clusters = {reply.cluster: source for source, reply in having.items()}
        if len(clusters) > 1:
            one, other = sorted(clusters.values())[:2]
            return GiveUp(
                f"nodes {one} and {other} belong to different clusters,"
                f" {having[one].cluster} and {having[other].cluster}; mend --peers"
            )
        verdicts: dict[str, list[int]] = {}
        for source, reply in having.items():
            verdicts.setdefault(reply.verdict, []).append(source)
        given = [having[source].identity for source in verdicts.get(GIVEN, ())]
        if given and given[0] is not None:
            return Take(given[0])
        if TAKEN not in verdicts:
            self._taken_since = None
        elif self._taken_since is None:
            self._taken_since = now
        if self._taken_since is not None:
            if now - self._taken_since < TAKEN_SECONDS:
                return Wait("a peer says that this node had another directory")
            return GiveUp(
                f"node {self.node} of cluster {next(iter(clusters))} had another directory; if that"
                f" is lost, say meterctl node recover {self.node} and start it again with"
                " --bootstrap join"
            )
        if UNKNOWN in verdicts:
            return AskToBeAdded(tuple(verdicts[UNKNOWN]))
        if ASK_FOUNDER in verdicts:
            founder = having[verdicts[ASK_FOUNDER][0]].founder
            return Wait(f"waiting for node {founder}, which made the cluster")
        return Wait(f"waiting for node {next(iter(having))} to start")

    def _found(self, heard: Mapping[int, Reply], waited: float) -> Decision:
        """Nobody has data as far as we know."""
        for source, reply in heard.items():
            if reply.founder != self.founder:
                return GiveUp(
                    f"by the list of node {source} node {reply.founder} founds the cluster, by ours"
                    f" node {self.founder}; give all nodes the same --peers"
                )
        silent = [number for number in self._others if number not in heard]
        if self.node == self.founder and self._bootstrap != "join":
            if not silent or (self._bootstrap == "new" and waited >= NEW_SECONDS):
                return Make()
            numbers = ", ".join(map(str, silent))
            return Wait(
                f"no answer from node {numbers} yet: it may have data"
                " (--bootstrap new makes the cluster without asking)"
            )
        if self._bootstrap == "join":
            return Wait("waiting for a node that belongs to a cluster")
        return Wait(f"waiting for node {self.founder} to make the cluster")


def judge(
    members: Members | None,
    own: int,
    asker: int,
    directory: str,
    grant: Callable[[int, str], bool],
) -> tuple[str, int]:
    """Say what node `own` of a cluster answers `asker`: verdict, and incarnation when GIVEN.

    `grant` notes, durably, that a first node has a directory; False: it has another one.
    """
    if members is None or not directory:
        return WAIT, 0
    known = members.nodes.get(asker)
    if known is None or known.state == REMOVED or not known.directory:
        return UNKNOWN, 0
    if known.directory == directory:
        return GIVEN, known.incarnation
    if known.directory != FIRST_DIRECTORY:
        return TAKEN, 0
    founder = members.founder
    first = members.nodes[founder]
    lost = first.directory != FIRST_DIRECTORY  # since then: nobody else knows
    if lost or first.state == REMOVED or asker == founder:
        return TAKEN, 0
    if own != founder:
        return ASK_FOUNDER, 0
    return (GIVEN, FIRST_INCARNATION) if grant(asker, directory) else (TAKEN, 0)

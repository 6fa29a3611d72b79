"""Decides who answers a question in a cluster, for the usage actor.

  * A question about one account: the leader of its partition.  The router passes it on.
  * One with a cursor: the node that gave it, because cursors name places in one node's log.  Those
    of feeds do not (`core/questions/feed_cursor.py`).
  * One about all accounts, or about metrics: whoever was asked, from its own replicas, when it has
    applied all that was acknowledged before (`reads.py`).  For partitions of which it has no
    replica the query actor asks nodes that have one, and joins the answers (`sharing.py`).
  * With `consistency` = `local`: whoever was asked, at once; it says how old that may be.
    Only that a metric is unknown is said after a look at the meta group.
  * All else is about the node that was asked.

A question is passed on once; who gets it so answers it, or says `not_leader`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from meterd.actors.frames.bundle import bundle
from meterd.actors.questions.reads import Waiting
from meterd.actors.questions.sharing import EVERY_PARTITION, share
from meterd.core.questions import feed_cursor, partition_sets
from meterd.protocol.errors import (
    BadRequest,
    MeterdError,
    NotLeader,
    RangeExpired,
    UnknownMetric,
)
from meterd.protocol.limits import NODE_MAX
from meterd.protocol.log_format import META_GROUP

if TYPE_CHECKING:
    from meterd.actors.questions.asking import Asked, Asking
    from meterd.actors.usage import Usage

# Kinds that ask for what is replicated.
OF_ACCOUNTS = ("usage", "accounts", "events", "feed")
OF_METRICS = ("metric_list", "metric_show")
CURSOR_END = "@"
# Cursors of feeds that name a place in one node's files.
OF_PLACES = re.compile(r"([0-9]+@)?f\.[0-9]+\.[0-9]+")


def cursor_prefix(node: int) -> str:
    """Return what the cursors of a node begin with."""
    return f"{node}{CURSOR_END}"


def split_cursor(cursor: str) -> tuple[int, str]:
    """Return the node that gave a cursor, 0 when it names none, and the rest."""
    number, end, rest = cursor.partition(CURSOR_END)
    if not end:
        return 0, cursor
    if not number.isdecimal() or len(number) > 3 or int(number) > NODE_MAX:
        raise BadRequest("after: not a cursor that this kind of question gave")
    return int(number), rest


class AnsweringWhere:
    """See the module."""

    def __init__(self, usage: Usage, asking: Asking) -> None:
        self._usage = usage
        self._asking = asking

    def see(self, asked: Asked, fields: dict[str, Any]) -> None:
        """Answer a question here, now or later, or have it passed on.  Raises MeterdError."""
        kind = asked.header.kind
        if kind not in OF_ACCOUNTS + OF_METRICS:
            self._asking.answer_now(asked, fields)
            return
        groups: Sequence[int] = groups_of(kind, fields.get("account"))
        local = fields.get("consistency") == "local"
        cursor = fields.get("after")
        if kind == "feed":
            check_feed_cursor(cursor)
        node = 0
        if cursor is not None and kind != "feed":
            node, fields["after"] = split_cursor(cursor)
        if kind == "accounts" and node not in (0, self._usage.leader_map.own):
            self._pass_on(asked, node)  # the rows of the next page were computed there
            return
        if len(groups) == 1 and groups[0] != META_GROUP and not local:
            node = self._usage.leader_map.leader_of(groups[0])
            if node != self._usage.leader_map.own:
                self._pass_on(asked, node)
                return
        if kind == "accounts" and cursor is not None:
            self._asking.answer_now(asked, fields)  # cut from what was computed before
            return
        if groups is EVERY_PARTITION:
            groups, asked.parts[:] = share(self._usage, kind, fields)
        until = time.monotonic() + asked.header.deadline_ms / 1000
        if local:
            asked.added["as_of"] = self._as_of(groups)
            self._answer(asked, fields, until)
            return
        answer = self._answer_certainly if kind in OF_METRICS else self._answer
        self._when_fresh(groups, until, asked, partial(answer, asked, fields, until))

    def _answer(self, asked: Asked, fields: dict[str, Any], until: float) -> None:
        """Answer; but before it is said that a metric is unknown, look whether it still is.

        Whoever is asked may be behind in the registry, and such an answer is final.
        """
        try:
            self._asking.try_answering(asked, fields)
        except (UnknownMetric, BadRequest):
            ready = partial(self._answer_certainly, asked, fields, until)
            self._when_fresh([META_GROUP], until, asked, ready)
        except MeterdError as error:
            self._asking.refuse(asked.rid, asked.header, error)

    def _answer_certainly(self, asked: Asked, fields: dict[str, Any], _until: float) -> None:
        self._asking.answer_now(asked, fields)

    def _when_fresh(
        self, groups: Sequence[int], until: float, asked: Asked, ready: Callable[[], None]
    ) -> None:
        failed = partial(self._asking.refuse, asked.rid, asked.header)
        self._usage.reads.when_fresh(groups, until, Waiting(ready, failed))

    def _pass_on(self, asked: Asked, node: int) -> None:
        if asked.header.hops:
            raise NotLeader(f"node {node} answers this question")
        parts = [asked.rid, asked.raw_header, asked.body]
        self._usage.send("router", [b"elsewhere", bytes([node]), *bundle(parts)])

    def _as_of(self, groups: Sequence[int]) -> int | None:
        """Return the moment (UTC ns) of the newest op that is applied of the group that is
        furthest behind; None when there is none in some of them.  Of no groups it is now."""
        if not len(groups):
            return time.time_ns()
        return int(self._usage.groups.time[np.array(groups)].min()) or None


def check_feed_cursor(cursor: str | None) -> None:
    """Raise BadRequest for what is no cursor of a feed, RangeExpired for one of a node alone."""
    if cursor is not None and OF_PLACES.fullmatch(cursor):
        raise RangeExpired(
            "this cursor was given before the node had peers; begin again without a cursor"
        )
    if cursor not in (None, "end"):
        feed_cursor.parse(cursor)


def groups_of(kind: str, account: str | None) -> range | list[int]:
    """Return the groups that a question is about, ascending."""
    if kind in OF_METRICS:
        return [META_GROUP]
    if account is None:
        return EVERY_PARTITION
    return [partition_sets.partition(account)]

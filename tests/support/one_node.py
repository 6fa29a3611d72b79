"""Asks one node of a cluster for what it has itself."""

from __future__ import annotations

from typing import Any, Self

import zmq

from meterd.client.results import Usage
from meterd.protocol.body import pack, unpack_answer
from meterd.protocol.envelope import RequestHeader, decode_answer, encode_request
from tests.support.cluster import ClusterNode

ANSWER_MS = 20_000


class OneNode:
    """A client would go on to other nodes that it hears of."""

    def __init__(self, node: ClusterNode) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = node.dealer(self._context)
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def serves(self) -> bool:
        return self._ask("usage", account="nobody", metric="calls")[0].status == "ok"

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        answer, found = self._ask(kind, **fields)
        assert answer.status == "ok", found
        return found

    def _ask(self, kind: str, **fields: Any) -> tuple[Any, dict[str, Any]]:
        self._asked += 1
        header = RequestHeader(self._asked, kind, ANSWER_MS)
        body = pack({**fields, "consistency": "local"})
        self._socket.send_multipart(encode_request(header, body))
        assert self._socket.poll(ANSWER_MS), "it answers"
        answer, raw = decode_answer(self._socket.recv_multipart())
        assert answer.id == self._asked
        return answer, unpack_answer(raw)

    def usage(self, account: str, metric: str, **span: int) -> int:
        found = self.ask("usage", account=account, metric=metric, **span)
        return int(Usage.from_answer(found).value or 0)

    def ids(self, account: str) -> list[str]:
        found: list[str] = []
        page = self.ask("events", account=account, limit=500)
        while True:
            found += [event["id"] for event in page["events"]]
            if page["next"] is None:
                return found
            page = self.ask("events", account=account, limit=500, after=page["next"])

    def feed(self) -> list[str]:
        """Return the ids of all events, in the order in which it gives them."""
        found: list[str] = []
        page = self.ask("feed", limit=500)
        while page["events"]:
            found += [event["id"] for event in page["events"]]
            page = self.ask("feed", limit=500, after=page["next"])
        return found

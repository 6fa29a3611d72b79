"""A small node in the test's own process, for what a real one cannot be told to do.

`ModelNode` is the pure part: it decodes requests, keeps events by identity and answers as
docs/PROTOCOL.md says. `FakeNode` puts it behind a ROUTER in a thread and misbehaves as told: the
n-th request gets the n-th behaviour of the script, those beyond it are answered properly. Requests
for the map are left out of the script, because a client makes them when it likes.

Only for tests of clients under failure; everything else is tested against a real node.
"""

import threading
from collections import deque
from collections.abc import Iterable

import zmq

from meterd.protocol.body import pack
from meterd.protocol.columns import decode_events
from meterd.protocol.envelope import AnswerHeader, RequestHeader, decode_request, encode_answer
from meterd.protocol.errors import (
    NotLeader,
    Overloaded,
    Rejected,
    RemoteProtocolError,
    Restarting,
    ShuttingDown,
    UnknownMetric,
    error_body,
)
from meterd.protocol.limits import PARTITION_COUNT
from meterd.protocol.messages import check_request
from meterd.protocol.result import IngestResult, Item, encode_result
from tests.support.wire import rows_of

REFUSALS: dict[str, Rejected] = {
    "overloaded": Overloaded(retry_after_ms=5),
    "restarting": Restarting(),
    "not_leader": NotLeader(),
    "shutting_down": ShuttingDown(),
}
# answer; lose: do it but say nothing; ignore; twice: answer two times; late: answer after the
# next request; garbage: answer bytes that are no answer; or one of REFUSALS.
BEHAVIOURS = ("answer", "lose", "ignore", "twice", "late", "garbage", *REFUSALS)
POLL_MS = 10

Frames = list[bytes]


class ModelNode:
    """Keeps events by identity and answers requests."""

    def __init__(self, map_version: int = 1) -> None:
        self.events: dict[tuple[bytes, bytes], dict[str, object]] = {}
        self.requests: list[RequestHeader] = []
        self.map_version = map_version
        self.nodes = {1: "127.0.0.1:1"}
        self.leaders = [1] * PARTITION_COUNT

    def answer(self, frames: Frames) -> Frames:
        """Do what a request asks and return the answer."""
        header, body = decode_request(frames)
        self.requests.append(header)
        try:
            answer = self._ingest(body) if header.kind == "ingest" else self._ask(header, body)
        except (Rejected, RemoteProtocolError) as error:
            return self.refuse(header, error)
        return encode_answer(AnswerHeader(header.id, header.kind, "ok", self.map_version), answer)

    def refuse(self, header: RequestHeader, error: BaseException) -> Frames:
        """Return an error answer."""
        answer = AnswerHeader(header.id, header.kind, "error", self.map_version)
        return encode_answer(answer, pack(error_body(error)))

    def _ingest(self, body: bytes) -> bytes:
        columns = decode_events(body, None)
        counts = {"stored": 0, "duplicate": 0, "conflict": 0, "rejected": 0}
        items: list[Item] = []
        for row, event in enumerate(rows_of(columns)):
            identity = (bytes(event["account"]), bytes(event["id"]))
            if identity in self.events:
                status = "duplicate" if self.events[identity] == event else "conflict"
            elif event["metric"] == b"unknown":
                status = "rejected"
            else:
                status = "stored"
                self.events[identity] = event
            counts[status] += 1
            if status != "stored":
                items.append((row, status, "unknown_metric" if status == "rejected" else ""))
        return encode_result(IngestResult(columns.count, **counts, items=items))

    def _ask(self, header: RequestHeader, body: bytes) -> bytes:
        asked = check_request(header.kind, body)
        if header.kind == "map":
            nodes = {str(node_id): address for node_id, address in self.nodes.items()}
            return pack(
                {
                    "version": self.map_version,
                    "partitions": PARTITION_COUNT,
                    "nodes": nodes,
                    "leaders": self.leaders,
                }
            )
        if header.kind == "metric_show":
            raise UnknownMetric(f"{asked['code']}: not registered")
        if header.kind == "accounts":
            return pack(self._accounts(asked))
        return pack({"version": "fake", "node_id": 1})

    def _accounts(self, asked: dict[str, object]) -> dict[str, object]:
        names = sorted({account.decode() for account, _ in self.events})
        first = int(str(asked["after"] or 0))
        last = first + int(str(asked["limit"]))
        rows = [{"account": name, "value": "0.5", "count": 1} for name in names[first:last]]
        cursor = str(last) if last < len(names) else None
        return {
            "metric": asked["metric"],
            "start": 0,
            "end": 1,
            "rows": rows,
            "next": cursor,
            "position": "p",
        }


class FakeNode:
    """A ModelNode behind a ROUTER on a port of its own; a context manager."""

    def __init__(self, script: Iterable[str] = (), model: ModelNode | None = None) -> None:
        self.model = model or ModelNode()
        self.script = deque(script)
        self.kinds: list[str] = []  # of all requests, also those that were ignored
        self._late: deque[Frames] = deque()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"127.0.0.1:{port}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="fake-node")

    def __enter__(self) -> "FakeNode":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _serve(self) -> None:
        while not self._stop.is_set():
            if self._socket.poll(POLL_MS):
                routing_id, *frames = self._socket.recv_multipart()
                for answer in self._behave(routing_id, frames):
                    self._socket.send_multipart(answer)

    def _behave(self, routing_id: bytes, frames: Frames) -> list[Frames]:
        header, _ = decode_request(frames)
        self.kinds.append(header.kind)
        if header.kind == "map" or not self.script:
            behaviour = "answer"
        else:
            behaviour = self.script.popleft()
        late = [self._late.popleft() for _ in range(len(self._late))]
        if behaviour == "ignore":
            return late
        if behaviour in REFUSALS:
            return [[routing_id, *self.model.refuse(header, REFUSALS[behaviour])], *late]
        answer = [routing_id, *self.model.answer(frames)]
        if behaviour == "late":
            self._late.append(answer)
        if behaviour in ("lose", "late"):
            return late
        if behaviour == "garbage":
            return [[routing_id, b"\xc1", b""], *late]
        return [answer] * (2 if behaviour == "twice" else 1) + late

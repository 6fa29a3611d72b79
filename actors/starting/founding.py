"""Gets an empty directory its identity, before the node has actors (docs/CLUSTER.md).

A process of its own, because the supervisor holds no socket: it asks the peers, answers those that
ask, writes `node.json` and ends.  What to do is decided in `core/cluster/founding.py`.

The questions travel to the replication port, [`bootstrap`, version, map], and are answered by a
node that has its identity, too (`Respondent`).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import zmq

from meterd.actors import endings
from meterd.actors.frames import sockets
from meterd.actors.machine import journal
from meterd.actors.machine.notify import Notifier
from meterd.actors.options import Options
from meterd.actors.starting import claims, identity, peer_list
from meterd.actors.starting.copy_giver import CopyGiver
from meterd.actors.starting.identity import Identity
from meterd.core.cluster import founding as rules
from meterd.core.cluster.founding import AskToBeAdded, Founding, GiveUp, Make, Reply, Take
from meterd.core.cluster.members import FIRST_INCARNATION, Member, Members
from meterd.protocol import body as bodies
from meterd.protocol.envelope import RequestHeader, decode_answer, encode_request
from meterd.protocol.errors import (
    BootFailed,
    DiskFull,
    MeterdError,
    RemoteProtocolError,
    StorageError,
    exception_of,
)

BOOTSTRAP = b"bootstrap"
VERSION = b"\x01"
MESSAGE_SIZE_MAX = 64 * 1024
# So often the peers are asked again.
ASK_SECONDS = 0.2
STATUS_SECONDS = 5.0
# How long `node_add` may take; then another node is asked.
ADD_DEADLINE_MS = 3_000
HIGH_WATER_MARK = 16
# Of one node that asks who makes the cluster.
REQUESTS_MAX = 500
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
LINE_SIZE_MAX = 2_000

logger = logging.getLogger(__name__)


class Respondent:
    """Answers bootstrap questions for a node that has its identity."""

    def __init__(self, data_dir: str, who: Identity) -> None:
        """Raises BootFailed."""
        self._who = who
        self._grants = claims.Grants(data_dir)
        self.copies = CopyGiver(data_dir, who)
        self.members: Members | None = None  # until the state machine has told

    def answer(self, frames: list[bytes]) -> list[bytes] | None:
        """Return the answer's frames, or None for what is no question of this version."""
        question = unpack(frames)
        if question is not None and "copy" in question:
            given = self.copies.answer(question, self.members)
            return None if given is None else pack(given)
        if question is None or type(question.get("node")) is not int:
            return None
        node, directory = question["node"], str(question.get("directory", ""))
        who = self._who
        try:
            verdict, incarnation = rules.judge(
                self.members, who.node_id, node, directory, self._grants.grant
            )
        except (DiskFull, OSError) as error:
            logger.warning("cannot give node %d its identity yet: %s", node, error)
            verdict, incarnation = rules.WAIT, 0
        reply = {
            "state": rules.HAS_DATA,
            "node": who.node_id,
            "founder": who.node_id if self.members is None else self.members.founder,
            "cluster": who.cluster_id_hex,
            "verdict": verdict,
        }
        if verdict == rules.GIVEN:
            logger.info("gave node %d incarnation %d", node, incarnation)
            reply["identity"] = identity.given(who, incarnation, self._others(node, incarnation))
        return pack(reply)

    def _others(self, node: int, incarnation: int) -> list[Member]:
        """Return whom a node will meet that is none of those the cluster was made of."""
        first = {one.node for one in self._who.beginning.present}
        if self.members is None or (node in first and incarnation == FIRST_INCARNATION):
            return []
        return [one for one in self.members.present if one.node != node]


def pack(fields: Mapping[str, Any]) -> list[bytes]:
    """Return the frames of a question or an answer."""
    return [BOOTSTRAP, VERSION, bytes(msgpack.packb(fields))]


def unpack(frames: list[bytes]) -> dict[str, Any] | None:
    """Read the frames of a question or an answer; None: they are neither."""
    if len(frames) != 3 or bytes(frames[0]) != BOOTSTRAP or bytes(frames[1]) != VERSION:
        return None
    if len(frames[2]) > MESSAGE_SIZE_MAX:
        return None
    try:
        fields = bodies.unpack(bytes(frames[2]))
    except RemoteProtocolError:
        return None
    return fields if type(fields) is dict else None


def _reply_of(fields: Mapping[str, Any]) -> Reply | None:
    """Check an answer; None: it makes no sense."""
    given = fields.get("identity")
    reply = Reply(
        str(fields.get("state")),
        fields["founder"] if type(fields.get("founder")) is int else 0,
        str(fields.get("cluster", "")),
        str(fields.get("verdict", "")),
        given if type(given) is dict else None,
    )
    return reply if reply.state in (rules.EMPTY, rules.HAS_DATA) else None


# The process


def found(options: Options, notifier: Notifier) -> Identity:
    """Get this directory its identity; return when `node.json` is durable.

    Raises BootFailed, Stopped.
    """
    apart(options, notifier, "founding", lambda say: Asking(options, say).run())
    return identity.read(options.node.data_dir)


# Takes a line for the supervisor: `status TEXT`.
Say = Callable[[str], None]


def apart(options: Options, notifier: Notifier, name: str, work: Callable[[Say], None]) -> None:
    """Have something done in a process of its own, which may use sockets; return when it is.

    Raises BootFailed, Stopped.
    """
    reading, writing = os.pipe()
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        _live(options, name, work, (reading, writing), supervisor)
    os.close(writing)
    try:
        code, reason = _follow(reading, notifier)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if code != endings.CLEAN:
        raise BootFailed(code, reason or f"{name} ended with status {status}")


class Stopped(Exception):
    """The node was told to stop while it was starting (`node.py` listens to the signals)."""


def _follow(reading: int, notifier: Notifier) -> tuple[int, str]:
    """Pass on what the process says until it ends; return its exit code and reason."""
    rest, ending = b"", (endings.INTERNAL, "")
    while True:
        notifier.beat(time.monotonic())
        if not select.select([reading], [], [], 1.0)[0]:
            continue
        raw = os.read(reading, 65_536)
        if not raw:
            return ending
        *lines, rest = (rest + raw).split(b"\n")
        for line in lines:
            word, _, text = line.decode("utf-8", "replace").partition(" ")
            if word == "status":
                notifier.status(text, extend=True)
            elif word == "ended":
                code, _, reason = text.partition(" ")
                ending = int(code), reason


def _live(
    options: Options,
    name: str,
    work: Callable[[Say], None],
    pipe: tuple[int, int],
    supervisor: int,
) -> None:
    """Be the process, from the fork to its end; never return."""
    reading, writing = pipe
    code, reason = endings.INTERNAL, f"{name} ended by a bug"
    try:
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_NAME, f"meterd:{name}".encode()[:15])
        if os.getppid() != supervisor:
            os._exit(code)
        os.close(reading)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        journal.open_journal(name, options.log)
        work(lambda line: _say(writing, line))
        code, reason = endings.CLEAN, ""
    except BootFailed as failure:
        code, reason = failure.exit_code, failure.reason
    except StorageError as error:
        code, reason = endings.IO_ERROR, str(error)
    except BaseException:
        logger.exception("ended by a bug")
    finally:
        _say(writing, f"ended {code} {reason}")
        os._exit(code)


def _say(writing: int, line: str) -> None:
    os.write(writing, line.replace("\n", " ").encode()[:LINE_SIZE_MAX] + b"\n")


class Asking:
    """Asks until there is an identity."""

    def __init__(self, options: Options, say: Say) -> None:
        """Raises BootFailed."""
        node = options.node
        self._node, self._say = node, say
        self._nodes = {peer.node: peer for peer in node.cluster_nodes}
        self._directory = claims.directory_id(node.data_dir)
        self._founding = Founding(node.id, self._nodes, node.bootstrap)
        self._listener = sockets.client_listener(
            f"tcp://{peer_list.join(node.listen, node.replication_port)}", REQUESTS_MAX
        )
        self._poller = zmq.Poller()
        self._poller.register(self._listener, zmq.POLLIN)
        self._ways = {
            number: self._connect(peer.address)
            for number, peer in self._nodes.items()
            if number != node.id
        }
        self._adding: tuple[zmq.Socket[bytes], float] | None = None
        self._added_by = 0  # counts attempts, so that another node is asked each time
        self._said = ("", 0.0)

    def _connect(self, address: str, waits: bool = False) -> zmq.Socket[bytes]:
        """`waits`: what is sent before there is a connection goes when there is one, else never."""
        socket = sockets.context().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_SIZE_MAX * 4)
        socket.setsockopt(zmq.IMMEDIATE, int(not waits))  # it counts from the connect on
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
        socket.setsockopt(zmq.IPV6, int(address.startswith("[")))
        socket.connect(f"tcp://{address}")
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def run(self) -> None:
        """Return when `node.json` is durable.  Raises BootFailed, StorageError."""
        ask_due = 0.0
        while True:
            now = time.monotonic()
            if now >= ask_due:
                self._ask()
                ask_due = now + ASK_SECONDS
                if self._act(self._founding.decide(now), now):
                    break
            self._take(ask_due - now)
        self._listener.close(linger=0)
        sockets.close()

    def _ask(self) -> None:
        question = pack({"node": self._node.id, "directory": self._directory})
        for way in self._ways.values():
            with contextlib.suppress(zmq.Again):
                sockets.send(way, question, sockets.NOBLOCK)

    def _take(self, seconds: float) -> None:
        """Take what comes in time."""
        for source, _ in self._poller.poll(max(0, int(seconds * 1000)) + 1):
            if source is self._listener:
                self._answer()
            elif self._adding is not None and source is self._adding[0]:
                self._on_added()
            else:
                self._hear(source)

    def _answer(self) -> None:
        """Say that this directory is empty."""
        with contextlib.suppress(zmq.Again):
            rid, *frames = sockets.receive(self._listener)
            if unpack(frames) is None:
                return
            founder = self._founding.founder
            reply = pack({"state": rules.EMPTY, "node": self._node.id, "founder": founder})
            with contextlib.suppress(zmq.ZMQError):  # it has gone
                sockets.send(self._listener, [rid, *reply], sockets.NOBLOCK)

    def _hear(self, source: Any) -> None:
        number = next(number for number, way in self._ways.items() if way is source)
        with contextlib.suppress(zmq.Again):
            fields = unpack(sockets.receive(source))
            reply = None if fields is None else _reply_of(fields)
            if fields is None or reply is None:
                return
            if fields.get("node") != number:
                address, other = self._nodes[number].address, fields.get("node")
                raise BootFailed(
                    endings.CONFIGURATION,
                    f"node.peers: at {address} there is node {other}, not node {number}",
                )
            self._founding.hear(number, reply, time.monotonic())

    def _act(self, decision: rules.Decision, now: float) -> bool:
        """Do what was decided; return whether there is an identity now."""
        data_dir = self._node.data_dir
        if isinstance(decision, GiveUp):
            raise BootFailed(endings.IDENTITY, decision.reason)
        if isinstance(decision, Make):
            first = [(p.node, p.address, p.client_address) for p in self._nodes.values()]
            made = identity.write(data_dir, identity.new_cluster(self._node.id, first))
            logger.info("made a new cluster", extra={"fields": {"cluster_id": made.cluster_id_hex}})
            return True
        if isinstance(decision, Take):
            try:
                taken = identity.taken(self._node.id, decision.identity)
            except (ValueError, TypeError, KeyError) as error:
                raise BootFailed(endings.INTERNAL, f"a peer gave no identity: {error}") from error
            identity.write(data_dir, taken)
            fields = {"cluster_id": taken.cluster_id_hex, "incarnation": taken.incarnation}
            logger.info("joined a cluster", extra={"fields": fields})
            return True
        if isinstance(decision, AskToBeAdded):
            self._ask_to_be_added(decision.nodes, now)
            self._report("asking to be added to the cluster", now)
        else:
            self._report(decision.reason, now)
        return False

    def _report(self, text: str, now: float) -> None:
        """Say what is waited for, in the log only when that is something else."""
        if text != self._said[0]:
            logger.info("%s", text)
        if text != self._said[0] or now - self._said[1] >= STATUS_SECONDS:
            self._said = (text, now)
            self._say(f"status {text}")

    # Being added, by the protocol of clients

    def _ask_to_be_added(self, nodes: tuple[int, ...], now: float) -> None:
        if self._adding is not None:
            if now < self._adding[1]:
                return
            self._forget_adding()
        self._added_by += 1
        peer = self._nodes[nodes[self._added_by % len(nodes)]]
        own = self._nodes[self._node.id]
        way = self._connect(peer.client_address, waits=True)
        header = RequestHeader(self._added_by, "node_add", ADD_DEADLINE_MS)
        body = {
            "node": own.node,
            "peer_address": own.address,
            "client_address": own.client_address,
            "directory": self._directory,
        }
        with contextlib.suppress(zmq.Again):
            sockets.send(way, encode_request(header, bodies.pack(body)), sockets.NOBLOCK)
        self._adding = way, now + ADD_DEADLINE_MS / 1000

    def _on_added(self) -> None:
        """Take the answer; the next bootstrap question brings the identity.  Raises BootFailed."""
        assert self._adding is not None
        way, _ = self._adding
        try:
            header, body = decode_answer(sockets.receive(way))
            if header.status == "error":
                raise exception_of(bodies.unpack(body))
        except zmq.Again:
            return
        except MeterdError as error:
            if error.code == "change_refused":
                raise BootFailed(endings.IDENTITY, error.message) from error
            self._report(f"not added yet: {error.message}", time.monotonic())
        self._forget_adding()

    def _forget_adding(self) -> None:
        assert self._adding is not None
        self._poller.unregister(self._adding[0])
        self._adding[0].close(linger=0)
        self._adding = None

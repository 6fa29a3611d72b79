"""The replication actor: proposals become records, in this node's and in other nodes' logs.

It hands every record to the WAL-writer (to make durable) and to usage (which unpacks it while the
disk works).  When nobody else need have a record it says so to the WAL-writer, which then tells
usage itself that it is committed: one hop less.  All deciding is in `core/cluster/replicas.py`.

States: waiting for the log → electing (groups that need nobody else lead themselves; proposals
wait) → serving.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
import numpy as np

from meterd.actors import endings
from meterd.actors.actor import BEAT_SECONDS, Actor
from meterd.actors.frames import sockets
from meterd.actors.frames.bundle import bundle, unbundle
from meterd.actors.frames.durable_blocks import RECORD_FRAMES
from meterd.actors.frames.sockets import Frame
from meterd.actors.machine.wall_clock import wall_ns
from meterd.actors.offspring import step_forward
from meterd.actors.replicating import behind_notes, boots, led_notes
from meterd.actors.replicating.catching_up import CatchingUp
from meterd.actors.replicating.cluster_requests import ClusterRequests, there
from meterd.actors.replicating.follower_needs import FollowerNeeds
from meterd.actors.replicating.handing_over import LEAVING, TURN_SECONDS, HandingOver
from meterd.actors.replicating.heard_file import HeardFile, Places
from meterd.actors.replicating.held_proposals import HeldProposals
from meterd.actors.replicating.lateness import Lateness, Stranded
from meterd.actors.replicating.link_faults import LinkFaults
from meterd.actors.replicating.own_address import OwnAddress
from meterd.actors.replicating.peer_addresses import PeerAddresses
from meterd.actors.replicating.peers import Own, Peers
from meterd.actors.replicating.read_rounds import ReadRounds
from meterd.actors.replicating.replica_traffic import ReplicaTraffic
from meterd.actors.requests.answering import error_frames
from meterd.actors.requests.forwarding import KINDS, Forwarding
from meterd.actors.starting import identity, peer_list, restored
from meterd.actors.wal_writer import COMMITTED
from meterd.core.cluster.proposals import Proposal
from meterd.core.cluster.replicas import Clock, Replicas, Step
from meterd.core.cluster.report import Link
from meterd.core.log.group_logs import unpack
from meterd.core.raft.events import OVERLOADED, FollowerBehind, ReadOps, Refused
from meterd.core.raft.following import TwoHistories
from meterd.core.raft.node import GoneBack, Node, Room
from meterd.protocol.envelope import decode_answer_header
from meterd.protocol.errors import BootFailed, InvariantViolation, Overloaded
from meterd.protocol.log_format import GROUP_COUNT, META_GROUP
from meterd.protocol.raft_messages import Envelope, node_of

# I/O threads: a peer whose name is slow to resolve holds up those of its thread.
IO_THREADS_MAX = 8

# A beat comes every 150 ms; what has been taken for so long is acted on before more is.
TURN_SECONDS_MAX = 0.03

# Proposals on their way to other nodes; more of them wait here, where they cost nothing, and not
# in the engine, where who cannot keep up is served one group at a time.
FLIGHTS_MAX = 6

# While clients write, ops that were read for who is behind take at most this share of the time, and
# leave room for what is written on the way to each peer; but they wait no longer for that room than
# this, or nobody would ever catch up under full load.  When a peer is away it may be who is behind
# that a majority waits for.
CATCH_UP_SHARE = 0.25
CATCH_UP_ENVELOPES = 2
CATCH_UP_REST_SECONDS = 0.005
CATCH_UP_WAIT_SECONDS = 0.1
BUSY_SECONDS = 1.0
NEVER = float("inf")

# Usage is told at once what a client of this node may wait for: what is committed of groups that
# are led here.  All else (what is durable, and followed groups, whose records become committed in
# parts, as their leader speaks of other groups) when so much is not told yet, or for so long.
UNTOLD_BLOCKS_MAX = 16
UNTOLD_SECONDS = 0.03
# A record so small is unpacked in no time: in a cluster it goes with what makes it committed.
SMALL_RECORD = 4_096
UNTOLD_RECORDS_MAX = 16

# Who must know who leads.
ROUTING = ("router", "ingest", "usage")

logger = logging.getLogger(__name__)


class Replication(Actor):
    name = "replication"

    _replicas: Replicas | None = None  # until the log is open
    _catching_up: CatchingUp | None = None  # of a node alone
    _heard: HeardFile | None = None  # the same
    _lateness: Lateness | None = None  # the same
    _proposed_at = -BUSY_SECONDS  # when a proposal came last
    _caught_up_at = 0.0  # when something that was read was sent last
    _addresses_due = 0.0
    _read_due = NEVER  # when to look for ops that were read, if they do not say so

    def open(self) -> None:
        node = self.options.node
        self._who = identity.read(node.data_dir)
        self._cluster = int.from_bytes(self._who.cluster_id, "little")
        self._boot = time.time_ns()
        self._requests = ClusterRequests(self, self._who)
        self._peers: Peers | None = None  # of a node alone
        if node.peers:
            self._boot = boots.next_boot(node.data_dir)
            self._heard = HeardFile(node.data_dir)
            self._open_peers()
        self._held = HeldProposals()
        self._room = True  # has the WAL-writer any?
        self._serving = False
        self._leaders_told = b""
        self._committed = np.zeros(GROUP_COUNT, np.int64)  # in this turn, where it has moved on
        self._commits = False  # is there any?
        # Blocks that usage has not been told are durable: (where, the next place, flag) repeated.
        self._blocks: list[Frame] = []
        # Records that usage has not been given: (sequence, head, payload, origin) repeated.
        self._records: list[Frame] = []
        self._untold_due = 0.0  # when to tell it of both at the latest
        self._flushed_at = 0.0
        self.forwarding = Forwarding(self, self.send_bulk, self.send_small, self.handle)
        self._reads = ReadRounds(self)
        self._stranded = Stranded()
        self._led_notes = led_notes.LedNotes()
        self._own_address = OwnAddress(node)
        self._behind_notes = behind_notes.BehindNotes(
            node.data_dir, self.send_small, lambda: self.send("retention_sweeper", [b"behind"])
        )
        self._handing_over = HandingOver(self._who.member, self.send_small, self.lifeline.say)

    def _open_peers(self) -> None:
        """Listen to the other nodes, and connect to them.  Raises BootFailed."""
        step_forward()
        node = self.options.node
        listed = {peer.node: peer.address for peer in node.cluster_nodes}
        self._peer_addresses = PeerAddresses(listed)
        addresses = self._addresses()
        sockets.use_threads(min(len(addresses) + 1, IO_THREADS_MAX))
        self._peers = Peers(
            Own(self._cluster, self._who.member, self._boot),
            addresses,
            self.telemetry,
            LinkFaults.wanted(node.id),
            self._requests.respondent.answer,
        )
        self._requests.respondent.copies.boot_of = self._peers.boot_of
        self._traffic = ReplicaTraffic(self._peers, self._digest_at)
        listener = self._peers.listen(f"tcp://{peer_list.join(node.listen, node.replication_port)}")
        # Only `_on_peer` answers on it, those that have no identity yet.
        self.listen(listener, self._on_peer, self._peers.receive, two_way=False)

    def _addresses(self) -> dict[int, str]:
        """Return where to look for the other nodes."""
        known = {m.node: m.peer_address for m in self._requests.members.present}
        if not self._knows_members:
            known |= {number: address for number, _, address in self._who.others}
        if self._heard is not None and self._requests.members.version < self._heard.places.version:
            known |= self._heard.places.addresses  # this state has not caught up with it yet
        connected = set() if self._peers is None else self._peers.connected()
        found = self._peer_addresses.choose(known, connected, time.monotonic())
        found.pop(self.options.node.id, None)
        return found

    def _places(self) -> Places:
        """Say where the nodes are: where they are reached, else as the state machine knows."""
        members = self._requests.members
        known = {m.node: m.peer_address for m in members.present}
        reached = {} if self._peers is None else self._peers.reached()
        found = known | {n: reached[n] for n in known.keys() & reached}
        return Places(members.version, {node: place for node, place in found.items() if place})

    @property
    def _knows_members(self) -> bool:
        """Has the state machine told more than how the cluster began?"""
        return self._requests.members.version > 0

    def _take_members(self, packed: bytes) -> None:
        """Usage says who belongs to the cluster.  Raises BootFailed."""
        knew = self._knows_members
        self._requests.take_members(packed)
        given_up = identity.given_up(self._who, self._requests.members)
        if given_up is not None:
            if not knew:
                raise given_up  # nobody would ever elect it, or answer
            logger.warning("it ends when it is started again: %s", given_up.reason)
        self._meet_members()

    def _meet_members(self) -> None:
        if self._replicas is not None and self._knows_members:
            self._replicas.node.meet(one.member for one in self._requests.members.present)

    def _digest_at(self, group: int, index: int) -> int | None:
        # What was sent to an earlier process may come before the log is open.
        return None if self._replicas is None else self._replicas.digest_at(group, index)

    def send_bulk(self, node: int, frames: Sequence[Frame]) -> bool:
        """Send frames to another node; False when that cannot be done now."""
        member = self._peers.member_of(node) if self._peers is not None else 0
        return member != 0 and self._peers is not None and self._peers.send_note(member, frames)

    def send_small(self, node: int, frames: Sequence[Frame]) -> bool:
        """The same for what is small and must not wait behind what is not."""
        member = self._peers.member_of(node) if self._peers is not None else 0
        if self._peers is None or member == 0:
            return False
        return self._peers.send_note(member, frames, is_bulk=False)

    def _on_peer(self, frames: list[Any]) -> None:
        """Take what another node has sent."""
        found = self._traffic.take(frames)
        if self._replicas is None or found is None:
            return
        if isinstance(found, Envelope):
            try:
                self._carry_out(self._replicas.receive(found, _clock()))
            except TwoHistories as error:
                self._end_if_restored(error)
                raise
        elif found.frames and bytes(found.frames[0]) == behind_notes.BEHIND:
            self._behind_notes.take(node_of(found.source), found.frames, self._replicas.node)
        elif found.frames and bytes(found.frames[0]) == LEAVING:
            self._handing_over.take(found.source, time.monotonic())
        elif found.frames and bytes(found.frames[0]) == led_notes.LED:
            for event in led_notes.take(self._replicas, found.source, found.frames):
                self._carry_out(self._replicas.step(event, _clock()))
        elif found.frames and bytes(found.frames[0]) in KINDS:
            self.forwarding.on_peer(node_of(found.source), found.frames)

    def _end_if_restored(self, error: TwoHistories) -> None:
        """Restored to another moment than others a node may hold what they know nothing of.

        Raises BootFailed: to start again would not help.
        """
        if restored.moment(self.options.node.data_dir):
            raise BootFailed(
                endings.IDENTITY,
                f"{error}: this directory was restored to another moment than those of other nodes;"
                f" say meterctl node recover {self._who.node_id} and begin with an empty one",
            ) from error

    @property
    def replicas(self) -> Replicas:
        """Raises InvariantViolation before the log is open."""
        if self._replicas is None:
            raise InvariantViolation("replication was asked before the log was open")
        return self._replicas

    def handle(self, frames: list[bytes]) -> None:
        kind = frames[0]
        if kind in (b"propose", b"judge"):
            if kind == b"propose" and self._serving and not self._held and self._may_propose():
                self._on_propose(frames)
            elif self._held.add(frames):
                self._take_held()
            elif kind == b"propose":
                self._refuse(msgpack.unpackb(frames[1])["kind"], OVERLOADED, 0, frames[3])
            else:
                self.send("usage", frames)
        elif kind == b"split":
            self.forwarding.on_split(frames)
        elif kind == b"forward":
            self.forwarding.on_forward(frames)
        elif kind == b"outcome":
            self.forwarding.on_outcome(frames)
        elif kind in (b"ask_index", b"index"):
            self.forwarding.on_index(frames)
        elif kind == b"read":
            self._reads.ask(frames)
        elif kind in (b"durable", b"commit"):
            self._on_durable(frames)
        elif kind == b"applied":
            groups = np.frombuffer(frames[1], np.uint16).astype(np.int64)
            index = np.frombuffer(frames[2], np.uint64).astype(np.int64)
            self._requests.take_applied(groups, index)
            self._carry_out(self.replicas.applied(groups, index, _clock()))
        elif kind == b"opened":
            self._on_opened(frames)
        elif kind == b"requests":
            node = self._node
            leaving = self._handing_over.leaving(time.monotonic())
            links, now = self._links(), _clock().now
            self._requests.take(frames, node, links, now, self.request, leaving)
        elif kind == b"members":
            self._take_members(frames[1])
            if self._peers is not None:
                self._peers.update(self._addresses())
        elif kind == b"room":
            self._take_room(frames[1] == b"1")
        elif kind == b"hello":
            self._leaders_told = b""  # somebody has started anew

    def _take_room(self, there: bool) -> None:
        """The WAL-writer says whether it has room for ops.

        Without any this node hands over what it leads to those that have, and takes no ops.
        """
        if self._peers is not None and there != self._room:
            self._room = there
            self._carry_out(self.replicas.step(Room(there), _clock()))

    @property
    def _node(self) -> Node | None:
        return self._replicas.node if self._replicas is not None else None

    def request(self, event: Any) -> list[Refused]:
        """Give the engine a wish; return what it refused."""
        step = self.replicas.step(event, _clock())
        self._carry_out(step)
        return step.refused

    def _links(self) -> dict[int, Link]:
        """Return what the connections to the other nodes say."""
        return {} if self._peers is None else self._peers.links()

    def enough(self) -> bool:
        """A turn must not keep beats waiting."""
        return time.monotonic() - self._flushed_at > TURN_SECONDS_MAX

    def flush(self) -> None:
        self._take_held()
        self._tell_committed()
        self._tell_leaders()
        self._renew_leases()
        if self._peers is not None and self._replicas is not None:
            self.forwarding.pump()
            self._traffic.flush()
            self.tick_by(min(self._replicas.deadline / 1000, self._peers.tell_due))
        self._flushed_at = time.monotonic()

    def _on_opened(self, frames: list[bytes]) -> None:
        """The log is open: continue every group where it ends, and have usage replay it.

        Raises BootFailed.
        """
        end = msgpack.unpackb(frames[1], strict_map_key=False)
        logs = msgpack.unpackb(frames[2], strict_map_key=False)
        starts = unpack(logs)
        self._replicas = Replicas(
            starts,
            _clock(),
            cluster=self._cluster,
            member=self._who.member,
            boot=self._boot,
            seeds=self._who.seeds,
            sequence=end["sequence"],
            leader_time=end["leader_time"],
            random=random.Random(),
            heard=self._heard.heard if self._heard is not None else None,
        )
        if self._peers is None and not self._replicas.is_alone:
            raise identity.needs_peers(self._who)  # it has grown since it was made
        # Usage may have fallen back to an older checkpoint than the one that these marks are of.
        self.send("usage", [b"replay", frames[1], logs["marks"][0]])
        if self._peers is not None:
            directory = self.options.node.data_dir
            place = end["file_number"], end["offset"]
            self._catching_up = CatchingUp(directory, *place, end["void"])
            self._lateness = Lateness(time.monotonic())
            self.watch(self._catching_up.descriptor, self._on_read)
            self._needs = FollowerNeeds(self, self._replicas.node, end["file_number"])
        self._meet_members()
        self._carry_out(self._replicas.tick(_clock()))
        self._maybe_serve()

    def _maybe_serve(self) -> None:
        """Serve once every group leads itself that can; take what has waited for that."""
        if self._serving or not self.replicas.opened:
            return
        self._serving = True
        self._tell_leaders()
        self.ready()
        self._take_held()

    def _take_held(self) -> None:
        """Order what waits for that, as far as it may be ordered now."""
        while self._serving and self._held:
            if self._held.first_kind == b"judge":
                self.send("usage", self._held.pop())  # in the order of the records
            elif self._may_propose():
                self._on_propose(self._held.pop())
            else:
                return

    def _may_propose(self) -> bool:
        """May another proposal be ordered, or would it be one that the other nodes cannot take?"""
        if self._peers is None:
            return True
        return self.replicas.flights(_clock()) < FLIGHTS_MAX and not self._peers.congested()

    def _on_propose(self, frames: list[bytes]) -> None:
        """Order one proposal; its frames are named in docs/ARCHITECTURE.md."""
        self._proposed_at = time.monotonic()
        _, meta, payload, origin, *accepted = frames
        fields = msgpack.unpackb(meta)
        fields["slices"] = bytearray(fields["slices"])
        proposal = Proposal(payload=payload, **fields)
        step = self.replicas.propose(proposal, origin, _clock())
        self._carry_out(step)
        if not step.appends:
            refused = step.refused[0]
            self._refuse(proposal.kind, refused.reason, refused.leader, origin)
        if accepted:
            answers = accepted if step.appends else bundle(list(_declined(accepted)))
            self.send("router", [b"answers", *answers])

    def _refuse(self, kind: int, reason: str, leader: int, origin: bytes) -> None:
        """Have a proposal answered of which nothing was taken."""
        fields = {"kind": kind, "reason": reason, "leader": leader}
        self.send("usage", [b"refused", msgpack.packb(fields), origin])

    def _on_durable(self, frames: list[bytes]) -> None:
        """The WAL-writer has made records durable."""
        sequence = int(np.frombuffer(frames[1], np.uint64)[-4])
        if self._catching_up is not None:
            file_number, offset = np.frombuffer(frames[2], np.uint64)[:2].tolist()
            self._catching_up.durable(file_number, offset)
        step = self.replicas.durable(sequence, _clock())
        if frames[0] == b"commit":
            self._note_block(frames[1:])
        if step is not None:
            self._carry_out(step)
            self._maybe_serve()

    def _note_block(self, block: Sequence[Frame]) -> None:
        """Have usage told of a durable block: now if something of it is committed already."""
        self._begin_untold()
        self._blocks += block
        if self.replicas.is_awaited or block[-1] == COMMITTED:
            self._untold_due = 0.0
        if len(self._blocks) >= 3 * UNTOLD_BLOCKS_MAX:
            self._untold_due = 0.0

    @property
    def _untold(self) -> bool:
        """Is there anything that usage has not been told?"""
        return self._commits or bool(self._blocks or self._records)

    def _begin_untold(self) -> None:
        if not self._untold:
            self._untold_due = time.monotonic() + UNTOLD_SECONDS

    def _carry_out(self, step: Step) -> None:
        """Do what a step leads to."""
        groups, index = step.committed
        if len(groups) and self._peers is not None:
            self._reads.committed(groups, index)  # before an envelope says so
        for append in step.appends:
            sequence = append.sequence.to_bytes(8, "little")
            kind = b"append_commit" if append.commits else b"append"
            self.send("wal_writer", [kind, sequence, append.head, append.payload])
            origin = append.cause or b""
            self._give_record([sequence, append.head, append.payload, origin])
        self._reads.refused(step.refused)
        for _, envelope in step.envelopes:
            self._reads.leaving(envelope)
            self._send_envelope(envelope)
        if len(groups):
            self._begin_untold()
            self._committed[groups] = index  # it never goes back
            self._commits = True
            if self.replicas.leads_any(groups):
                self._untold_due = 0.0
        for action in step.actions:
            self._act(action)
        if self._catching_up is not None:
            self._catching_up.go()

    def _give_record(self, record: list[Frame]) -> None:
        """Give usage a record: a large one now, for it takes time to unpack, others soon."""
        if self._peers is None or len(record[2]) > SMALL_RECORD:
            self.send("usage", [b"record", *record])
            return
        self._begin_untold()
        self._records += record
        if len(self._records) >= RECORD_FRAMES * UNTOLD_RECORDS_MAX:
            self._give_records()

    def _give_records(self) -> None:
        records, self._records = self._records, []
        super().send("usage", [b"record", *records])

    def send(self, actor: str, frames: Sequence[Any]) -> None:
        """Send to another actor; usage gets everything in the order of the calls."""
        if self._records and actor == "usage":
            self._give_records()
        super().send(actor, frames)

    def _tell_committed(self) -> None:
        """Tell usage up to where groups are committed that have moved on in this turn."""
        if not self._untold:
            return
        if time.monotonic() >= self._untold_due:
            groups = np.flatnonzero(self._committed)
            index = self._committed[groups].astype(np.uint64)
            self._committed[groups] = 0
            self._commits = False
            if self._lateness is not None:
                self._lateness.commit(groups, index)
            said = [groups.astype(np.uint16), index, *self._blocks]
            records, self._records, self._blocks = self._records, [], []
            if records:
                count = bytes([len(records) // RECORD_FRAMES])
                self.send("usage", [b"record_committed", count, *records, *said])
            else:
                self.send("usage", [b"committed", *said])
        else:
            self.tick_by(self._untold_due)

    def _send_envelope(self, envelope: Envelope) -> None:
        """Have a member of another node sent what is for it, at the end of the turn."""
        if self._peers is not None and self._catching_up is not None:
            now = self._catching_up.hold(envelope)
            if now.messages:
                self._traffic.add(now)

    def _on_read(self) -> None:
        """Ops that are only on disk have been read: send some, then do other things first."""
        assert self._catching_up is not None
        assert self._peers is not None
        began, rest = time.monotonic(), CATCH_UP_REST_SECONDS
        gives_way = self._gives_way(began)
        waits = gives_way and self._peers.congested(CATCH_UP_ENVELOPES)
        if not waits or began - self._caught_up_at >= CATCH_UP_WAIT_SECONDS:
            self._send_what_was_read(self._catching_up)
            self._caught_up_at = time.monotonic()
            rest = (self._caught_up_at - began) * (1 / CATCH_UP_SHARE - 1)
        if gives_way:
            self.unwatch(self._catching_up.descriptor)
            self._read_due = time.monotonic() + rest
            self.tick_by(self._read_due)

    def _gives_way(self, now: float) -> bool:
        """Do clients write, and can it be committed without those that are behind?"""
        is_busy = now - self._proposed_at < BUSY_SECONDS
        return is_busy and all(there(self.replicas.node, int(now * 1000)))

    def _send_what_was_read(self, catching_up: CatchingUp) -> None:
        taken = catching_up.take()
        for envelope in taken.envelopes:
            self._traffic.add(envelope)
        for event in taken.events:
            self._carry_out(self.replicas.step(event, _clock()))
        self._tell_committed()
        self._traffic.flush()

    def _act(self, action: Any) -> None:
        """Do what the engine asks for besides.  Raises BootFailed."""
        if isinstance(action, ReadOps):
            if self._catching_up is not None:
                self._catching_up.ask(action)
            return
        if isinstance(action, FollowerBehind):
            self._behind_notes.tell(action)
            return
        self._requests.note(action)
        self._reads.note(action)
        if isinstance(action, GoneBack):
            raise BootFailed(
                endings.IDENTITY,
                f"node {node_of(action.peer)} has heard of block {action.heard} of this node, whose"
                f" log ends with {action.block}: the directory is an older copy and has forgotten"
                " what it promised; restore the newest one, or say meterctl node recover"
                f" {self._who.node_id} and begin with an empty one",
            )

    def _tell_leaders(self) -> None:
        """Say who leads each group, when that has changed."""
        if not self._serving:
            return
        leaders = self.replicas.leaders.tobytes()
        if leaders != self._leaders_told:
            self._leaders_told = leaders
            version = self.replicas.map_version.to_bytes(8, "little")
            for actor in ROUTING:
                self.send(actor, [b"leaders", version, leaders])

    def _tell_led(self, now: float) -> None:
        """Say to the other nodes what this one leads, when that is due."""
        note = self._led_notes.due(self.replicas, self._requests.members, now)
        for other in self._requests.members.present if note else ():
            if other.node != self._who.node_id:
                self.send_small(other.node, note or [])

    def _tell_own_address(self, now: float) -> None:
        """Say where this node is, if the members do not."""
        applied = int(self._requests.applied[META_GROUP])
        members, engine = self._requests.respondent.members, self.replicas.node
        said = self._own_address.due(members, engine, applied, now)
        if said is not None:
            self.send("ingest", said)

    def tick(self, now: float) -> float:
        wait = BEAT_SECONDS if self._peers is None else min(BEAT_SECONDS, self._peers.tick(now))
        if self._replicas is None:
            return wait
        clock = _clock()
        if clock.now >= self._replicas.deadline:
            self._carry_out(self._replicas.tick(clock))
        self._take_held()  # what was under way may have been given up, without a message
        self._look_whether_late(now)
        leaving = self._handing_over.leaving(now)
        self._requests.turn(self._replicas.node, clock.now, self.request, leaving)
        if self.leaving:
            members = self._requests.members
            self._handing_over.turn(self._replicas.node, members, now, self.request)
            wait = min(wait, TURN_SECONDS)
        self._tell_committed()
        self._tell_leaders()
        self._renew_leases()
        if self._catching_up is not None:
            self._needs.turn(now, self._catching_up.file_number)
            if now >= self._read_due:
                self._read_due = NEVER
                self.watch(self._catching_up.descriptor, self._on_read)
        if self._heard is not None:
            self._heard.turn(now, self._replicas.node.standing.heard, self._places)
        due = self._replicas.deadline / 1000
        if self._peers is not None:
            if now >= self._addresses_due:
                self._addresses_due = now + BEAT_SECONDS
                self._peers.update(self._addresses())
            self._tell_led(now)
            self._tell_own_address(now)
            self.forwarding.pump()
            self._traffic.flush()
            due = min(due, self._peers.tell_due)
        if self._untold:
            due = min(due, self._untold_due)
        due = min(due, self._read_due)
        return min(wait, max(0.0, due - clock.now / 1000))

    def _look_whether_late(self, now: float) -> None:
        """Have nobody make this node lead, or others lead, while it cannot apply what there is."""
        if self._lateness is None:
            return
        applied, node = self._requests.applied, self.replicas.node
        is_late = self._lateness.look(applied, now)
        if is_late:
            self._handing_over.decline(self._requests.members, now)
        meta = node.view(META_GROUP)
        if self._stranded.look(is_late, meta, now) and not self.leaving:
            self._handing_over.relieve(node, now, self.request)

    def _renew_leases(self) -> None:
        if self._replicas is not None and self._peers is not None:
            self._reads.renew(time.monotonic_ns() // 1_000_000)

    def close(self) -> None:
        self._untold_due = 0.0  # usage ends when it knows what has become of every record
        self._tell_committed()
        if self._heard is not None and self._replicas is not None:
            self._heard.close(self._replicas.node.standing.heard, self._places())
        if self._catching_up is not None:
            self._catching_up.close()
        if self._peers is not None:
            self._peers.close()

    def drained(self) -> bool:
        return self._replicas is None or not (self._held or self._replicas.waiting)


def _declined(accepted: Sequence[Frame]) -> Iterator[Frame]:
    """Return what is said instead to `async` requests of which nothing was taken."""
    for rid, header, _ in unbundle(accepted):
        yield from (rid, *error_frames(decode_answer_header(header).id, "ingest", Overloaded()))


def _clock() -> Clock:
    return Clock(time.monotonic_ns() // 1_000_000, wall_ns())

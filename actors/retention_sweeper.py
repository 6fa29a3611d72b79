"""The retention sweeper: housekeeping of files, none of which an event waits for.

Each piece of it is a service (`actors/housekeeping/`), which works in short turns; what takes long
is a job, in a thread of its own.
"""

from __future__ import annotations

from meterd.actors.actor import BEAT_SECONDS, Actor
from meterd.actors.frames.bundle import unbundle
from meterd.actors.frames.sockets import Frame
from meterd.actors.housekeeping.archive import Archive
from meterd.actors.housekeeping.backups import Backups
from meterd.actors.housekeeping.compaction import Compaction
from meterd.actors.housekeeping.disk_report import DiskReport
from meterd.actors.housekeeping.disk_watch import DiskWatch
from meterd.actors.housekeeping.jobs import Jobs
from meterd.actors.housekeeping.log_holding import LogHolding
from meterd.actors.housekeeping.log_retention import LogRetention
from meterd.actors.housekeeping.log_status import LogStatus
from meterd.actors.housekeeping.peer_copies import PeerCopies
from meterd.actors.housekeeping.pins import Pins
from meterd.actors.housekeeping.refusals import Refusals
from meterd.actors.housekeeping.registry_copy import RegistryCopy
from meterd.actors.housekeeping.second_names import SecondNames
from meterd.actors.housekeeping.segments import Segments
from meterd.actors.housekeeping.service import Service
from meterd.actors.housekeeping.totals import Totals
from meterd.actors.questions.log_files import LogFiles
from meterd.actors.requests.answering import Answers
from meterd.actors.starting import identity
from meterd.core.state.erasures import Erasures
from meterd.protocol.envelope import decode_request_header
from meterd.protocol.errors import DiskFull, DiskStop, MeterdError
from meterd.protocol.messages import check_request


class RetentionSweeper(Actor):
    """See the module."""

    name = "retention_sweeper"

    def open(self) -> None:
        node = self.options.node
        self.answers = Answers(self)
        self.files = LogFiles(node.data_dir, identity.read(node.data_dir).identity_key)
        self.registry = RegistryCopy(node.data_dir)
        self.jobs = Jobs(self)
        self.pins = Pins(self)
        self.holding = LogHolding(self, self.pins)
        self.archive = Archive(self, self.holding)
        self._services = self._make_services()
        self._listeners = {kind: one for one in self._services for kind in one.messages}
        self._servers = {kind: one for one in self._services for kind in one.requests}
        for actor in ("usage", "router"):
            self.send(actor, [b"hello", self.name.encode()])
        self.ready()

    def _make_services(self) -> list[Service]:
        segments = Segments(self)
        totals = Totals(self)
        retention = LogRetention(self, segments, self.holding, totals)
        self._disk = DiskWatch(self, retention)
        self._refusals = Refusals(self)
        return [
            self.jobs,
            self._disk,
            DiskReport(self, self._disk),
            segments,
            self.pins,
            totals,
            retention,
            Compaction(self, retention, totals),
            self.archive,
            LogStatus(self, retention),
            self._refusals,
            Backups(self, self.pins),
            SecondNames(self, self.pins, self._disk),
            PeerCopies(self),
        ]

    def forget_refused(self, erasures: Erasures) -> None:
        """Forget the refused events of erased accounts."""
        self._refusals.forget(erasures)

    @property
    def holds_still(self) -> bool:
        """Is the disk so full that only what makes room may write?  Every service asks this."""
        return self._disk.standing.state == "hard"

    @property
    def is_short_of_space(self) -> bool:
        """Is so little space left that what nobody needs should go at once?"""
        return self._disk.standing.state != "ok"

    def handle(self, frames: list[bytes]) -> None:
        if frames[0] == b"requests":
            for rid, header, body in unbundle(frames[1:]):
                self._on_request(rid, header, body)
        elif frames[0] in self._listeners:
            self._listeners[frames[0]].handle(frames)

    def flush(self) -> None:
        self.answers.send()

    def tick(self, now: float) -> float:
        for service in self._services:
            if now >= service.due:
                service.turn(now)
        due = min(service.due for service in self._services)
        return min(BEAT_SECONDS, max(0.0, due - now))

    def drained(self) -> bool:
        return self.jobs.drained(self.stopping)

    def close(self) -> None:
        for service in self._services:
            service.close()

    def _on_request(self, rid: bytes, raw_header: bytes, body: Frame) -> None:
        header = decode_request_header(raw_header)  # the router has checked it
        try:
            fields = check_request(header.kind, body, header.lz4_size)
            result = self._servers[header.kind].answer(header.kind, fields)
        except DiskFull as full:  # it is no bug, and there is a code for it
            stop = DiskStop(f"there is no room for what {header.kind} writes: {full}")
            self.answers.error(rid, header.id, header.kind, stop)
        except MeterdError as error:
            self.answers.error(rid, header.id, header.kind, error)
        else:
            self.answers.result(rid, header.id, header.kind, result)

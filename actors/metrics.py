"""The metrics actor: gathers the telemetry of all actors; answers /metrics, /health and their kin.

It alone knows Prometheus and HTTP.  What the supervisor knows (who runs, how often restarted) is
read from its file in the run directory, what the kernel knows from /proc, and both only when
somebody asks: an idle node spends nothing here.

What it has shown, and what it was told up to a second ago, it knows again when it is restarted.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import zmq

from meterd import __version__
from meterd.actors import endings
from meterd.actors.actor import Actor
from meterd.actors.frames.bundle import unbundle
from meterd.actors.frames.sockets import Frame
from meterd.actors.listening.http import HttpServer, Page, plain
from meterd.actors.machine import processes
from meterd.actors.measuring import exposition, health, kept_page
from meterd.actors.measuring.collected import Collected
from meterd.actors.requests.answering import Answers
from meterd.actors.starting import identity
from meterd.actors.supervisor import ACTORS_FILE
from meterd.core.cluster.members import GROUP_COUNT
from meterd.protocol.envelope import decode_request_header
from meterd.protocol.errors import BootFailed, MeterdError
from meterd.protocol.messages import check_request

JSON = "application/json"


class Metrics(Actor):
    """Serves telemetry and health."""

    name = "metrics"

    def open(self) -> None:
        self._identity = identity.read(self.options.node.data_dir)
        self._kept = kept_page.shared()
        page = self._kept.read()
        self._collected = Collected() if page is None else Collected.restored(page)
        self._told = False  # anything since it was kept
        self._answers = Answers(self)
        self._processes = processes.Processes()
        self._scrape_seconds = 0.0
        node = self.options.node
        try:
            self._http = HttpServer(node.http_listen, node.http_port, self._respond)
        except OSError as error:
            raise BootFailed(
                endings.UNAVAILABLE,
                f"cannot listen on {node.http_listen}:{node.http_port} for HTTP: {error.strerror};"
                " choose another --http-port",
            ) from error
        self.watch(self._http.fileno(), lambda: self._http.serve(time.monotonic()))
        self.send("router", [b"hello", self.name.encode()])
        self.ready()

    def handle(self, frames: list[bytes]) -> None:
        if frames[0] == b"telemetry":
            self._collected.take(frames[1].decode(), msgpack.unpackb(frames[2]))
            self._told = True
        elif frames[0] == b"requests":
            for rid, header, body in unbundle(frames[1:]):
                self._on_request(rid, header, body)

    def flush(self) -> None:
        self._answers.send()

    def tick(self, now: float) -> float:
        self._http.expire(now)
        if self._told:
            self._keep()
        return 1.0

    def report(self) -> None:
        """Take its own numbers without a way through its inbox."""
        snapshot = self.telemetry.snapshot()
        if snapshot is not None:
            self._collected.take(self.name, snapshot)

    def close(self) -> None:
        self._http.close()

    def _keep(self) -> None:
        self._kept.write(self._collected.to_bytes())
        self._told = False

    # Requests of clients, through the router

    def _on_request(self, rid: bytes, raw_header: bytes, body: Frame) -> None:
        header = decode_request_header(raw_header)  # the router has checked it
        try:
            fields = check_request(header.kind, body, header.lz4_size)
            if header.kind == "health":
                result = self._health()
            else:
                result = {"text": _filtered(self._telemetry().decode(), fields["filter"])}
            self._answers.result(rid, header.id, header.kind, result)
        except MeterdError as error:
            self._answers.error(rid, header.id, header.kind, error)

    # Pages

    def _respond(self, path: str, query: dict[str, str]) -> Page:
        if path == "/metrics":
            return Page(200, exposition.CONTENT_TYPE, self._telemetry())
        if path == "/livez":
            return plain(200, "live")
        if path == "/health":
            body = self._health()
            return _json(503 if body["status"] == "fail" else 200, body)
        if path == "/readyz":
            what = query.get("for", "write")
            if what not in health.PATHS:
                return plain(400, "for=read or for=write")
            body = self._health()
            ready = body["ready"][what]
            return _json(200 if ready else 503, {"for": what, "ready": ready, **body})
        return plain(404, "there are /health, /livez, /readyz?for=read|write and /metrics")

    def _health(self) -> dict[str, Any]:
        who = {
            "node_id": self._identity.node_id,
            "cluster_id": self._identity.cluster_id_hex,
            "version": __version__,
        }
        clock_ahead = self._collected.gauge("retention_clock_ahead_seconds")
        return health.report(
            self._supervised(), self._disk(), who, time.time(), self._quorum(), clock_ahead
        )

    def _quorum(self) -> health.Quorum | None:
        """What replication has said of leaders; None when there are no other nodes."""
        gauge = self._collected.gauge
        if not (self.options.node.peers or gauge("peers")):
            return None
        held = int(gauge("groups_held") or GROUP_COUNT)  # before it has said so, all count
        leaderless = gauge("partitions_without_leader")
        lacking = held if leaderless is None else int(leaderless)
        leads = int(gauge("partition_leader") or 0)
        return health.Quorum(held, leads, lacking, int(gauge("partitions_leader_silent") or 0))

    def _supervised(self) -> dict[str, Any]:
        page: dict[str, Any] = json.loads(Path(self.run_dir, ACTORS_FILE).read_bytes())
        return page

    def _disk(self) -> health.Disk:
        limits = self.options.disk
        free = os.statvfs(self.options.node.data_dir)
        refusing = any(
            self._collected.gauge(f'disk_state{{state="{state}"}}') == 1
            for state in ("stop", "hard")
        )
        return health.Disk(
            free.f_bavail * free.f_frsize, limits.warn_free, limits.stop_free, refusing
        )

    def _telemetry(self) -> bytes:
        began = time.monotonic()
        usages = self._usages()
        numbers = self._collected.numbers()
        self._add_node(numbers)
        self._add_actors(numbers, usages)
        self._keep()  # no counter may fall below what is shown now
        page = exposition.render(numbers, self._collected.histograms())
        self._scrape_seconds = time.monotonic() - began
        return page

    def _add_node(self, numbers: dict[str, dict[tuple[str, ...], float]]) -> None:
        page = self._supervised()
        report = self._health()
        who = self._identity
        numbers["build_info"][
            __version__, platform.python_version(), zmq.zmq_version(), str(who.storage_version)
        ] = 1
        numbers["node_info"][str(who.node_id), who.cluster_id_hex, str(who.incarnation)] = 1
        numbers["uptime_seconds"][()] = report["uptime_seconds"]
        numbers["start_timestamp_seconds"][()] = page["started"]
        for state in health.STATES.values():
            numbers["node_state"][(state,)] = float(state == report["state"])
        for what, ready in report["ready"].items():
            numbers["ready"][(what,)] = float(ready)
        numbers["config_last_reload_successful"][()] = float(page["reload"]["successful"])
        numbers["config_last_reload_timestamp_seconds"][()] = page["reload"]["at"]
        numbers["telemetry_dropped_total"][()] = len(self._collected.unknown)
        numbers["exporter_scrape_duration_seconds"][()] = self._scrape_seconds

    def _usages(self) -> dict[str, processes.Usage]:
        """What each process of the node takes; their processor time is counted."""
        page = self._supervised()
        pids = {name: actor["pid"] for name, actor in page["actors"].items() if actor["pid"]}
        pids["supervisor"] = page["pid"]
        usages = self._processes.usages(pids)
        for name, usage in usages.items():
            self._collected.take_processor_time(name, pids[name], usage.cpu_seconds)
        return usages

    def _add_actors(
        self,
        numbers: dict[str, dict[tuple[str, ...], float]],
        usages: Mapping[str, processes.Usage],
    ) -> None:
        for name, actor in self._supervised()["actors"].items():
            numbers["actor_restarts_total"][(name,)] = actor["restarts"]
            numbers["actor_ready"][(name,)] = float(actor["ready"])
        for name, usage in usages.items():
            numbers["actor_resident_memory_bytes"][(name,)] = usage.resident_bytes
            numbers["actor_proportional_memory_bytes"][(name,)] = usage.proportional_bytes


def _filtered(text: str, wanted: str) -> str:
    """Keep the lines of numbers whose name or labels contain `wanted`."""
    if not wanted:
        return text
    kept = [line for line in text.splitlines() if wanted in line and not line.startswith("#")]
    return "".join(f"{line}\n" for line in kept)


def _json(status: int, body: dict[str, Any]) -> Page:
    return Page(status, JSON, json.dumps(body, indent=1).encode() + b"\n")

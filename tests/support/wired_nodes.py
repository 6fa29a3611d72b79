"""Three nodes in one process that forward to each other and replicate nothing.

Each leads the groups that it is told to lead.  Links between them lose what they are told to lose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from meterd.actors.frames import lease_words
from meterd.actors.starting import identity
from meterd.actors.starting.identity import Identity
from meterd.core.state.registry import Registry
from meterd.protocol.log_format import GROUP_COUNT, META_GROUP
from tests.support.log_builder import CLUSTER_ID, IDENTITY_KEY
from tests.support.one_process import OneProcessNode


class Member(OneProcessNode):
    """One of the nodes: whatever it waits for, all of them go on."""

    nodes: WiredNodes

    def __init__(self, *arguments: Any, **sections: Any) -> None:
        super().__init__(*arguments, **sections)
        self.passed_on: list[int] = []  # to which nodes the router was told to pass questions on

    def _post(self, actor: str, frames: list[bytes]) -> None:
        if actor == "router" and frames[0] == b"elsewhere":
            self.passed_on += frames[1]
        super()._post(actor, frames)

    def tell_registry(self, source: Member) -> None:
        """Let the meta group of another node be here, as if it had been replicated."""
        usage, there = self.actors["usage"], source.actors["usage"]
        usage.state.registry = Registry.from_bytes(there.state.registry.to_bytes())
        usage.state._renew_book()
        usage.groups.index[META_GROUP] = there.groups.index[META_GROUP]
        usage._go_on()
        usage.reads.applied()

    def turn(self) -> bool:
        return self.nodes.turn()

    def tick(self) -> None:
        for one in self.nodes.members:
            OneProcessNode.tick(one)

    def own_turn(self) -> bool:
        return super().turn()


class WiredNodes:
    """Nodes 1, 2 and 3."""

    def __init__(self, path: Path, random: Random) -> None:
        self.members: list[Member] = []
        self.lost: Callable[[int, int, bytes], bool] = lambda source, target, kind: False
        self.sent: list[tuple[int, int, bytes]] = []  # source, target, kind
        self._version = 0
        self._links: list[tuple[int, int, list[bytes]]] = []
        for number in (1, 2, 3):
            directory = path / str(number)
            directory.mkdir()
            who = Identity(number, CLUSTER_ID.hex(), IDENTITY_KEY.hex(), 1, 1, "")
            (directory / identity.FILE_NAME).write_bytes(identity.encode(who))
            member = Member(directory, random, node={"id": number})
            member.nodes = self
            self.members.append(member)
        for member in self.members:
            member._clock = self.members[-1]._clock  # the one that was installed last
            member.start()
            replication = member.actors["replication"]
            send = self._sender(member.options.node.id)
            replication.forwarding._send_bulk = replication.forwarding._send_small = send
            ingest, usage = member.actors["ingest"], member.actors["usage"]
            ingest._leaders.alone = usage.leader_map.alone = False
            usage.reads._words = self._leases()
        for member in self.members:  # each registers what all have registered
            self.tell([member.options.node.id] * GROUP_COUNT, [member])

    def __getitem__(self, number: int) -> Member:
        return self.members[number - 1]

    def _leases(self) -> Any:
        """Return lease words of a node that nobody can depose."""
        words = np.zeros((GROUP_COUNT, 2), np.int64)
        words[:, lease_words.UNTIL] = lease_words.FOREVER
        return words

    def _sender(self, source: int) -> Callable[[int, Sequence[Any]], bool]:
        def send(target: int, frames: Sequence[Any]) -> bool:
            copied = [memoryview(frame).tobytes() for frame in frames]
            self.sent.append((source, target, copied[0]))
            if not self.lost(source, target, copied[0]):
                self._links.append((source, target, copied))
            return True

        return send

    def turn(self) -> bool:
        """Let all nodes take what waits for them, then deliver what they have sent."""
        turns = [member.own_turn() for member in self.members]
        links, self._links = self._links, []
        for source, target, frames in links:
            self[target].actors["replication"].forwarding.on_peer(source, frames)
        return any(turns) or bool(links)

    def tell(self, leaders: Sequence[int], members: Sequence[Member] = ()) -> None:
        """Say who leads each group: the number of a node, or 0."""
        self._version += 1
        frames = [b"leaders", self._version.to_bytes(8, "little"), bytes(leaders)]
        for member in members or self.members:
            for actor in ("ingest", "usage"):
                member._post(actor, frames)
            member.settle()

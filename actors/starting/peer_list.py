"""Reads the list of a cluster's nodes that an operator gives: `--peers 1:host:8002,2:[::1]:8003`.

The same list may be given to every node: a node's own entry only says by which name others know it.
A replication port is the application port and 1000.  Pure text: nothing is looked up here.
"""

from __future__ import annotations

from typing import NamedTuple

from meterd.protocol import fields
from meterd.protocol.errors import ConfigError
from meterd.protocol.raft_messages import NODE_BITS

REPLICATION_OFFSET = 1_000
PORT_MAX = 65_535
# A member of a group names its node in so many bits, and 0 is nobody.
NODE_MAX = (1 << NODE_BITS) - 1
SHAPE = "NODE_ID:HOST:REPLICATION_PORT, such as 1:node1.internal:8001 or 2:[::1]:8001"


class Peer(NamedTuple):
    """One node of a list."""

    node: int  # 1..255
    host: str  # without brackets
    port: int  # of replication

    @property
    def address(self) -> str:
        """HOST:PORT of replication, an IPv6 host in brackets."""
        return join(self.host, self.port)

    @property
    def client_address(self) -> str:
        """HOST:PORT of the application."""
        return join(self.host, self.port - REPLICATION_OFFSET)


def join(host: str, port: int) -> str:
    """Return HOST:PORT, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """Return host, without brackets, and port of what `join` made.  Raises ConfigError."""
    host, separator, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    good = fields.is_ipv6(host) if bracketed else fields.is_host(host)
    if not (good and separator and port.isascii() and port.isdecimal() and len(port) <= 5):
        raise ConfigError(f"node.peers: {address!r} is not HOST:PORT")
    return host, int(port)


def parse(text: str) -> tuple[Peer, ...]:
    """Read a list; return it sorted by node number.  Raises ConfigError."""
    peers: dict[int, Peer] = {}
    addresses: dict[tuple[str, int], int] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        peer = _parse_entry(entry)
        if peer.node in peers:
            raise ConfigError(f"node.peers: node {peer.node} stands in it twice")
        other = addresses.setdefault((peer.host, peer.port), peer.node)
        if other != peer.node:
            raise ConfigError(
                f"node.peers: nodes {other} and {peer.node} have the same address, {peer.address}"
            )
        peers[peer.node] = peer
    return tuple(peers[node] for node in sorted(peers))


def _parse_entry(entry: str) -> Peer:
    number, separator, address = entry.partition(":")
    if not (separator and number.isascii() and number.isdecimal()):
        raise ConfigError(f"node.peers: {entry!r} is not {SHAPE}")
    try:
        host, port = split(address)
    except ConfigError:
        raise ConfigError(f"node.peers: {entry!r} is not {SHAPE}") from None
    if not 1 <= int(number[:9]) <= NODE_MAX or len(number) > 9:
        raise ConfigError(
            f"node.peers: nodes of a cluster have numbers from 1 to {NODE_MAX}, not {number}"
        )
    if not REPLICATION_OFFSET < port <= PORT_MAX:
        raise ConfigError(
            f"node.peers: {port} of node {number} is no replication port: that is the application"
            f" port and {REPLICATION_OFFSET}"
        )
    return Peer(int(number), host, port)


def nodes_of(node: int, host: str, port: int, text: str) -> tuple[Peer, ...]:
    """Return all nodes of a cluster, this one among them; none for a single node.

    `host` is what this node calls itself (empty: as the list says, or else not known) and `port`
    its application port.  Raises ConfigError.
    """
    listed = parse(text)
    if not listed:
        return ()
    named = [peer.host for peer in listed if peer.node == node]
    own = Peer(node, host or (named[0] if named else ""), port + REPLICATION_OFFSET)
    others = [peer for peer in listed if peer.node != node]
    return tuple(sorted([own, *others]))


def check(node: int, port: int, text: str) -> None:
    """Refuse a list that cannot be meant.  Raises ConfigError."""
    listed = parse(text)
    if not listed:
        return
    if not 1 <= node <= NODE_MAX:
        raise ConfigError(
            f"node.id: a node of a cluster needs a number from 1 to {NODE_MAX}, not {node};"
            " set --node-id"
        )
    if [peer.node for peer in listed] == [node]:
        raise ConfigError(
            f"node.peers: it names only this node itself, {node}; name the others, or leave it"
            " out for a single node"
        )
    if port + REPLICATION_OFFSET > PORT_MAX:
        raise ConfigError(
            f"node.port: the replication port is {REPLICATION_OFFSET} above {port}, and there is"
            f" none above {PORT_MAX}"
        )


def warnings(node: int, port: int, text: str) -> list[str]:
    """Say what may be meant and is rarely wise."""
    listed = parse(text)
    if not listed:
        return []
    said = []
    count = len({peer.node for peer in listed} | {node})
    if count % 2 == 0:
        said.append(
            f"node.peers: {count} nodes bear no more failures than {count - 1} do; an odd number is"
            " better"
        )
    own_port = port + REPLICATION_OFFSET
    for peer in listed:
        if peer.node == node and peer.port != own_port:
            said.append(
                f"node.peers: this node's own entry says port {peer.port}, and it listens on"
                f" {own_port}: others will not find it"
            )
    return said

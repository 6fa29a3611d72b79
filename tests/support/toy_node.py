"""A node of toy actors under the real supervisor: started as a process of its own by the tests.

``python -m tests.support.toy_node DATA_DIR [BEHAVIOUR]``.  Units: the chain (first, second) and
`alone`.  BEHAVIOUR makes `second` fail its boot or die at once; with `waits` it fails when it runs,
and `first` waits for it then.  With `leads`, `leads_on` and `dies_leading` there is a replication
actor, too, and the node has peers: told that it is to hand over, it does, says nothing, or dies.
With `hangs` there is a router that never ends, and with `starts_late` `second` is ready when there
is a file `go`.
"""

import dataclasses
import os
import sys

from meterd.actors.actor import Actor
from meterd.actors.machine import journal
from meterd.actors.machine.notify import Notifier
from meterd.actors.options import Log, Node, Options, Shutdown, Watchdog
from meterd.actors.starting import directory
from meterd.actors.supervisor import Supervisor
from meterd.protocol.errors import BootFailed, Corrupt, FsyncFailed

BEHAVIOUR = sys.argv[2] if len(sys.argv) > 2 else ""
LEADS = BEHAVIOUR in ("leads", "leads_on", "dies_leading")


class First(Actor):
    name = "first"

    def open(self) -> None:
        self.ready()

    def reload(self, options: Options) -> None:
        super().reload(options)
        with open(os.path.join(self.run_dir, "reloaded"), "w") as file:
            file.write(options.log.level)

    def drained(self) -> bool:
        return BEHAVIOUR != "waits" or self.name != "first"


class Second(First):
    name = "second"

    def tick(self, now: float) -> float:
        if BEHAVIOUR == "waits" and os.path.exists(os.path.join(sys.argv[1], "fail")):
            raise FsyncFailed("the disk is broken")
        if BEHAVIOUR == "starts_late" and os.path.exists(os.path.join(sys.argv[1], "go")):
            self.ready()
        return super().tick(now)

    def open(self) -> None:
        if BEHAVIOUR == "boot_failed":
            raise BootFailed(79, "this is the wrong directory")
        if BEHAVIOUR == "corrupt":
            raise Corrupt("wal.log", 4096, "a checksum does not match")
        if BEHAVIOUR == "dies":
            raise RuntimeError("a bug")
        if BEHAVIOUR != "starts_late":
            self.ready()


class Replication(First):
    name = "replication"

    def tick(self, now: float) -> float:
        if self.leaving:
            with open(os.path.join(self.run_dir, "leaving"), "w"):
                pass
            if BEHAVIOUR == "dies_leading":
                os._exit(1)
            if BEHAVIOUR == "leads":
                self.lifeline.say("handed_over")
        return super().tick(now)


class Router(First):
    name = "router"

    def drained(self) -> bool:
        return False


class Alone(First):
    name = "alone"

    def close(self) -> None:
        with open(os.path.join(self.run_dir, "closed"), "w") as file:
            file.write(str(os.getpid()))


def load() -> Options:
    """Read options; the file `level` in the data directory stands for a changed configuration."""
    path = os.path.join(sys.argv[1], "level")
    level = "info"
    if os.path.exists(path):
        with open(path) as file:
            level = file.read()
    node = Node(data_dir=sys.argv[1])
    if LEADS:
        node = dataclasses.replace(node, id=1, peers="2:127.0.0.1:1001")
    options = Options(node=node, watchdog=Watchdog(stall=2.0), shutdown=Shutdown(grace=1.0))
    return Options.from_mapping(dataclasses.asdict(dataclasses.replace(options, log=Log(level))))


def main() -> int:
    options = load()
    journal.open_journal("supervisor", options.log)
    directory.take(options.node.data_dir)
    run_dir = directory.make_run_dir(options.node.data_dir)
    units: list[list[type[Actor]]] = [[First, Second], [Alone]]
    if LEADS:
        units.append([Replication])
    if BEHAVIOUR == "hangs":
        units.append([Router])
    return Supervisor(options, run_dir, units, load, Notifier(dict(os.environ))).run()


if __name__ == "__main__":
    sys.exit(main())

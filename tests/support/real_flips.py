"""Bits that flip in the files of real nodes, each time before a start.

A directory is made once, with what it must answer; each run damages it, starts a node on it, asks,
and puts it back.  Four of them have files of every kind together.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

from meterd.client import Client, Event
from meterd.protocol.errors import MeterdError
from tests.support import stored_directory
from tests.support.fault_book import Violation
from tests.support.fault_campaign import KINDS, NAMED, flip_bit
from tests.support.node import Node
from tests.support.real_campaign import SETTINGS, Campaign, campaign, meterctl
from tests.support.simulated_faults import FLIPPED
from tests.support.steady_load import check_prefix
from tests.support.waiting import eventually

PATTERNS = (*KINDS, *FLIPPED)
DAY = 86_400_000_000_000
START_SECONDS = 120
# Of the directory with expired segments: old ones, and those that stay.
OLD, RECENT = 20_000, 2_000

# Asks a node for all that it must know.  Raises AssertionError, MeterdError.
Check = Callable[[Client], None]


class Flips:
    """A directory in which one bit flips, again and again."""

    def __init__(self, node: Node, check: Check) -> None:
        """Take the directory of a node that does not run."""
        self._node, self._check = node, check
        self._safe = node.home / "safe"
        shutil.copytree(node.data_dir, self._safe, ignore=shutil.ignore_patterns("run", "lock"))

    def kinds(self) -> list[str]:
        """Patterns of the files that there are."""
        return [one for one in PATTERNS if any(p.stat().st_size for p in self._safe.glob(one))]

    def run(self, pattern: str, random: Random) -> str:
        """Return how it ended.  Raises Violation, AssertionError."""
        node = self._node
        paths = [path for path in sorted(node.data_dir.glob(pattern)) if path.stat().st_size]
        flip_bit(random.choice(paths), random)
        written = len(node.log())
        try:
            node.start(wait=False)
            eventually(self._is_decided, "it serves or ends", START_SECONDS)
            return self._outcome(written)
        finally:
            if self._runs():
                node.kill9()
            self._mend()

    def _runs(self) -> bool:
        return self._node.process is not None and self._node.process.poll() is None

    def _is_decided(self) -> bool:
        return not self._runs() or self._node.page().get("state") == "running"

    def _outcome(self, written: int) -> str:
        said = ""
        if self._runs():
            try:
                with self._node.client(timeout=10) as client:
                    self._check(client)
                return "right"
            except MeterdError as error:
                said = str(error)
        said = f"{self._node.log()[written:]}\n{said}"
        if not NAMED.search(said):
            raise Violation(f"refused without file and offset: {said[-1000:]}")
        return "refused, file and offset named"

    def _mend(self) -> None:
        for path in self._node.data_dir.iterdir():
            if path.name not in ("run", "lock"):
                path.unlink()
        for path in self._safe.iterdir():
            shutil.copy2(path, self._node.data_dir / path.name)


def _holds(run: Campaign) -> Check:
    """All that was acknowledged is there, each once."""
    events = run.load.acknowledged

    def check(client: Client) -> None:
        held = check_prefix(client, events)
        assert held == events, f"{held} events instead of {events}"

    return check


@contextmanager
def under_load() -> Iterator[Flips]:
    """A node that was killed under load: log files that have no segment, parts, leases."""
    with campaign(events=25_000) as run:
        node = run.node
        run.more(5_000)
        for kind in ("checkpoint", "checkpoint", "backup_hold"):
            run.fire(kind)
            run.more(5_000)
        _back_up(run)
        run.load.__exit__(None, None, None)
        node.kill9()
        node.start()
        assert node.stop() == 0
        yield Flips(node, _holds(run))


@contextmanager
def restored() -> Iterator[Flips]:
    """A backup that was restored."""
    with campaign(events=25_000) as run:
        run.load.__exit__(None, None, None)
        _back_up(run)
        node = Node(environment=SETTINGS)
        try:
            where = ("--from", run.backups, "--data-dir", node.data_dir)
            assert meterctl("restore", "node", *where, "--yes").wait() == 0
            yield Flips(node, _holds(run))
        finally:
            node.remove()


def _back_up(run: Campaign) -> None:
    done = meterctl("-n", run.node.address, "backup", "create", "--to", run.backups)
    assert done.wait() == 0


@contextmanager
def stored() -> Iterator[Flips]:
    """The stored directory: runs of identities, segments, an archive, erasures."""
    node = Node(environment=stored_directory.ENVIRONMENT)
    try:
        expected = stored_directory.open_archive(stored_directory.FOLDER, node.home)

        def check(client: Client) -> None:
            found = stored_directory.answers(client)
            assert found == expected, f"{found} instead of {expected}"

        yield Flips(node, check)
    finally:
        node.remove()


@contextmanager
def expired() -> Iterator[Flips]:
    """Segments have gone, and files of totals stand for them."""
    old, now = time.time_ns() // DAY * DAY - 60 * DAY, time.time_ns()
    settings = SETTINGS | {"METERD__RETENTION__TOTALS_DAYS": "3650"}

    def event(number: int) -> Event:
        timestamp = old + number if number < OLD else now - number
        return Event("acme", "calls", 1, timestamp, str(number), properties={"pad": "x" * 250})

    def check(client: Client) -> None:
        whole = client.usage("acme", "calls", start=old - DAY, end=now + DAY).value
        late = client.usage("acme", "calls", start=now - DAY, end=now + DAY).value
        assert (whole, late) == (OLD + RECENT, RECENT)
        again = client.ingest([event(number) for number in range(OLD, OLD + RECENT, 20)])
        assert again.duplicate == RECENT // 20, again

    with Node(environment=settings) as node:
        with node.client(timeout=60) as client:
            client.put_metric("calls", "sum")
            for first in range(0, OLD + RECENT, 2_000):
                client.ingest([event(number) for number in range(first, first + 2_000)])
            Campaign(node, None, node.home).fire("retention_set", days=30)

        def sweep() -> bool:
            assert meterctl("-n", node.address, "retention", "run", "--yes").wait() == 0
            return any(node.data_dir.glob("totals-*.tot"))

        eventually(sweep, "files of totals stand for segments", START_SECONDS)
        assert node.stop() == 0
        yield Flips(node, check)


DIRECTORIES = (under_load, stored, expired, restored)

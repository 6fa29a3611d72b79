"""Restores of a real backup that are killed, and bits that flip in a real node's files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from meterd.actors.backups.shelf import Shelf
from meterd.protocol.errors import MeterdError
from tests.support.fault_book import Violation
from tests.support.fault_campaign import KINDS, NAMED, flip_bit
from tests.support.node import Node
from tests.support.real_campaign import SETTINGS, Campaign, campaign, meterctl
from tests.support.simulated_faults import FLIPPED
from tests.support.steady_load import check_prefix
from tests.support.waiting import eventually


class Restores:
    """A backup that is restored again and again, the program killed in between."""

    def __init__(self, run: Campaign) -> None:
        self._run = run
        for backup_type in ("full", "incr"):
            run.more(5_000)
            done = meterctl(
                "-n",
                run.node.address,
                "backup",
                "create",
                "--to",
                run.backups,
                "--type",
                backup_type,
            )
            assert done.wait() == 0
        shelf = Shelf.at(str(run.backups))
        self._events = max(one.events for one in shelf.contents().manifests.values())

    def run(self, random: Random) -> None:
        """Into nothing, or in the place of a directory."""
        target = self._run.home / "restored"
        shutil.rmtree(target, ignore_errors=True)
        command = (
            "restore",
            "node",
            "--from",
            self._run.backups,
            "--data-dir",
            target,
            "--yes",
            "--level",
            random.choice(("checksum", "replay")),
        )
        is_there = random.random() < 0.5
        if is_there:
            _succeed(*command)
            (target / "lock").touch()
        before = _names(target)
        process = meterctl(*command)
        if random.random() < 0.7:
            eventually(
                lambda: list(target.parent.glob("restored.*")) or process.poll() is not None,
                "it has begun",
            )
            self._run.after(random.random() * 0.4)
        else:
            self._run.after(random.random() * 1.5)
        process.kill()
        process.wait()
        after = _names(target)
        whole = (target / "restored.json").exists()
        assert after == before or whole, f"a part of a restore is in place: {sorted(after)}"
        if random.random() < 0.5 or not whole:
            _succeed(*command)
            # What a killed one leaves is for the next one to clear.
            left = list(target.parent.glob("restored.restoring-*"))
            assert not left, f"left behind: {left}"
        with Node(data_dir=target, environment=SETTINGS) as node, node.client(timeout=60) as client:
            assert check_prefix(client, self._events) == self._events
        for path in target.parent.glob("restored.*-*"):
            shutil.rmtree(path)


def _succeed(*command: object) -> None:
    code = meterctl(*command).wait()
    assert code == 0, f"meterctl {command[0]} ended with {code}"


def _names(directory: Path) -> dict[str, int]:
    if not directory.exists():
        return {}
    return {path.name: path.stat().st_ino for path in directory.iterdir()}


class Flips:
    """A directory in which one bit flips, again and again, each time before a start."""

    def __init__(self, run: Campaign) -> None:
        """Takes the node's directory when it has a file of every kind."""
        node = run.node
        run.more(5_000)
        for kind in ("checkpoint", "checkpoint", "backup_hold"):
            run.fire(kind)
            run.more(5_000)
        done = meterctl("-n", node.address, "backup", "create", "--to", run.backups)
        assert done.wait() == 0
        run.load.__exit__(None, None, None)
        self._events = run.load.acknowledged
        if node.process is not None:
            node.kill9()
        node.start()
        assert node.stop() == 0
        self._node = node
        self._safe = run.home / "safe"
        shutil.copytree(node.data_dir, self._safe, ignore=shutil.ignore_patterns("run", "lock"))

    def kinds(self) -> list[str]:
        """Patterns of the files that there are."""
        known = (*KINDS, *FLIPPED)
        return [one for one in known if any(path.stat().st_size for path in self._safe.glob(one))]

    def run(self, pattern: str, random: Random) -> str:
        """Return how it ended."""
        node = self._node
        paths = [path for path in sorted(node.data_dir.glob(pattern)) if path.stat().st_size]
        if not paths:
            return "empty"
        flip_bit(random.choice(paths), random)
        written = len(node.log())
        try:
            node.start(wait=False)
            assert node.process is not None
            eventually(
                lambda: node.process.poll() is not None or node.page().get("state") == "running",
                "it serves or ends",
                120,
            )
            return self._outcome(written)
        finally:
            if node.process is not None and node.process.poll() is None:
                node.kill9()
            self._mend()

    def _outcome(self, written: int) -> str:
        node = self._node
        assert node.process is not None
        if node.process.poll() is None:
            try:
                with node.client(timeout=3) as client:
                    held = check_prefix(client, self._events)
                assert held == self._events
                return "right"
            except MeterdError as error:
                if node.process.poll() is None and not NAMED.search(node.log()[written:]):
                    raise Violation(f"refused without file and offset: {error}") from error
        said = node.log()[written:]
        if not NAMED.search(said):
            raise Violation(f"ended without file and offset: {said[-1000:]}")
        return "refused, file and offset named"

    def _mend(self) -> None:
        for path in self._node.data_dir.iterdir():
            if path.name not in ("run", "lock"):
                path.unlink()
        for path in self._safe.iterdir():
            shutil.copy2(path, self._node.data_dir / path.name)


@contextmanager
def flips() -> Iterator[Flips]:
    """A real node's directory, in which bits may flip."""
    with campaign(events=25_000) as run:
        yield Flips(run)

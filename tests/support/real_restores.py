"""Restores of a real backup that are killed."""

import shutil
from pathlib import Path
from random import Random

from meterd.actors.backups.shelf import Shelf
from tests.support.node import Node
from tests.support.real_campaign import SETTINGS, Campaign, meterctl
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

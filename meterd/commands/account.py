"""`meterctl account`: erase what an account has had, bring what it had elsewhere."""

import hashlib
import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import click

from meterd.commands.console import field_lines
from meterd.commands.session import AdminError, AdminGroup, Session, command
from meterd.commands.usage import parse_time
from meterd.exits import AdminExit
from meterd.protocol.limits import BALANCES_MAX, COMMAND_ID_SIZE_MAX

ID_ROOM = 12  # for the number of the request


@click.group("account", cls=AdminGroup, later={"set": "", "show": ""})
def account() -> None:
    """Erase accounts, and bring what they had used in another system."""


@command("erase", short_help="Erase what an account has had so far.")
@click.argument("account")
@click.option("--subtree", is_flag=True, help="With everything below the account's path.")
def erase(session: Session, account: str, subtree: bool) -> None:
    """Erase events, totals and text of ACCOUNT: gone from answers at once, from files in time.

    Its ids stay used, so an event that is sent again stays a duplicate; new events are taken and
    counted. It cannot be undone. Asks first; --yes answers.
    """
    below = " and everything below it" if subtree else ""
    session.confirm(f"Erase all that {account}{below} has had so far? It cannot be undone.")
    with session.connect() as client:
        answer = client.erase_account(account, subtree)
    document = {"account": account, "subtree": subtree, **answer}
    session.console.show(document, lambda: [f"account {account}{below}: erased"])


@command("import", short_help="Bring opening balances from another system.")
@click.argument("file", type=click.File("rb"))
@click.option("--id", "import_id", metavar="ID",
              help="Under which this import counts once [default: a hash of the file].")
def import_balances(session: Session, file: BinaryIO, import_id: str | None) -> None:
    """Bring the balances of FILE (- is standard input), one JSON object on each line.

    A balance counts in every range that holds its moment (at). The same file again, or a file
    under an id that is known, changes nothing; another content under a known id is refused.
    """
    raw = file.read()
    import_id = import_id or hashlib.sha256(raw).hexdigest()
    if not 0 < len(import_id.encode()) <= COMMAND_ID_SIZE_MAX - ID_ROOM:
        raise click.UsageError(f"--id: 1 to {COMMAND_ID_SIZE_MAX - ID_ROOM} bytes")
    counts = {"imported": 0, "unchanged": 0}
    balances = _balances(raw)
    number = 0
    with session.connect() as client:
        while batch := list(islice(balances, BALANCES_MAX)):
            answer = client.import_balances(f"{import_id}:{number}", batch)
            counts[answer["outcome"]] += len(batch)
            number += 1
            if session.console.is_table and number % 10 == 0:
                sys.stderr.write(f"\r{sum(counts.values())} balances")
    document = {"id": import_id, "balances": sum(counts.values()), **counts}
    session.console.show(
        document, lambda: field_lines([(name, str(value)) for name, value in document.items()])
    )


for _command in (erase, import_balances):
    account.add_command(_command)


def _balances(raw: bytes) -> Iterator[dict[str, Any]]:
    """Yield the balances of a file.  All is checked before anything is sent."""
    found = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            balance = json.loads(line, parse_float=str)
        except (ValueError, RecursionError):
            balance = None
        if not isinstance(balance, dict):
            raise AdminError(AdminExit.USAGE, "bad_json", f"line {number} is no JSON object")
        if isinstance(balance.get("at"), str):
            balance["at"] = parse_time(balance["at"], None)
        found.append(balance)
    yield from found

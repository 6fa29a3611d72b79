"""`meterctl ingest`: sends the events of files, and says what became of each.

Reading and sending overlap: while some batches are under way the next is read. Memory is bounded
by the batches under way, whatever the size of the files.

Invariants:
  * received = stored + duplicate + conflict + rejected + unknown (+ accepted with --async): a line
    that cannot become an event is received and rejected;
  * every line that was not stored, and was no duplicate, is named with its file and number, up to
    `LINES_NAMED` of them.
"""

import gzip
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meterd.commands import access_log
from meterd.commands.access_log import AccessLog, BadLine
from meterd.commands.console import Progress, field_lines, warn
from meterd.commands.event_batch import EventBatch
from meterd.commands.event_lines import EventLines, Fields
from meterd.commands.session import Session, admin_error_of, command
from meterd.commands.tables import group_thousands
from meterd.exits import AdminExit, worst
from meterd.protocol.errors import MeterdError

if TYPE_CHECKING:
    from meterd.client import Client
    from meterd.protocol.columns import Durability

BATCH_DEFAULT, BATCH_MAX = 5000, 10_000
LINE_SIZE_MAX = 64 * 1024
# Batches read ahead of the one under way.  One at a time: lines count in their order, and of two
# that contradict each other it is the first that counts, also when a batch has to be sent again.
READ_AHEAD = 2
TIMEOUT_DEFAULT = 30.0
LINES_NAMED = 20
PROGRESS_SECONDS = 0.2
LINES_PER_LOOK = 256  # lines between two looks at the clock
OUTCOMES = ("stored", "duplicate", "conflict", "rejected", "unknown")

Reader = Callable[[bytes], Iterable[Fields]]


class Tally:
    """What became of all events so far."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("received", *OUTCOMES, "accepted"), 0)
        self.reasons: Counter[str] = Counter()
        self.named = 0
        self.failures: list[AdminExit] = []

    def refuse_line(self, path: str, line_number: int, reason: str, text: str) -> None:
        """Count a line that could not become an event."""
        self.counts["received"] += 1
        self.counts["rejected"] += 1
        self.reasons[reason] += 1
        self._name(path, line_number, f"{reason}: {text}")

    def add(self, batch: EventBatch, result: Any) -> None:
        """Count what a node answered about a batch."""
        for name in OUTCOMES:
            self.counts[name] += getattr(result, name)
        self.counts["accepted"] += getattr(result, "accepted", 0)
        self.counts["received"] += batch.count
        for row, status, reason in result.items:
            if status == "rejected":
                self.reasons[reason] += 1
            if status in ("conflict", "rejected"):
                text = f"{status}: {reason}" if reason else status
                self._name(batch.path, batch.line_numbers[row], text)

    def fail(self, batch: EventBatch, error: MeterdError) -> None:
        """Count a batch that was not settled; what a node said about some of it still holds."""
        failure = admin_error_of(error)
        known = getattr(error, "result", None)
        if known is not None:
            # Without a cause nodes have answered, and do not know what becomes of the events.
            self.failures.append(failure.exit_code if error.__cause__ else AdminExit.PARTLY)
            self.add(batch, known)
        else:  # the request itself was refused, so nothing of it can be stored
            self.counts["received"] += batch.count
            self.counts["rejected"] += batch.count
            self.reasons[failure.code] += batch.count
        first, last = batch.line_numbers[0], batch.line_numbers[-1]
        warn(f"{batch.path}: lines {first} to {last}: {failure.code}: {failure.message}")

    def _name(self, path: str, line_number: int, text: str) -> None:
        self.named += 1
        if self.named <= LINES_NAMED:
            warn(f"{path}:{line_number}: {text}")

    def document(self, asynchronous: bool) -> dict[str, Any]:
        counts = dict(self.counts)
        if not asynchronous:
            del counts["accepted"]
        return {**counts, "reasons": dict(sorted(self.reasons.items()))}

    def exit_code(self) -> AdminExit:
        counts = self.counts
        if counts["stored"] + counts["duplicate"] + counts["accepted"] == counts["received"]:
            return worst(self.failures)
        if self.failures and counts["unknown"] == counts["received"]:
            return worst(self.failures)  # nothing was done at all
        return AdminExit.PARTLY


class LineSource:
    """The lines of one file, unpacked when it is gzip, with how far reading has come."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.raw = click.open_file(path, "rb")
        self.size = Path(path).stat().st_size if path != "-" and Path(path).is_file() else 0
        packed = path.endswith(".gz")
        self.stream: Any = gzip.GzipFile(fileobj=self.raw) if packed else self.raw
        self.taken = 0  # bytes of lines

    def close(self) -> None:
        self.stream.close()
        self.raw.close()

    def lines(self) -> Iterator[tuple[int, bytes | None]]:
        """Number and bytes of each line that is not empty; None for one that is too long."""
        read, number = self.stream.readline, 0
        while line := read(LINE_SIZE_MAX + 1):
            number += 1
            self.taken += len(line)
            if len(line) > LINE_SIZE_MAX and line[-1:] != b"\n":
                while line and line[-1:] != b"\n":
                    line = read(LINE_SIZE_MAX)
                yield number, None
            elif line := line.strip():
                yield number, line

    def progress(self) -> str:
        if not self.size:
            return f"{self.taken / 1e6:,.1f} MB"
        return f"{self.raw.tell() / self.size:.0%}"


class Ingestion:
    """One run over all files: reads, sends, counts."""

    def __init__(self, client: "Client", durability: "Durability", batch_count: int) -> None:
        self.client = client
        self.durability = durability
        self.batch_count = batch_count
        self.tally = Tally()
        self.under_way: deque[tuple[EventBatch, Future[Any]]] = deque()
        self.progress = Progress()
        self.started = self.shown = time.monotonic()

    def run(self, paths: Iterable[str], reader_of: Callable[[], Reader]) -> None:
        """Send all files. An interrupt still waits for what is under way."""
        with ThreadPoolExecutor(1, "sender") as sender:
            try:
                for path in paths:
                    self._run_file(path, reader_of(), sender)
            finally:
                while self.under_way:
                    self._take_oldest()
                self.progress.clear()

    def _run_file(self, path: str, reader: Reader, sender: ThreadPoolExecutor) -> None:
        try:
            with closing(LineSource(path)) as source:
                for batch in self._batches(source, reader):
                    while len(self.under_way) > READ_AHEAD or self._oldest_is_done():
                        self._take_oldest()
                    self.under_way.append((batch, sender.submit(self._send, batch)))
        except (OSError, EOFError, zlib.error) as error:
            warn(f"{path}: cannot be read: {error}")
            self.tally.failures.append(AdminExit.PARTLY)

    def _batches(self, source: LineSource, reader: Reader) -> Iterator[EventBatch]:
        batch = EventBatch(source.path)
        for number, line in source.lines():
            if number % LINES_PER_LOOK == 0:
                self._show_progress(source)
            if line is None:
                text = f"more than {LINE_SIZE_MAX} bytes"
                self.tally.refuse_line(source.path, number, "line_too_long", text)
                continue
            try:
                for fields in reader(line):
                    batch.add(fields, number)
            except BadLine as error:
                self.tally.refuse_line(source.path, number, error.reason, str(error))
                continue
            batch.size += len(line)
            if batch.is_full(self.batch_count):
                yield batch
                batch = EventBatch(source.path)
        if batch.rows:
            yield batch

    def _send(self, batch: EventBatch) -> Any:
        return self.client.ingest_columns(**batch.columns(), durability=self.durability)

    def _oldest_is_done(self) -> bool:
        return bool(self.under_way) and self.under_way[0][1].done()

    def _take_oldest(self) -> None:
        batch, future = self.under_way.popleft()
        try:
            self.tally.add(batch, future.result())
        except MeterdError as error:
            self.tally.fail(batch, error)

    def _show_progress(self, source: LineSource) -> None:
        now = time.monotonic()
        if not self.progress.visible or now - self.shown < PROGRESS_SECONDS:
            return
        self.shown = now
        counts = self.tally.counts
        rate = counts["received"] / (now - self.started)
        notes = [f"{counts[name]:,} {name}" for name in OUTCOMES[1:] if counts[name]]
        self.progress.update(
            f"{source.path}  {source.progress()}  {counts['received']:,} events  "
            f"{rate:,.0f} events/s  {'  '.join(notes)}"
        )


def _read_log_line(log: AccessLog) -> Reader:
    def read(line: bytes) -> Iterable[Fields]:
        return [(*event[:5], "none", event[5]) for event in log.events(line)]

    return read


def _read_event_line(lines: EventLines) -> Reader:
    def read(line: bytes) -> Iterable[Fields]:
        return (lines.event(line),)

    return read


def _register_log_metrics(client: "Client") -> None:
    """Register what a log counts; a definition that is there already stays as it is."""
    known = {metric["code"] for metric in client.list_metrics()}
    for metric in access_log.METRICS:
        if metric["code"] not in known:
            client.put_metric(**metric, dimensions=access_log.DIMENSIONS)


@command("ingest", short_help="Send the events of files.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...",
                type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--batch", type=click.IntRange(1, BATCH_MAX), default=BATCH_DEFAULT,
              show_default=True, help="Events in each request.")
@click.option("--async", "asynchronous", is_flag=True,
              help="Do not wait until events are on disk: a node that dies may lose the last.")
@click.option("--from-log", type=click.Choice(["combined"]),
              help="The files are access logs of a web server, in combined or common format.")
@click.option("--id-from-line", is_flag=True,
              help="Derive missing ids from the line, so that the file can be sent again.")
@click.option("--source", default="", metavar="NAME",
              help="Mixed into derived ids: tells apart equal lines of different servers.")
def ingest(session: Session, files: tuple[str, ...], batch: int, asynchronous: bool,
           from_log: str | None, id_from_line: bool, source: str) -> None:
    """Send the events of FILEs, `-` being standard input; files ending in .gz are unpacked.

    A file holds one JSON object per line with the fields of an event: account, metric, value,
    timestamp, id, operation, properties. A line without id gets a new one each time it is sent:
    use --id-from-line when a file may be sent twice. With --from-log each line counts a request
    and its bytes, with ids that are always derived from the line.

    Exit code 0 means that every event is stored or was there already, 7 that some are not.
    """
    durability: Durability = "async" if asynchronous else "sync"
    with session.connect(session.patience(TIMEOUT_DEFAULT)) as client:
        if from_log:
            _register_log_metrics(client)
        run = Ingestion(client, durability, batch)
        try:
            run.run(files, lambda: _reader(from_log, id_from_line, source))
        finally:
            _report(session, run.tally, asynchronous)
    if (code := run.tally.exit_code()) is not AdminExit.GOOD:
        raise SystemExit(code)


def _reader(from_log: str | None, id_from_line: bool, source: str) -> Reader:
    if from_log:
        return _read_log_line(AccessLog(source))
    return _read_event_line(EventLines(id_from_line, source))


def _report(session: Session, tally: Tally, asynchronous: bool) -> None:
    if tally.named > LINES_NAMED:
        warn(f"... and {tally.named - LINES_NAMED:,} more lines; reasons below")
    document = tally.document(asynchronous)
    counts = [(name, group_thousands(n)) for name, n in document.items() if name != "reasons"]
    reasons = [(f"  {name}", group_thousands(count)) for name, count in tally.reasons.items()]
    session.console.show(document, lambda: field_lines([*counts, *reasons]))

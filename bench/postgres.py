"""PostgreSQL doing meterd's job: events kept durably, counted once each, totals up to date.

One statement stores a request: rows whose (account, id) is new go into `events`, their sums are
added to `totals`, and one commit makes both durable (`fsync` and `synchronous_commit` on).  Sums
are added in the order of their keys, so requests never deadlock.  Two ways of handing the rows
over, both in binary, were worth trying and are both here: arrays into a prepared statement, and
COPY into a temporary table.  Settings favour PostgreSQL wherever durability allows: no replication
in the log, no checkpoint during a run, integers for metrics, a Unix socket.
"""

import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.load import ACCOUNT_SIZE, Body, Measurement, Shape, account_name, run_clients
from bench.processes import await_server, find_program, peer_directory, running
from bench.support import directory_size

INSTALL = "apt-get install postgresql; pip install 'psycopg[binary]'"
USER = "postgres"
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "wal_compression": "lz4",
    "wal_buffers": "64MB",
    "max_wal_size": "32GB",
    "min_wal_size": "4GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "4GB",
    "work_mem": "64MB",
    "temp_buffers": "32MB",
    "jit": "off",
    "max_connections": "100",
    "listen_addresses": "",
}
TABLES = """
CREATE TABLE events (account text NOT NULL, id uuid NOT NULL, metric int2 NOT NULL,
    value int8 NOT NULL, at int8 NOT NULL, PRIMARY KEY (account, id));
CREATE TABLE totals (account text NOT NULL, metric int2 NOT NULL, value int8 NOT NULL,
    count int8 NOT NULL, PRIMARY KEY (account, metric)) WITH (fillfactor = 50);
"""
STORE = """
WITH stored AS (INSERT INTO events SELECT * FROM {rows} ON CONFLICT DO NOTHING
                RETURNING account, metric, value),
     added AS (INSERT INTO totals SELECT account, metric, sum(value)::int8, count(*) FROM stored
               GROUP BY account, metric ORDER BY account, metric
               ON CONFLICT (account, metric) DO UPDATE
               SET value = totals.value + excluded.value, count = totals.count + excluded.count)
SELECT count(*) FROM stored
"""
ARRAYS = "unnest($1::text[], $2::uuid[], $3::int2[], $4::int8[], $5::int8[])"
STAGING = """
CREATE TEMPORARY TABLE staging (account text, id uuid, metric int2, value int8, at int8)
    ON COMMIT DELETE ROWS
"""
COPY = b"COPY staging FROM STDIN (FORMAT binary); EXECUTE store"
COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
COPY_END = b"\xff\xff"
OIDS = {"account": 25, "id": 2950, "metric": 21, "value": 20, "at": 20}
TYPES = {"account": f"S{ACCOUNT_SIZE}", "id": "V16", "metric": ">i2", "value": ">i8", "at": ">i8"}


class ArraysPeer:
    """Sends a request as five binary arrays to a prepared statement, on many connections."""

    def __init__(self, directory: Path, slots: int) -> None:
        self.directory, self.slots = directory, slots

    def connect(self, bodies: list[Body]) -> None:
        self.bodies = [arrays_of(body) for body in bodies]
        self.connections = [connect(self.directory).pgconn for _ in range(self.slots)]
        self.poll = select.epoll()
        self.slot_of = {}
        self.last: list[list[bytes]] = [[] for _ in range(self.slots)]
        for slot, connection in enumerate(self.connections):
            check(connection.prepare(b"store", STORE.format(rows=ARRAYS).encode()))
            connection.nonblocking = 1
            self.poll.register(connection.socket, select.EPOLLIN)
            self.slot_of[connection.socket] = slot

    def send(self, slot: int, body: int, random: np.random.Generator) -> None:
        arrays = self.bodies[body]
        refresh(arrays["id"][1]["data"], arrays["at"][1]["data"], random)
        self.last[slot] = [head + rows.tobytes() for head, rows in arrays.values()]
        self.send_last(slot)

    def send_last(self, slot: int) -> None:
        connection = self.connections[slot]
        connection.send_query_prepared(b"store", self.last[slot], [1] * len(OIDS))
        while connection.flush():
            select.select([], [connection.socket], [])

    def wait(self) -> list[int]:
        done: list[int] = []
        while not done:
            for socket, _ in self.poll.poll():
                slot = self.slot_of[socket]
                if self.take(slot) is not None:
                    done.append(slot)
        return done

    def take(self, slot: int) -> int | None:
        """How many events were stored, or None while the answer is not there."""
        connection = self.connections[slot]
        connection.consume_input()
        if connection.is_busy():
            return None
        stored = check(connection.get_result())
        while connection.get_result() is not None:
            pass
        return stored

    def resend(self, slot: int) -> int:
        self.send_last(slot)
        while (stored := self.take(slot)) is None:
            select.select([self.connections[slot].socket], [], [])
        return stored


class CopyPeer:
    """Sends a request by COPY into a temporary table, on one connection."""

    slots = 1

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.number = 0
        self.last = b""

    def connect(self, bodies: list[Body]) -> None:
        self.bodies = [copy_rows_of(body) for body in bodies]
        self.connection = connect(self.directory).pgconn
        check(self.connection.exec_(STAGING.encode()))
        check(self.connection.exec_(f"PREPARE store AS {STORE.format(rows='staging')}".encode()))

    def send(self, slot: int, body: int, random: np.random.Generator) -> None:
        rows = self.bodies[body]
        refresh(rows["id"], rows["at"], random)
        self.last = COPY_HEADER + rows.tobytes() + COPY_END

    def wait(self) -> list[int]:
        self.copy()
        return [0]

    def resend(self, slot: int) -> int:
        return self.copy()

    def copy(self) -> int:
        """COPY and the statement travel together: one round trip, one transaction."""
        connection = self.connection
        connection.send_query(COPY)
        connection.get_result()
        connection.put_copy_data(self.last)
        connection.put_copy_end()
        stored = 0
        while (result := connection.get_result()) is not None:
            stored = check(result)
        return stored


def arrays_of(body: Body) -> dict[str, tuple[bytes, Any]]:
    """Binary arrays: a head, then length and data of each element."""
    count, columns = len(body.account), columns_of(body)
    arrays = {}
    for name, kind in TYPES.items():
        rows = np.zeros(count, [("length", ">i4"), ("data", kind)])
        rows["length"] = rows["data"].dtype.itemsize
        if name in columns:
            rows["data"] = columns[name]
        arrays[name] = (np.array([1, 0, OIDS[name], count, 1], ">i4").tobytes(), rows)
    return arrays


def copy_rows_of(body: Body) -> Any:
    """Rows of binary COPY: the number of fields, then length and data of each."""
    fields = [("fields", ">i2")]
    for name, kind in TYPES.items():
        fields += [(f"{name}_length", ">i4"), (name, kind)]
    rows = np.zeros(len(body.account), fields)
    rows["fields"] = len(TYPES)
    columns = columns_of(body)
    for name in TYPES:
        rows[f"{name}_length"] = rows[name].dtype.itemsize
        if name in columns:
            rows[name] = columns[name]
    return rows


def columns_of(body: Body) -> dict[str, Any]:
    return {"account": body.names(), "metric": body.metric, "value": body.value}


def refresh(ids: Any, at: Any, random: np.random.Generator) -> None:
    """Make a body a new request: ids never used before, and the time."""
    ids[:] = random.bit_generator.random_raw(2 * len(ids)).view("V16")
    at[:] = time.time_ns()


def connect(directory: Path) -> Any:
    import psycopg

    return psycopg.connect(host=str(directory), user=USER, dbname=USER, autocommit=True)


def check(result: Any) -> int:
    """The number a result holds, 0 if none. Raises when the server refused."""
    if result.error_message:
        raise RuntimeError(result.error_message.decode())
    return int(result.get_value(0, 0)) if result.ntuples else 0


def find_postgres(name: str) -> str:
    """Debian keeps the server's programs out of the path."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return str(places[0]) if places else find_program(name, INSTALL)


@contextmanager
def server(parent: Path) -> Iterator[Path]:
    """A fresh PostgreSQL in a directory of its own, which is also where its socket is."""
    with peer_directory(parent, "pg-", USER) as (directory, identity):
        make = [find_postgres("initdb"), "--no-sync", "-D", str(directory), "-U", USER]
        more = ["-A", "trust", "-E", "UTF8", "--locale=C"]
        subprocess.run([*make, *more], check=True, stdout=subprocess.DEVNULL, **identity)
        start = [find_postgres("postgres"), "-D", str(directory), "-k", str(directory)]
        settings = [f"--{key}={value}" for key, value in SETTINGS.items()]
        with running([*start, *settings], directory, identity) as process:
            attempt = lambda: connect(directory).execute(TABLES).connection.close()  # noqa: E731
            await_server(process, attempt)
            yield directory


def verify(directory: Path, shape: Shape, measured: Measurement) -> bool:
    """Whether every total, and the number of events, is what the clients sent."""
    found = np.zeros(shape.accounts * shape.metrics, np.int64)
    numbers = {account_name(number).decode(): number for number in range(shape.accounts)}
    with connect(directory) as connection:
        totals = connection.execute("SELECT account, metric, value FROM totals")
        for account, metric, value in totals:
            found[numbers[account] * shape.metrics + metric] = value
        (events,) = connection.execute("SELECT count(*) FROM events").fetchone()
    sums_equal = bool((found == measured.sums).all())
    return sums_equal and events == measured.sent and measured.resent_stored == 0


def log_bytes(directory: Path) -> int:
    with connect(directory) as connection:
        return int(connection.execute("SELECT pg_current_wal_lsn() - '0/0'").fetchone()[0])


def run_postgres(
    shape: Shape, connections: int, method: str = "arrays", parent: Path = Path("/tmp")
) -> dict[str, Any]:
    """Measure a fresh server; connections are spread over client processes. Verified."""
    with server(parent) as directory:
        before = (directory_size(directory / "base"), log_bytes(directory))
        if method == "copy":
            measured = run_clients(lambda: CopyPeer(directory), shape, connections)
        else:
            processes = min(2, connections)
            slots = connections // processes
            measured = run_clients(lambda: ArraysPeer(directory, slots), shape, processes)
        verified = verify(directory, shape, measured)
        log = log_bytes(directory) - before[1]
        with connect(directory) as connection:
            connection.execute("CHECKPOINT")
            (version,) = connection.execute("SHOW server_version").fetchone()
        tables = directory_size(directory / "base") - before[0]
    return {
        "peer": "postgresql",
        "version": version,
        "method": method,
        "batch": shape.batch,
        "connections": connections,
        "verified": verified,
        "table_bytes_per_event": round(tables / measured.sent, 1),
        "log_bytes_per_event": round(log / measured.sent, 1),
        **measured.document(),
    }

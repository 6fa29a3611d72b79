"""Stores for copies keep one contract: a directory, and a bucket of a real S3 service."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meterd.actors.housekeeping import object_store
from meterd.actors.housekeeping.object_store import DirectoryStore, ObjectStore, Stored, open_store
from meterd.protocol.errors import BadRequest, DiskFull, Exists, NotFound, StoreFailed
from tests.support.s3_server import BUCKET, S3Server

LARGE = 16 << 20  # from here on an object goes to S3 in parts


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    pytest.importorskip("boto3", reason="meterd[s3] is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    with S3Server() as started:
        yield started


@pytest.fixture(params=["directory", "s3", "s3 with a prefix"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "directory":
        yield open_store(f"file://{tmp_path}")
        return
    server = request.getfixturevalue("server")
    patched = pytest.MonkeyPatch()
    for name, value in server.environment.items():
        patched.setenv(name, value)
    made = open_store(f"s3://{BUCKET}" + ("/some/where/" if "prefix" in request.param else ""))
    yield made
    for stored in list(made.list()):
        made.delete(stored.name)
    patched.undo()


def put(store: ObjectStore, name: str, content: bytes) -> None:
    store.put(name, io.BytesIO(content))


def get(store: ObjectStore, name: str) -> bytes:
    return b"".join(store.get(name))


def test_what_goes_while_it_is_listed_is_not_there(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for name in ("a/1", "b/1", "c/1"):
        put(store, name, b"x")
    found = store.list()
    assert next(found).name == "a/1"
    shutil.rmtree(tmp_path / "b")
    assert [one.name for one in found] == ["c/1"]


@pytest.mark.parametrize("size", [0, 1, 3 * object_store.PIECE_SIZE + 7, LARGE, LARGE + 5])
def test_what_is_put_is_got(store: ObjectStore, size: int) -> None:
    content = os.urandom(size)
    put(store, "a/b/c.log", content)
    assert get(store, "a/b/c.log") == content
    assert store.size("a/b/c.log") == size
    assert list(store.list()) == [Stored("a/b/c.log", size)]


@pytest.mark.parametrize("size", [3, LARGE])
def test_an_object_is_never_replaced(store: ObjectStore, size: int) -> None:
    put(store, "one", b"old")
    with pytest.raises(Exists):
        put(store, "one", bytes(size))
    assert get(store, "one") == b"old"


@pytest.mark.parametrize("first", [b"mine", b"that", b"another"])
def test_an_answer_that_is_lost_is_no_refusal(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    """The library sends a request again, and finds what it has stored; or what another has."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    store: Any = open_store(f"s3://{BUCKET}/lost")
    send = store._client.put_object

    def send_twice(**request: Any) -> None:
        send(**request | {"Body": first})
        send(**request)

    store._client.put_object = send_twice
    if first == b"mine":
        put(store, "one", b"mine")
    else:
        with pytest.raises(Exists):
            put(store, "one", b"mine")
    assert get(store, "one") == first
    store.delete("one")


@pytest.mark.parametrize("size", [5, LARGE + 5])
def test_a_source_that_fails_leaves_nothing(store: ObjectStore, size: int) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if piece := super().read(size):
                return piece
            raise KeyError("cancelled")

    with pytest.raises(KeyError):
        store.put("one", Failing(bytes(size)))
    assert store.size("one") is None
    assert list(store.list()) == []
    put(store, "one", b"again")
    assert get(store, "one") == b"again"


def test_objects_are_listed_by_the_beginning_of_their_names(store: ObjectStore) -> None:
    for name in ("b/2", "a/1", "b/1", "b-1"):
        put(store, name, name.encode())
    assert [stored.name for stored in store.list()] == ["a/1", "b-1", "b/1", "b/2"]
    assert [stored.name for stored in store.list("b/")] == ["b/1", "b/2"]
    assert [stored.name for stored in store.list("b")] == ["b-1", "b/1", "b/2"]
    assert list(store.list("c")) == []


def test_what_is_deleted_has_gone(store: ObjectStore) -> None:
    put(store, "a/1", b"x")
    store.delete("a/1")
    store.delete("a/1")
    store.delete("never/was")
    assert store.size("a/1") is None
    with pytest.raises(NotFound):
        get(store, "a/1")


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../b", ".a", "a b", "a\n"])
def test_a_name_leads_nowhere_else(store: ObjectStore, name: str) -> None:
    for call in (store.size, store.delete, lambda n: put(store, n, b""), lambda n: get(store, n)):
        with pytest.raises(BadRequest):
            call(name)


@pytest.mark.parametrize("url", ["", "data", "./data", "s3://", "s3://B/x", "http://a/b"])
def test_a_store_has_a_whole_address(url: str) -> None:
    with pytest.raises(BadRequest):
        open_store(url)


@pytest.mark.parametrize("bucket", ["x", "B", "b_c", "-bc", "a" * 64, ""])
def test_what_is_wrong_with_a_bucket_is_said(bucket: str) -> None:
    with pytest.raises(BadRequest, match=f"'{bucket}' is no name of a bucket: 3 to 63"):
        open_store(f"s3://{bucket}/y")


def test_a_directory_that_is_not_there_is_no_store(tmp_path: Path) -> None:
    """It may be a volume that is not mounted: what is written there would be lost."""
    store = DirectoryStore(str(tmp_path / "mount"))
    for call in (
        lambda: put(store, "a", b""),
        lambda: get(store, "a"),
        lambda: store.size("a"),
        lambda: list(store.list()),
    ):
        with pytest.raises(StoreFailed, match="no such directory"):
            call()
    assert not (tmp_path / "mount").exists()


def test_what_a_crash_left_is_no_object(tmp_path: Path) -> None:
    (tmp_path / ".one.tmp").write_bytes(b"half")
    store = DirectoryStore(str(tmp_path))
    assert list(store.list()) == []
    put(store, "one", b"whole")
    assert get(store, "one") == b"whole"
    assert os.listdir(tmp_path) == ["one"]


def test_what_was_there_counts_only_when_it_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(_: Any) -> None:
        raise Killed

    store = DirectoryStore(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(object_store, "sync_directory", kill)
        with pytest.raises(Killed):
            put(store, "a/b/one", b"whole")
    synced: list[Path] = []
    monkeypatch.setattr(object_store, "sync_directory", synced.append)
    with pytest.raises(Exists):
        put(store, "a/b/one", b"whole")
    assert synced == [tmp_path / "a" / "b", tmp_path / "a", tmp_path]


def test_a_directory_without_hard_links_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    store = DirectoryStore(str(tmp_path))
    put(store, "one", b"old")
    with pytest.raises(Exists):
        put(store, "one", b"new")
    assert get(store, "one") == b"old"


def test_a_full_directory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise DiskFull("No space left on device")

    monkeypatch.setattr(object_store, "write_all", full)
    with pytest.raises(DiskFull, match=f"{tmp_path}: one: No space left"):
        put(DirectoryStore(str(tmp_path)), "one", b"x")
    assert os.listdir(tmp_path) == []


def test_a_sync_that_fails_is_the_stores_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not end the node, as one of the data directory does."""

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fdatasync", fail)
    with pytest.raises(StoreFailed):
        put(DirectoryStore(str(tmp_path)), "one", b"x")
    assert os.listdir(tmp_path) == []


def test_a_bucket_that_is_not_there_is_named(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://elsewhere")
    with pytest.raises(StoreFailed, match="elsewhere"):
        put(store, "one", b"x")


def test_a_service_that_is_not_there_is_named(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(StoreFailed, match=r"127\.0\.0\.1:1"):
        open_store(f"s3://{BUCKET}").size("one")

"""Objects in a bucket of Amazon S3, or of any service that speaks its protocol.

Address and credentials come from where every program takes them: `AWS_ENDPOINT_URL_S3`,
`AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`, files below `~/.aws`,
or the machine's role.  Needs the extra `meterd[s3]`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from meterd.actors.housekeeping.object_store import PIECE_SIZE, Source, Stored, check_name
from meterd.protocol.errors import BadRequest, Exists, NotFound, StoreFailed

# Larger objects are sent in parts of this size, of which one is in memory; 10,000 are allowed.
PART_SIZE = 16 << 20
CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 10, 60, 3
SCHEME = "s3://"
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# Not every service knows the condition "only if there is no such object yet".
UNKNOWN_CONDITION = ("NotImplemented", "501", "InvalidArgument")


class S3Store:
    """One bucket, and a prefix that all names get."""

    def __init__(self, url: str) -> None:
        self._bucket, _, prefix = url.removeprefix(SCHEME).rstrip("/").partition("/")
        if not BUCKET.fullmatch(self._bucket):
            raise BadRequest(
                f"{url}: {self._bucket!r} is no name of a bucket: 3 to 63 small letters, digits,"
                " dots and dashes, a letter or digit first and last"
            )
        self.url = url.rstrip("/")
        self._prefix = f"{check_name(prefix)}/" if prefix else ""
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with self._failures(""):
            self._client: Any = boto3.session.Session().client("s3", config=config)

    def put(self, name: str, source: Source) -> None:
        key = self._key(name)
        if self.size(name) is not None:
            raise Exists(f"{name} is there already")
        first = _read_part(source)
        if len(first) < PART_SIZE:
            self._put_whole(name, key, first)
        else:
            self._put_parts(name, key, first, source)

    def _put_whole(self, name: str, key: str, content: bytes) -> None:
        try:
            self._once(name, self._client.put_object, Key=key, Body=content)
        except Exists:
            # The answer to it may have been lost, and the library have sent it again.
            if self.size(name) != len(content) or b"".join(self.get(name)) != content:
                raise

    def _put_parts(self, name: str, key: str, part: bytes, source: Source) -> None:
        with self._failures(name):
            made = self._client.create_multipart_upload(Bucket=self._bucket, Key=key)
        upload = {"Bucket": self._bucket, "Key": key, "UploadId": made["UploadId"]}
        tags: list[dict[str, Any]] = []
        try:
            while part:
                number = len(tags) + 1
                with self._failures(name):
                    done = self._client.upload_part(**upload, PartNumber=number, Body=part)
                tags.append({"PartNumber": number, "ETag": done["ETag"]})
                part = _read_part(source)
            complete = self._client.complete_multipart_upload
            parts = {"UploadId": made["UploadId"], "MultipartUpload": {"Parts": tags}}
            self._once(name, complete, Key=key, **parts)
        except BaseException:
            with contextlib.suppress(ClientError, BotoCoreError):
                self._client.abort_multipart_upload(**upload)
            raise

    def _once(self, name: str, call: Any, **arguments: Any) -> None:
        """Make an object unless there is one."""
        with self._failures(name):
            try:
                call(Bucket=self._bucket, IfNoneMatch="*", **arguments)
            except ClientError as error:
                if _code(error) not in UNKNOWN_CONDITION:
                    raise
                call(Bucket=self._bucket, **arguments)

    def get(self, name: str) -> Iterator[bytes]:
        with self._failures(name):
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"]
            with contextlib.closing(body):
                # A connection that ends early is an error here, never a short object.
                yield from body.iter_chunks(PIECE_SIZE)

    def size(self, name: str) -> int | None:
        try:
            with self._failures(name):
                head = self._client.head_object(Bucket=self._bucket, Key=self._key(name))
                return int(head["ContentLength"])
        except NotFound:
            return None

    def list(self, prefix: str = "") -> Iterator[Stored]:
        with self._failures(prefix):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for found in page.get("Contents", ()):
                    yield Stored(found["Key"].removeprefix(self._prefix), int(found["Size"]))

    def delete(self, name: str) -> None:
        with self._failures(name):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    @contextlib.contextmanager
    def _failures(self, name: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = _code(error)
            if code in ("NoSuchKey", "404", "NotFound"):
                raise NotFound(f"{self.url} has no {name}") from error
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                raise Exists(f"{name} is there already") from error
            raise StoreFailed(f"{self.url}: {name}: {error}") from error
        except (BotoCoreError, OSError, ValueError) as error:
            raise StoreFailed(f"{self.url}: {name}: {error}") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _read_part(source: Source) -> bytes:
    """Return the next bytes, less than a part only at the end."""
    pieces, size = [], 0
    while size < PART_SIZE and (piece := source.read(min(PIECE_SIZE, PART_SIZE - size))):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)

"""A real S3 service for tests: moto's server in a process of its own, with one bucket."""

from __future__ import annotations

import socket
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from tests.support.ports import free_ports
from tests.support.waiting import eventually

BUCKET = "metering"
START_SECONDS = 60.0
ARGUMENTS = {"region_name": "us-east-1", "aws_access_key_id": "k", "aws_secret_access_key": "s"}


class S3Server:
    """with S3Server() as server: it answers, and `server.environment` leads programs to it."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        code = "import sys; from moto.server import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(self._answers, "the S3 service answers", START_SECONDS)
        self.client().create_bucket(Bucket=BUCKET)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def client(self) -> Any:
        """Return a client of the service."""
        import boto3

        return boto3.client("s3", endpoint_url=self.url, **ARGUMENTS)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the S3 service has ended"
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

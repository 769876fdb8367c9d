"""Servers of object stores as processes, and their content as seen without this project's code."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

import httpx

_AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=unchecked"
)

_S3 = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
_GS = """
import sys
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
server.start()
print(server._api._httpd.server_port, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class S3Server:
    """A server that speaks S3.

    Attributes:
        url: address of the server.
        environment: variables with which clients use it.
    """

    url: str
    environment: Mapping[str, str]

    def put(self, key: str, content: bytes) -> None:
        """Create an object `BUCKET/KEY`, and the bucket."""
        self._request("PUT", key.partition("/")[0])
        self._request("PUT", key, content).raise_for_status()

    def get(self, key: str) -> bytes | None:
        """Return the content of an object; None if there is none."""
        response = self._request("GET", key)
        if response.status_code == 404:
            return None
        return response.raise_for_status().content

    def get_size(self, key: str) -> int | None:
        """Return the size of an object; None if there is none."""
        response = self._request("HEAD", key)
        if response.status_code == 404:
            return None
        return int(response.raise_for_status().headers["content-length"])

    def count_uploads(self, bucket: str) -> int:
        """Return the number of uploads in parts that were begun and not completed."""
        return self._request("GET", f"{bucket}?uploads").text.count("<UploadId>")

    def remove(self, key: str) -> None:
        """Remove an object."""
        self._request("DELETE", key).raise_for_status()

    def list_keys(self, bucket: str) -> list[str]:
        """Return the names of the objects of a bucket."""
        tree = ElementTree.fromstring(self._request("GET", f"{bucket}?list-type=2").text)
        return [key.text or "" for key in tree.iter() if key.tag.endswith("}Key")]

    def _request(self, method: str, key: str, content: bytes | None = None) -> httpx.Response:
        headers = {"Authorization": _AUTHORIZATION}
        return httpx.request(method, f"{self.url}/{key}", content=content, headers=headers)


@contextlib.contextmanager
def run_s3_server(**environment: str) -> Iterator[S3Server]:
    """Run moto's server as a process; `environment` has its settings."""
    with _run_server(_S3, environment) as port:
        url = f"http://127.0.0.1:{port}"
        yield S3Server(
            url,
            {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            },
        )


@contextlib.contextmanager
def run_gs_server() -> Iterator[Mapping[str, str]]:
    """Run an emulator of Google Cloud Storage; return the variables with which clients use it.

    It has the bucket `bucket`.
    """
    with _run_server(_GS, {}) as port:
        yield {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            # Otherwise clients look for the credentials of a machine in Google's cloud.
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }


@contextlib.contextmanager
def _run_server(program: str, environment: Mapping[str, str]) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()

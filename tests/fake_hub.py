"""A hub on 127.0.0.1 with what `huggingface_hub` calls to create and fill a dataset repository.

Files are kept in memory, and large ones are uploaded by the protocol of Git LFS, in one request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub.constants
import pytest
import yaml

TOKEN = "hf_fake_token_of_a_test"
READ_TOKEN = "hf_fake_token_that_only_reads"


@dataclass
class Repository:
    """A dataset repository.

    Attributes:
        private: whether it is private.
        commits: the files after each commit.
        messages: message of each commit.
        lfs: names of files that are stored as large files.
    """

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])
    lfs: set[str] = field(default_factory=set)

    @property
    def files(self) -> dict[str, bytes]:
        """The files after the last commit."""
        return self.commits[-1]

    @property
    def head(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    def write(self, **files: bytes) -> None:
        """Commit files as another client would."""
        self.commits.append({**self.files, **files})
        self.messages.append("by another client")

    def describe(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        described = {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
        if path in self.lfs:
            digest = hashlib.sha256(content).hexdigest()
            described["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 128}
        return described


class FakeHub:
    """The hub.

    Attributes:
        repositories: repositories by name.
        namespaces: users and organizations in which the token may write.
        requests: method and path of each request.
        tokens: the `Authorization` header of each request.
        before: called with method and path before each response; returns a status to refuse with.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.namespaces = {"org"}
        self.requests: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.before: Callable[[str, str], int | None] = lambda method, path: None
        self._objects: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._build_handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, method: str, pattern: str) -> int:
        """Return the number of requests whose path matches."""
        return sum(m == method and bool(re.search(pattern, path)) for m, path in self.requests)

    def respond(self, method: str, path: str, token: str, body: bytes) -> Answer:
        if method == "PUT":
            digest = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == digest
            self._objects[digest] = body
            return Answer({})
        if path == "/api/whoami-v2":
            return Answer({"type": "user", "name": "me", "orgs": [{"name": "org"}]})
        if path == "/api/repos/create":
            return self._create(token, json.loads(body))
        if path == "/api/validate-yaml":
            return validate_yaml(json.loads(body)["content"])
        match = re.match(r"/(?:api/)?datasets/([\w.-]+/[\w.-]+?)(?:\.git)?(?:/(.*))?$", path)
        if match is None:
            return Answer({"error": f"no route {path}"}, 404)
        name, rest = match[1], match[2] or ""
        repository = self.repositories.get(name)
        if repository is None:
            return Answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if rest.startswith("resolve/"):
            return resolve(repository, rest)
        if rest.startswith("paths-info/"):
            paths = parse_qs(body.decode()).get("paths", [])
            return Answer([repository.describe(p) for p in paths if p in repository.files])
        if rest.startswith("tree/"):
            return list_folder(repository, rest)
        if rest.partition("/")[0] in ("", "revision"):
            siblings = [{"rfilename": path} for path in [".gitattributes", *repository.files]]
            described = {"id": name, "sha": repository.head, "siblings": siblings}
            return Answer({**described, "private": repository.private})
        if not self._may_write(token, name):
            return Answer({"error": "Forbidden"}, 403)
        if rest == "auth-check/write":
            return Answer({})
        content = body.decode()
        if rest.startswith("preupload/"):
            return Answer(
                {"files": [plan_file(repository, f) for f in json.loads(content)["files"]]}
            )
        if rest == "info/lfs/objects/batch":
            return Answer(
                {"objects": [self._plan_object(o) for o in json.loads(content)["objects"]]}
            )
        if rest == "commit/main":
            return self._commit(name, repository, content)
        return Answer({"error": f"no route {path}"}, 404)

    def _may_write(self, token: str, name: str) -> bool:
        return token == TOKEN and name.partition("/")[0] in self.namespaces

    def _create(self, token: str, wanted: dict[str, Any]) -> Answer:
        name = f"{wanted['organization']}/{wanted['name']}"
        assert wanted["type"] == "dataset"
        if not self._may_write(token, name):
            return Answer({"error": "You don't have the rights"}, 403)
        if name in self.repositories:
            return Answer({"error": "You already created this dataset repo"}, 409)
        self.repositories[name] = Repository(wanted.get("visibility") == "private")
        return Answer({"url": f"{self.url}/datasets/{name}"})

    def _plan_object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        planned = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self._objects:
            return planned
        return {**planned, "actions": {"upload": {"href": f"{self.url}/objects/{wanted['oid']}"}}}

    def _commit(self, name: str, repository: Repository, content: str) -> Answer:
        files = dict(repository.files)
        for line in map(json.loads, content.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                if value.get("parentCommit", repository.head) != repository.head:
                    return Answer({"error": "A commit has happened since"}, 412)
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert key == "lfsFile"
                files[value["path"]] = self._objects[value["oid"]]
                repository.lfs.add(value["path"])
        repository.commits.append(files)
        repository.messages.append(message)
        url = f"{self.url}/datasets/{name}/commit/{repository.head}"
        return Answer({"commitUrl": url, "commitOid": repository.head, "pullRequestUrl": None})

    def _build_handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                body = self.read_body()
                path = unquote(urlsplit(self.path).path)
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                hub.requests.append((self.command, path))
                hub.tokens.append(token)
                status = hub.before(self.command, path)
                if status is not None:
                    answer = Answer({"error": "refused by the test"}, status)
                elif self.command != "PUT" and token not in (TOKEN, READ_TOKEN):
                    answer = Answer({"error": "Invalid credentials in Authorization header"}, 401)
                else:
                    answer = hub.respond(self.command, path, token, body)
                if answer.status == 200 and "Range" in self.headers:
                    answer = answer.cut(self.headers["Range"])
                self.send_response(answer.status)
                for header, value in answer.headers.items():
                    self.send_header(header, value)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.content)

            do_GET = do_HEAD = do_POST = do_PUT = handle_request

            def read_body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


class Answer:
    """A response: JSON data or bytes, a status and headers."""

    def __init__(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.status = status
        self.headers = headers or {}

    def cut(self, wanted: str) -> Answer:
        """Return the response to a request with the header `Range: bytes=FIRST-LAST`."""
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        return Answer(self.content[first : last + 1], 206, self.headers)


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def validate_yaml(card: str) -> Answer:
    _, _, rest = card.partition("---\n")
    try:
        yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError as error:
        return Answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return Answer({"errors": [], "warnings": []})


def resolve(repository: Repository, rest: str) -> Answer:
    path = rest.split("/", 2)[2]
    commit = {"X-Repo-Commit": repository.head}
    if path not in repository.files:
        return Answer({"error": "none"}, 404, {"X-Error-Code": "EntryNotFound", **commit})
    content = repository.files[path]
    return Answer(content, headers={"ETag": f'"{git_id(content)}"', **commit})


def list_folder(repository: Repository, rest: str) -> Answer:
    """Return the files and folders in a folder, as `tree/REVISION/FOLDER` names it."""
    folder = "".join(f"{name}/" for name in rest.split("/")[2:] if name)
    inside = [path for path in repository.files if path.startswith(folder)]
    if folder and not inside:
        return Answer({"error": "none"}, 404, {"X-Error-Code": "EntryNotFound"})
    folders = {
        path[: path.index("/", len(folder))] for path in inside if "/" in path[len(folder) :]
    }
    described = [{"type": "directory", "path": path, "oid": git_id(b"")} for path in folders]
    files = [repository.describe(path) for path in inside if "/" not in path[len(folder) :]]
    return Answer(described + files)


def plan_file(repository: Repository, wanted: dict[str, Any]) -> dict[str, Any]:
    path = wanted["path"]
    planned = {
        "path": path,
        "uploadMode": "lfs" if path.endswith(".parquet") else "regular",
        "shouldIgnore": False,
    }
    if path in repository.files:
        described = repository.describe(path)
        planned["oid"] = described.get("lfs", described)["oid"]
    return planned


@contextmanager
def run_fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.stop()


def use_in_this_process(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `huggingface_hub`, which reads its variables at its import, use the hub."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name, value in {
        "ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )


def get_variables(hub: FakeHub) -> dict[str, str]:
    """Return variables with which another process uses the hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }

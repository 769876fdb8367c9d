"""Small and large bodies that cost more than they should, and clients that do not read or send on.

What is measured, on services of our own without Ray:

- 2 MB of wrong items, or of unknown fields, to several routes: the time of the answer, how much
  memory the service takes more at its peak, and the slowest answer of `/health` meanwhile.
- 31 MB of empty lists, empty objects, fields, nested ones, and of numbers: the same.
- An ordinary post of 20,000 conversations of five messages to `/v1/render`: it has to be let in.
- Nine bodies of one key that stop before their end: whether another key is answered.
- Requests for the host `evil.example`: whether they are answered.
- Eight answers of `/v1/render` that nobody reads: the memory that they hold, before and after the
  time limit (`answer_timeout_s`), and connections that are still open after it.

What is wanted is for one idle core: on a busy machine times are longer. The last line is one JSON
object.

    python tests/stress/attack_bodies.py [--megabytes 2] [--large 31] [--only NAME]...
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from service import Service, parser_of, service_of
from stress_result import finish

MIB = 2**20
SMALL_S, SMALL_MIB, HEALTH_S = 0.2, 50, 0.1
LARGE_S = 1.0
_KEYS = ("alpha-key-0123456789abcdef", "beta-key-0123456789abcdef0")
_BODY_BYTES = 32 * MIB
_ANSWER_TIMEOUT_S = 20
_MOST_MIB = 9_000  # a service that takes more is ended
_SMALL = {
    "conversations": [[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]]
}


@dataclass(frozen=True)
class Seen:
    """What a body did."""

    status: int | str
    seconds: float
    more_mib: float
    health_s: float
    says: str

    def figures(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "s": round(self.seconds, 2),
            "more_mib": round(self.more_mib),
            "health_s": round(self.health_s, 3),
        }


def memory_mib(pid: int, name: str) -> float:
    """A line of a process's status, such as VmRSS or its peak VmHWM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} has no {name}")


class Health:
    """Asks `/health` all the time; the slowest answer counts."""

    def __init__(self, service: Service) -> None:
        self.slowest_s = 0.0
        self._service = service
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Health:
        self._thread.start()
        time.sleep(0.3)
        self.slowest_s = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        url = httpx.URL(self._service.url)
        connection = http.client.HTTPConnection(url.host, url.port, timeout=300)
        while not self._over.wait(0.005):
            assert self._service.pid is not None
            if memory_mib(self._service.pid, "VmRSS") > _MOST_MIB:
                os.kill(self._service.pid, signal.SIGKILL)
                return
            began = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self.slowest_s = max(self.slowest_s, time.perf_counter() - began)


def attacked(service: Service, path: str, body: bytes) -> Seen:
    """Post a body, and watch the service meanwhile."""
    assert service.pid is not None
    Path(f"/proc/{service.pid}/clear_refs").write_text("5")  # the peak begins anew
    before = memory_mib(service.pid, "VmRSS")
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {_KEYS[0]}"}
    with Health(service) as health:
        began = time.perf_counter()
        try:
            answer = httpx.post(
                service.url + path, content=body, headers=headers, timeout=300, trust_env=False
            )
            status, says = answer.status_code, answer.text[:160]
        except httpx.HTTPError as error:
            status, says = type(error).__name__, ""
        took = time.perf_counter() - began
        time.sleep(0.3)
    more = memory_mib(service.pid, "VmHWM") - before - len(body) / MIB
    return Seen(status, took, more, health.slowest_s, says)


def filled(begin: bytes, unit: bytes, end: bytes, size: int) -> bytes:
    """A body of so many bytes: a unit again and again, its last comma left out."""
    return begin + (unit * (size // len(unit)))[:-1] + end


def fields(size: int) -> bytes:
    return b"{" + b",".join(b'"%07x":1' % number for number in range(size // 12)) + b"}"


def small_bodies(size: int) -> Iterator[tuple[str, str, bytes]]:
    """Name, route and body."""
    # A list of nothing but integers would be one conversation of token ids.
    lists = (
        ("/v1/score/evaluation", b'{"messages":['),
        ("/v1/chat/completions", b'{"messages":['),
        ("/get_reward", b'{"query":['),
        ("/remote_rm", b'{"response":"x","prompt":['),
        ("/rerank", b'{"query":"x","texts":['),
        ("/classify", b'{"input":["",'),
        ("/v1/score", b'{"conversations":['),
        ("/v1/rank", b'{"prompt":"x","responses":['),
    )
    for path, begin in lists:
        for unit in (b"1,", b"{},"):
            yield f"{unit[:-1].decode()} to {path}", path, filled(begin, unit, b"]}", size)
    for path in ("/v1/score", "/v1/compare", "/get_reward"):
        yield f"fields to {path}", path, fields(size)


def large_bodies(size: int) -> Iterator[tuple[str, str, bytes]]:
    begin = b'{"conversations":['
    for unit in (b"[],", b"{},", b'{"":[{"":[[]]}]},', b"1,", b'"",'):
        yield f"{unit[:-1].decode()} to /v1/score", "/v1/score", filled(begin, unit, b"]}", size)
    yield '"":0 to /v1/score', "/v1/score", filled(b'{"model":{', b'"":0,', b"}}", size)
    yield "fields to /v1/score", "/v1/score", fields(size)


def wrong(service: Service, options: argparse.Namespace) -> tuple[dict[str, bool], dict[str, Any]]:
    found: dict[str, Any] = {}
    checks = {}
    for name, path, body in small_bodies(int(options.megabytes * MIB)):
        seen = attacked(service, path, body)
        print(f"{name}: {seen}", flush=True)
        found[name] = seen.figures()
        checks[f"{name}: refused in {SMALL_S} s, +{SMALL_MIB} MiB, /health in {HEALTH_S} s"] = (
            seen.status in (400, 422)
            and seen.seconds <= SMALL_S
            and seen.more_mib <= SMALL_MIB
            and seen.health_s <= HEALTH_S
        )
    return checks, found


def large(service: Service, options: argparse.Namespace) -> tuple[dict[str, bool], dict[str, Any]]:
    found: dict[str, Any] = {}
    checks = {}
    for name, path, body in large_bodies(int(options.large * MIB)):
        seen = attacked(service, path, body)
        print(f"{name}: {seen}", flush=True)
        found[name] = seen.figures()
        numbers = name.startswith("1 ")  # which are parsed: token ids come in such bodies
        checks[f"{name}: refused, /health in {HEALTH_S} s"] = (
            seen.status == 400
            and seen.health_s <= HEALTH_S
            and (numbers or seen.seconds <= LARGE_S)
        )
    message = [{"role": role, "content": role} for role in ("user", "assistant")]
    messages = [{"role": "system", "content": "s"}, *message, *message]
    body = json.dumps({"conversations": [messages] * 20_000}).encode()
    seen = attacked(service, "/v1/render", body)
    print(f"ordinary: {seen}", flush=True)
    return checks | {"20,000 conversations are let in": seen.status == 200}, found | {
        "20,000 conversations of 5 messages": seen.figures()
    }


def head(path: str, length: int, key: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json",
        f"Content-Length: {length}", f"Authorization: Bearer {key}", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


def connected(service: Service, **options: int) -> socket.socket:
    url = httpx.URL(service.url)
    connection = socket.socket()
    for name, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    connection.settimeout(60)
    connection.connect((url.host, url.port))
    return connection


def stalled(service: Service, _: argparse.Namespace) -> tuple[dict[str, bool], dict[str, Any]]:
    """Nine bodies of one key that stop eight bytes before their end."""

    def other() -> int:
        headers = {"Authorization": f"Bearer {_KEYS[1]}"}
        url = service.url + "/v1/score"
        return httpx.post(
            url, json=_SMALL, headers=headers, timeout=60, trust_env=False
        ).status_code

    before = other()
    with contextlib.ExitStack() as stack:
        for _number in range(9):
            connection = stack.enter_context(connected(service))
            with contextlib.suppress(OSError):  # it may be refused meanwhile
                connection.sendall(head("/v1/score", _BODY_BYTES, _KEYS[0]))
                connection.sendall(b" " * (_BODY_BYTES - 8))
        time.sleep(1)
        during = [other() for _ in range(3)]
    checks = {"another key is answered while nine bodies of one stall": set(during) == {200}}
    return checks, {"before": before, "during": during}


def hosts(service: Service, _: argparse.Namespace) -> tuple[dict[str, bool], dict[str, Any]]:
    found = {}
    for path in ("/", "/info", "/v1/models", "/health"):
        headers = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
        answer = httpx.get(service.url + path, headers=headers, trust_env=False)
        found[path] = answer.status_code
    answer = httpx.post(service.url + "/v1/score", json=_SMALL, headers=headers, trust_env=False)
    found["POST /v1/score"] = answer.status_code
    return {"requests for evil.example are refused": set(found.values()) == {421}}, found


def unread(service: Service, _: argparse.Namespace) -> tuple[dict[str, bool], dict[str, Any]]:
    """Eight answers that nobody reads."""
    assert service.pid is not None
    text = "word " * 400
    message = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    body = json.dumps({"conversations": [message] * 450}).encode()
    httpx.post(
        service.url + "/v1/render", content=body, headers={"Content-Type": "application/json"},
        timeout=300, trust_env=False,
    ).raise_for_status()  # fmt: skip
    before = memory_mib(service.pid, "VmRSS")
    with contextlib.ExitStack() as stack:
        connections = []
        for _number in range(8):
            connection = stack.enter_context(connected(service, SO_RCVBUF=4_096))
            connection.sendall(head("/v1/render", len(body), _KEYS[0]) + body)
            connection.recv(1)  # it has begun
            connections.append(connection)
        held = memory_mib(service.pid, "VmRSS") - before
        in_flight = service.metric("skyreward_requests_in_flight")
        time.sleep(_ANSWER_TIMEOUT_S + 3)
        after = memory_mib(service.pid, "VmRSS") - before
        still_open = sum(map(_is_open, connections))
    figures = {
        "held_mib": round(held),
        "in_flight": in_flight,
        "held_after_the_limit_mib": round(after),
        "still_open": still_open,
    }
    return {"connections whose answers nobody reads are ended": still_open == 0}, figures


def _is_open(connection: socket.socket) -> bool:
    # Of TCP_INFO, the first byte is the state; 1 is ESTABLISHED.
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1


_ATTACKS: dict[str, tuple[Callable[..., Any], bool]] = {
    "wrong": (wrong, True),
    "large": (large, True),
    "stalled": (stalled, True),
    "hosts": (hosts, False),
    "unread": (unread, False),
}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--megabytes", type=float, default=2, help="of wrong items")
    parser.add_argument("--large", type=float, default=31, help="megabytes of the large bodies")
    parser.add_argument("--only", action="append", choices=[*_ATTACKS], help="of these attacks")
    options = parser.parse_args()
    if options.url:
        parser.error("only a service of its own is attacked; leave --url out")
    checks: dict[str, bool] = {}
    figures: dict[str, Any] = {}
    for with_keys in (True, False):
        chosen = {
            name: attack
            for name, (attack, keyed) in _ATTACKS.items()
            if keyed == with_keys and name in (options.only or _ATTACKS)
        }
        settings: dict[str, Any] = {"api_keys": _KEYS} if with_keys else {}
        if "answer_timeout_s" in _setting_names() and not with_keys:
            settings["answer_timeout_s"] = _ANSWER_TIMEOUT_S
        for name, attack in chosen.items():
            with service_of(options, "--local", **settings) as service:
                found, figures[name] = attack(service, options)
            print(name, json.dumps(figures[name]), flush=True)
            checks |= found
    return finish(checks, figures)


def _setting_names() -> set[str]:
    """Of the version that is measured, which may be an older one."""
    from serve.config.settings import Settings

    return set(Settings.model_fields)


if __name__ == "__main__":
    sys.exit(main())

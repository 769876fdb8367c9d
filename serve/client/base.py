"""What both clients have in common: where they post, and what is asked of a call."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.request import getproxies

import httpx

from rm_core import Truncation, drop_nulls
from serve.client.batching import (
    MAX_BYTES_PER_REQUEST,
    MAX_ITEMS_PER_REQUEST,
    BatchCall,
    ScoringRoute,
)
from serve.client.bodies import MAX_ANSWER_BYTES, ResponseBody
from serve.client.endpoints import EndpointPool, is_loopback
from serve.client.errors import ServiceError
from serve.client.sansio import Sender

R = TypeVar("R")

_TIMEOUT_S = 600.0
# For the answer that the deadline has passed to arrive.
_GRACE_S, _LEAST_GRACE_S = 30.0, 5.0
# A machine that is cut off says nothing: asked after 15 s of silence, it is given up after 30.
# Names as far as the system has them.
_KEEPALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in {
        "TCP_KEEPIDLE": 15,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 30_000,
    }.items()
    if hasattr(socket, name)
]


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Everything about a client that travels with it.

    Attributes:
        urls: addresses of services that serve the same model.
        model: which of their models; None if they serve one.
        api_key: sent as `Authorization: Bearer`.
        retry_s: seconds after a request's first failure in which it is tried again; 0: each
            address once.
        timeout_s: deadline of each try, kept by the service; None: the service's own.
        num_posts: most posts at a time of one call, to each address.
        max_items: most conversations (pairs, responses) of a post.
        max_bytes: about the most bytes of a post; a longer conversation goes alone.
        max_answer_bytes: most bytes of an answer, unpacked.
    """

    urls: tuple[str, ...] = field(repr=False)
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    retry_s: float = 300.0
    timeout_s: float | None = None
    num_posts: int = 4
    max_items: int = MAX_ITEMS_PER_REQUEST
    max_bytes: int = MAX_BYTES_PER_REQUEST
    max_answer_bytes: int = MAX_ANSWER_BYTES

    @property
    def read_timeout_s(self) -> float:
        """Seconds after which a service that says nothing is left."""
        if self.timeout_s is None:
            return _TIMEOUT_S
        return self.timeout_s + min(_GRACE_S, max(_LEAST_GRACE_S, self.timeout_s))

    def build_httpx_kwargs(
        self,
        transport_class: type[httpx.HTTPTransport] | type[httpx.AsyncHTTPTransport],
        hosts: Iterable[str],
    ) -> dict[str, Any]:
        """Arguments of an httpx client.

        Args:
            made: type of its transports.
            hosts: of the addresses.
        """
        # One encoding, whose unpacking can be bounded.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if self.timeout_s is not None:
            headers["X-Request-Timeout-Seconds"] = f"{self.timeout_s:g}"
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=64)
        # No proxy stands between a machine and itself, whatever the environment says.
        mounts: dict[str, Any] = {
            f"all://{f'[{host}]' if ':' in host else host}": None
            for host in hosts
            if is_loopback(host)
        }
        if "all" not in getproxies():
            mounts["all://"] = transport_class(limits=limits, socket_options=_KEEPALIVE)
        return {
            "headers": headers,
            "timeout": httpx.Timeout(self.read_timeout_s, connect=10.0, pool=None),
            "limits": limits,
            "mounts": mounts,
        }


class BaseClient:
    """The base of both clients. Pickles: what travels is where it posts, not its connections.

    Attributes:
        options: where and how it posts.
        num_retries: times that something was sent again.
        fingerprint: of the model that gave the first reward; None before. Rewards of another are
            not mixed with its.
    """

    def __init__(self, options: ClientOptions) -> None:
        for name in ("num_posts", "max_items", "max_bytes", "max_answer_bytes"):
            if getattr(options, name) < 1:
                raise ServiceError(f"{name} is {getattr(options, name)}; give at least 1")
        self.options = options
        self.num_retries = 0
        self.fingerprint: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._sender = Sender(EndpointPool(options.urls), options.retry_s, self._count_retry)

    def __getstate__(self) -> ClientOptions:
        return self.options

    def __setstate__(self, options: ClientOptions) -> None:
        BaseClient.__init__(self, options)
        self._reset_pool()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options.model or 'the only model'} at " + (
            f"{', '.join(self._sender.endpoints.display_urls)})"
        )

    def _reset_pool(self) -> None:
        raise NotImplementedError

    def _build_call(
        self,
        route: ScoringRoute[R],
        items: Sequence[object],
        truncation: Truncation,
        *,
        tools: Any = None,
        **body: Any,
    ) -> BatchCall[R]:
        rest = {**body, "truncation": truncation} | ({} if tools is None else {"tools": tools})
        try:
            rest = {name: drop_nulls(value) for name, value in rest.items()}
        except RecursionError as error:
            raise ServiceError(f"the request cannot be sent as JSON: {error}") from None
        return BatchCall(route, items, self._add_model(rest))

    def _add_model(self, body: dict[str, Any]) -> dict[str, Any]:
        return body if self.options.model is None else {"model": self.options.model, **body}

    def _max_items_per_shard(self, num_items: int) -> int:
        """Of a post, so that every address has something to do."""
        share = math.ceil(num_items / len(self._sender.endpoints))
        return max(1, min(self.options.max_items, share))

    def _total_concurrency(self) -> int:
        return self.options.num_posts * len(self._sender.endpoints)

    def _check_fingerprints(self, call: BatchCall[R]) -> BatchCall[R]:
        """The same, if all its rewards and those before are of one model.

        Raises:
            ServiceError: they are not.
        """
        for fingerprint in call.fingerprints:
            with self._lock:
                self.fingerprint = first = self.fingerprint or fingerprint
            if fingerprint != first:
                raise ServiceError(
                    f"rewards of two models cannot be compared: the first ones were of {first}, "
                    f"now {fingerprint} answers; give addresses that serve the same model in the "
                    "same way, or make a new client if it was replaced on purpose"
                )
        return call

    def _build_httpx_kwargs(
        self, transport_class: type[httpx.HTTPTransport] | type[httpx.AsyncHTTPTransport]
    ) -> dict[str, Any]:
        return self.options.build_httpx_kwargs(transport_class, self._sender.endpoints.hosts)

    def _build_response_body(self, response: httpx.Response) -> ResponseBody:
        return ResponseBody(response, self.options.max_answer_bytes, self.options.read_timeout_s)

    def _count_retry(self) -> None:
        with self._lock:
            self.num_retries += 1


def build_options(url: str | Sequence[str], model: str | None, **fields: Any) -> ClientOptions:
    """Options from what a caller of a client gave.

    Raises:
        ServiceError: the API key is none.
    """
    urls = (url,) if isinstance(url, str) else tuple(url)
    options = ClientOptions(urls, model, **fields)
    if options.api_key is None:
        return options
    return replace(options, api_key=_clean_api_key(options.api_key))


def _clean_api_key(api_key: str) -> str:
    # Else the HTTP library refuses it, with an error that quotes it.
    if not api_key.isascii() or not api_key.isprintable() or not api_key.strip():
        raise ServiceError(
            "the API key is empty or has characters that no HTTP header can carry; give it as one "
            "line of ASCII"
        )
    return api_key.strip()

"""The base class of both clients, their options and their progress bar."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.request import getproxies

import httpx

from serve.client.endpoints import EndpointPool, is_loopback
from serve.client.errors import ModelChangedError, ServiceError
from serve.client.responses import MAX_ANSWER_BYTES, ResponseBody
from serve.client.sansio import (
    MAX_BYTES_PER_REQUEST,
    MAX_ITEMS_PER_REQUEST,
    BatchCall,
    RequestShard,
    Sender,
)

R = TypeVar("R")

_DEPRECATED_OPTIONS = {"num_posts": "max_concurrency", "retry_s": "retry_timeout_s"}
_TIMEOUT_S = 600.0
# Time for the service's deadline error to arrive.
_GRACE_S, _LEAST_GRACE_S = 30.0, 5.0
# Detect unreachable peers: probe after 15 s of silence, close the connection after 30 s.
# Options that the operating system lacks are skipped.
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
    """Options of a client, which are pickled with it.

    Attributes:
        urls: addresses of services that serve the same model.
        model: alias of the model; None if the services have one model.
        api_key: sent as `Authorization: Bearer`.
        retry_timeout_s: seconds after a request's first failure in which it is retried; 0: one
            try at each address.
        timeout_s: deadline of each try in seconds, enforced by the service; None: the service's
            default.
        max_concurrency: maximum number of concurrent requests of one call to each address.
        max_items: maximum number of conversations (pairs, responses) in a request.
        max_bytes: approximate maximum size of a request in bytes; a longer conversation is sent
            alone.
        max_answer_bytes: maximum size of a response in bytes, uncompressed.
        groups_prompts: whether items that begin alike go into the same request, so that the
            service can share the computation of their beginnings. All items of a call are then
            encoded before the first request is sent.
        fingerprint: expected fingerprint of the model; None: that of the first reward.
    """

    urls: tuple[str, ...] = field(repr=False)
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    retry_timeout_s: float = 300.0
    timeout_s: float | None = None
    max_concurrency: int = 4
    max_items: int = MAX_ITEMS_PER_REQUEST
    max_bytes: int = MAX_BYTES_PER_REQUEST
    max_answer_bytes: int = MAX_ANSWER_BYTES
    groups_prompts: bool = False
    fingerprint: dict[str, Any] | None = None

    @property
    def read_timeout_s(self) -> float:
        """Seconds without data from the service after which a request is abandoned."""
        if self.timeout_s is None:
            return _TIMEOUT_S
        return self.timeout_s + min(_GRACE_S, max(_LEAST_GRACE_S, self.timeout_s))

    def build_httpx_kwargs(
        self,
        transport_class: type[httpx.HTTPTransport] | type[httpx.AsyncHTTPTransport],
        hosts: Iterable[str],
    ) -> dict[str, Any]:
        """Return the keyword arguments of an httpx client."""
        # Accept only gzip, because its decompression can be bounded.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if self.timeout_s is not None:
            headers["X-Request-Timeout-Seconds"] = f"{self.timeout_s:g}"
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=64)
        # Never use a proxy for loopback addresses, whatever the environment says.
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


# Weights that are replaced during a call make it start again, at most so many times.
_MAX_RESTARTS = 3


class BaseClient:
    """Base class of both clients. Pickling keeps the options and drops the connections.

    Attributes:
        options: the client's options.
        num_retries: number of retried requests.
        fingerprint: expected fingerprint of the model, or that of the model that returned the
            first reward; None before that. Rewards with another fingerprint raise an error.
        model_fingerprints: as `fingerprint`, by model, of calls that name several models.
    """

    def __init__(self, options: ClientOptions) -> None:
        for name in ("max_concurrency", "max_items", "max_bytes", "max_answer_bytes"):
            if getattr(options, name) < 1:
                raise ServiceError(f"{name} is {getattr(options, name)}; give at least 1")
        self.options = options
        self.num_retries = 0
        self.fingerprint = options.fingerprint
        self.model_fingerprints: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._sender = self._build_sender(*options.urls)

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

    def _build_sender(self, *urls: str) -> Sender:
        return Sender(EndpointPool(urls), self.options.retry_timeout_s, self._count_retry)

    def _iter_shards(self, call: BatchCall[R]) -> Iterator[RequestShard]:
        """Yield the shards of a call, so many that every address has work."""
        num_shares = 1 if call.route.is_group else len(self._sender.endpoints)
        share = math.ceil(len(call.results) / num_shares)
        return call.iter_shards(
            max(1, min(self.options.max_items, share)),
            self.options.max_bytes,
            groups_prompts=self.options.groups_prompts,
        )

    def _total_concurrency(self) -> int:
        return self.options.max_concurrency * len(self._sender.endpoints)

    def _check_fingerprints(self, call: BatchCall[R]) -> bool:
        """Return whether the call's rewards and all earlier ones have the same fingerprint.

        A service may be given new weights between two calls. If that happens during a call, the
        result is False, and the call has to be sent again.

        Raises:
            ServiceError: the fingerprints differ otherwise.
        """
        in_call: dict[str | None, dict[str, Any]] = {}
        for model, fingerprint in call.fingerprints:
            first = in_call.setdefault(model, fingerprint)
            if fingerprint != first:
                if _is_reloaded(first, fingerprint) or _is_reloaded(fingerprint, first):
                    if call.num_restarts < _MAX_RESTARTS:
                        return False
                    raise ServiceError(
                        f"the service replaced the model's weights during each of "
                        f"{_MAX_RESTARTS + 1} attempts; send fewer conversations at a time"
                    )
                raise ModelChangedError.from_fingerprints(first, fingerprint)
        for model, fingerprint in in_call.items():
            with self._lock:
                expected = self.fingerprint if model is None else self.model_fingerprints.get(model)
                is_fixed = model is None and self.options.fingerprint is not None
                is_new = bool(expected) and fingerprint != expected
                if is_new and (is_fixed or not _is_reloaded(expected or {}, fingerprint)):
                    raise ModelChangedError.from_fingerprints(expected or {}, fingerprint)
                if model is None:
                    self.fingerprint = fingerprint
                else:
                    self.model_fingerprints[model] = fingerprint
        return True

    def _build_httpx_kwargs(
        self, transport_class: type[httpx.HTTPTransport] | type[httpx.AsyncHTTPTransport]
    ) -> dict[str, Any]:
        return self.options.build_httpx_kwargs(transport_class, self._sender.endpoints.hosts)

    def _build_response_body(self, response: httpx.Response) -> ResponseBody:
        return ResponseBody(response, self.options.max_answer_bytes, self.options.read_timeout_s)

    def _count_retry(self) -> None:
        with self._lock:
            self.num_retries += 1


def _is_reloaded(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether `after` is of the same model with weights that a reload put in."""
    changing = ("revision", "version")
    return after.get("version") is not None and all(
        before.get(name) == after.get(name) for name in {*before, *after} - {*changing}
    )


def build_options(url: str | Sequence[str], model: str | None, **fields: Any) -> ClientOptions:
    """Return the options of a client from the arguments of its constructor.

    Raises:
        ServiceError: the API key is not valid.
        TypeError: an option is unknown, or given by its deprecated and its current name.
    """
    urls = (url,) if isinstance(url, str) else tuple(url)
    options = ClientOptions(urls, model, **_replace_deprecated(fields))
    if options.api_key is None:
        return options
    return replace(options, api_key=_clean_api_key(options.api_key))


def _replace_deprecated(fields: Mapping[str, Any]) -> dict[str, Any]:
    renamed = dict(fields)
    for old, new in _DEPRECATED_OPTIONS.items():
        if old not in renamed:
            continue
        if new in renamed:
            raise TypeError(f"{old} and {new} are the same option; give only {new}")
        # The caller of the constructor that calls `build_options`.
        warnings.warn(
            f"the option {old} is deprecated; use {new}", DeprecationWarning, stacklevel=4
        )
        renamed[new] = renamed.pop(old)
    return renamed


def _clean_api_key(api_key: str) -> str:
    # The HTTP library would reject the key with an error that quotes it.
    if not api_key.isascii() or not api_key.isprintable() or not api_key.strip():
        raise ServiceError(
            "the API key is empty or has characters that no HTTP header can carry; give it as one "
            "line of ASCII"
        )
    return api_key.strip()


@contextlib.contextmanager
def show_progress(total: int, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error; yield a function that advances it by some items."""
    if not enabled:
        yield lambda num_new: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("scored", total=total)
        yield lambda num_new: progress.update(task, advance=num_new)
        progress.update(task, completed=total)

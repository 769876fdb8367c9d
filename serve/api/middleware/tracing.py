"""OpenTelemetry traces, sent to a collector: a span for each request, and three inside it.

Imported only where a collector is set. The spans are made when a request is over, from the times
that its record holds; nothing is done while it runs. Sending is a background thread's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from serve import __version__
from serve.api.middleware.request_log import Exchange
from serve.telemetry.context import RequestContext

_PATH = "/v1/traces"
# A collector that does not answer must not hold up the end of the service.
_TIMEOUT_S = 5
_NS = 1_000_000_000


class OtlpTracer:
    """Sends finished requests to a collector over OTLP/HTTP.

    Args:
        endpoint: of the collector, such as `http://127.0.0.1:4318`; `/v1/traces` is added to one
            without a path.
    """

    def __init__(self, endpoint: str) -> None:
        if urlsplit(endpoint).path in ("", "/"):
            endpoint = endpoint.rstrip("/") + _PATH
        # Not the global provider, which belongs to whoever runs this process: Ray, for one.
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "skyreward", "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S))
        )
        self._tracer = self._provider.get_tracer("skyreward", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def trace(self, exchange: Exchange, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Make the spans of a request that is over; the caller's `traceparent` is their parent."""
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in headers
            if name in (b"traceparent", b"tracestate")
        }
        ended_ns = exchange.started_ns + int(exchange.total_s * _NS)
        span = self._tracer.start_span(
            f"{exchange.method} {exchange.route}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=_attributes(exchange),
            start_time=exchange.started_ns,
        )
        if exchange.status >= 500:
            span.set_status(StatusCode.ERROR)
        inside = set_span_in_context(span)
        for name, start_ns, end_ns in _stages(exchange.context, exchange.started_ns, ended_ns):
            self._tracer.start_span(name, context=inside, start_time=start_ns).end(end_ns)
        span.end(ended_ns)

    def close(self) -> None:
        """Send what is left; waits for the collector, but not for long."""
        self._provider.shutdown()


def _attributes(exchange: Exchange) -> dict[str, AttributeValue]:
    record = exchange.context
    attributes: dict[str, AttributeValue] = {
        "http.request.method": exchange.method,
        "http.route": exchange.route,
        "http.response.status_code": exchange.status,
        "skyreward.request_id": record.id,
        "skyreward.client": record.client,
    }
    if record.code is not None:
        attributes["error.type"] = record.code
    if record.model is not None:
        attributes |= {
            "skyreward.model": record.model,
            "skyreward.conversations": record.num_conversations,
            "skyreward.errors": record.num_errors,
            "skyreward.tokens": record.num_tokens,
            "skyreward.computed_tokens": record.num_computed_tokens,
            "skyreward.cached_tokens": record.num_cached_tokens,
        }
    return attributes


def _stages(context: RequestContext, start_ns: int, end_ns: int) -> Iterator[tuple[str, int, int]]:
    """Name, start and end of each stage that took any time.

    The record knows how long they took and not when. They are laid out one after the other so that
    the last ends with the request: what comes before them, the arrival of the body, can take long;
    what comes after, writing the answer, does not.
    """
    stages = {
        "tokenize": context.tokenize_s,
        "queue": context.queue_duration_s,
        "forward": context.inference_s,
    }
    at_ns = max(start_ns, end_ns - int(sum(stages.values()) * _NS))
    for name, seconds in stages.items():
        if seconds > 0:
            # A request in many batches at once may have had more of the device than time passed.
            until_ns = min(end_ns, at_ns + int(seconds * _NS))
            yield name, at_ns, until_ns
            at_ns = until_ns

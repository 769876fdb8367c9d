"""OpenTelemetry traces, sent to a collector: a span for each request, with three child spans.

Imported only if a collector is configured. The spans are created when a request is finished, from
the durations in its record; tracing costs nothing while the request runs. A background thread sends
the spans.
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
from serve.telemetry.logging import RequestContext

_PATH = "/v1/traces"
# A collector that does not respond must not delay the shutdown of the service.
_TIMEOUT_S = 5
_NS = 1_000_000_000


class OtlpTracer:
    """Sends finished requests to a collector over OTLP/HTTP.

    `/v1/traces` is appended to a URL without a path, such as `http://127.0.0.1:4318`.
    """

    def __init__(self, endpoint: str) -> None:
        if urlsplit(endpoint).path in ("", "/"):
            endpoint = endpoint.rstrip("/") + _PATH
        # Not the global provider, which belongs to the host process, for example Ray.
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "skyreward", "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S))
        )
        self._tracer = self._provider.get_tracer("skyreward", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def trace(self, context: RequestContext, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Create the spans of a finished request, as children of the client's `traceparent`."""
        trace_headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in headers
            if name in (b"traceparent", b"tracestate")
        }
        ended_ns = context.started_ns + int(context.total_s * _NS)
        span = self._tracer.start_span(
            f"{context.method} {context.route}",
            context=self._propagator.extract(trace_headers),
            kind=SpanKind.SERVER,
            attributes=_attributes(context),
            start_time=context.started_ns,
        )
        if context.status >= 500:
            span.set_status(StatusCode.ERROR)
        parent = set_span_in_context(span)
        for name, start_ns, end_ns in _stages(context, ended_ns):
            self._tracer.start_span(name, context=parent, start_time=start_ns).end(end_ns)
        span.end(ended_ns)

    def close(self) -> None:
        """Send the remaining spans; wait for the collector at most a few seconds."""
        self._provider.shutdown()


def _attributes(context: RequestContext) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "http.request.method": context.method,
        "http.route": context.route,
        "http.response.status_code": context.status,
        "skyreward.request_id": context.id,
        "skyreward.client": context.client,
    }
    if context.code is not None:
        attributes["error.type"] = context.code
    if context.model is not None:
        attributes |= {
            "skyreward.model": context.model,
            "skyreward.conversations": context.num_conversations,
            "skyreward.errors": context.num_errors,
            "skyreward.tokens": context.num_tokens,
            "skyreward.computed_tokens": context.num_computed_tokens,
            "skyreward.cached_tokens": context.num_cached_tokens,
        }
    return attributes


def _stages(context: RequestContext, end_ns: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, start and end of each stage that took any time.

    The record holds the durations of the stages, not their start times. The stages are placed one
    after the other so that the last one ends with the request: receiving the body, before them, can
    take long; writing the response, after them, does not.
    """
    stages = {
        "tokenize": context.tokenize_s,
        "queue": context.queue_duration_s,
        "forward": context.inference_s,
    }
    at_ns = max(context.started_ns, end_ns - int(sum(stages.values()) * _NS))
    for name, seconds in stages.items():
        if seconds > 0:
            # The batches of one request can run in parallel on several devices: their seconds may
            # exceed the duration of the request.
            until_ns = min(end_ns, at_ns + int(seconds * _NS))
            yield name, at_ns, until_ns
            at_ns = until_ns

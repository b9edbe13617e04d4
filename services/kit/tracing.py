"""Owns traces: a span for each RPC that is served and each call made to a third party, sent by OTLP over HTTP.

Off unless `OTLP_ENDPOINT` is set, and then one test an RPC is all it costs. Trace contexts come and go in W3C's form,
the header `traceparent`, as the gateway writes it. A span says which RPC it was, its request id and how it ended; never
what was asked or answered. Batches of several callers' work belong to the trace of the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from services.kit.call import CURRENT

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from services.kit.settings import ServiceSettings

TRACEPARENT_KEY = "traceparent"

# Codes of what went well, or went wrong by the caller: no error of the span.
_NOT_OUR_FAULT = frozenset({"OK", "CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED"})
_NAMES = {"code": "rpc.grpc.status_code_name", "reason": "tollkeeper.reason", "request_id": "tollkeeper.request_id"}

_tracer: Tracer | None = None


def start_tracing(settings: ServiceSettings) -> Callable[[], None]:
    """Begin to send spans where an endpoint is set; the result sends what is left and ends it."""
    if not settings.otlp_endpoint:
        return lambda: None
    # Imported by whoever uses it: it takes a tenth of a second and some megabytes.
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415

    from services.kit.otlp import JsonSpanExporter  # noqa: PLC0415

    global _tracer  # noqa: PLW0603 (one process, one destination)
    provider = TracerProvider(
        resource=Resource.create({"service.name": f"tollkeeper-{settings.service}"}),
        sampler=ParentBasedTraceIdRatio(settings.trace_share),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(JsonSpanExporter(settings.otlp_endpoint)))
    _tracer = provider.get_tracer("tollkeeper")

    def stop() -> None:
        global _tracer  # noqa: PLW0603
        _tracer = None
        provider.shutdown()

    return stop


def rpc_span(path: str, metadata: Mapping[str, str | bytes], request_id: str) -> Span | None:
    """The span of an RPC now beginning, in the trace that the caller named; None while tracing is off."""
    if _tracer is None:
        return None
    from opentelemetry.trace import SpanKind  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    parent = TraceContextTextMapPropagator().extract({TRACEPARENT_KEY: str(metadata.get(TRACEPARENT_KEY, ""))})
    service, method = path.lstrip("/").split("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, _NAMES["request_id"]: request_id}
    return _tracer.start_span(f"{service}/{method}", context=parent, kind=SpanKind.SERVER, attributes=attributes)


def end_span(span: Span, code: str, reason: str = "") -> None:
    """End a span with the name of the gRPC code, and our reason, that its work ended with."""
    from opentelemetry.trace import StatusCode  # noqa: PLC0415

    span.set_attribute(_NAMES["code"], code)
    if reason:
        span.set_attribute(_NAMES["reason"], reason)
    if code not in _NOT_OUR_FAULT:
        span.set_status(StatusCode.ERROR, reason)
    span.end()


def outgoing_span(name: str, **attributes: str) -> Span | None:
    """The span of a call to a third party now beginning, within the RPC being served; None while tracing is off."""
    if _tracer is None:
        return None
    call = CURRENT.get()
    if call is None or call.span is None:
        return None
    from opentelemetry.trace import SpanKind, set_span_in_context  # noqa: PLC0415

    return _tracer.start_span(name, set_span_in_context(call.span), SpanKind.CLIENT, attributes)


def end_outgoing_span(span: Span, outcome: str, *, failed: bool) -> None:
    """End a span of a call to a third party with one word for how it went."""
    from opentelemetry.trace import StatusCode  # noqa: PLC0415

    span.set_attribute("tollkeeper.outcome", outcome)
    if failed:
        span.set_status(StatusCode.ERROR, outcome)
    span.end()


def traceparent() -> str:
    """The header that names the span of the RPC being served; empty where there is none."""
    call = CURRENT.get()
    if call is None or call.span is None:
        return ""
    found = call.span.get_span_context()
    # https://www.w3.org/TR/trace-context/#traceparent-header-field-values
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"

"""Owns the sending of spans by OTLP over HTTP, in its JSON form (https://opentelemetry.io/docs/specs/otlp/#otlphttp).

The exporters of OpenTelemetry need the package of its protos, which xds-protos, the proxy's, brings an older version of
at the same place: which of the two is found depends on which was installed last.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from services.kit.logs import get_logger

_log = get_logger(__name__)

_PATH = "/v1/traces"
_TIMEOUT_SECONDS = 10.0
# OTLP's numbers are OpenTelemetry's, one higher: 0 means that the kind is not said.
_FIRST_KIND = 1


class JsonSpanExporter(SpanExporter):
    """Sends spans to a collector at `endpoint` (http(s)://host:port). What it does not take is logged and dropped."""

    def __init__(self, endpoint: str) -> None:
        self._url = endpoint.rstrip("/") + _PATH

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        if not spans:
            return SpanExportResult.SUCCESS
        body = {
            "resourceSpans": [
                {
                    "resource": {"attributes": _attributes(spans[0].resource.attributes)},
                    "scopeSpans": [{"scope": {"name": "tollkeeper"}, "spans": [_span(span) for span in spans]}],
                }
            ]
        }
        request = urllib.request.Request(  # noqa: S310 (an address that the operator has set)
            self._url, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310
                return SpanExportResult.SUCCESS
        except OSError as error:
            _log.warning("traces were not taken", spans=len(spans), error=type(error).__name__)
            return SpanExportResult.FAILURE


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None
    found: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": span.name,
        "kind": span.kind.value + _FIRST_KIND,
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
    }
    if span.parent is not None:
        found["parentSpanId"] = f"{span.parent.span_id:016x}"
    return found


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": str(value)}} for key, value in attributes.items()]

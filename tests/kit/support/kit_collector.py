"""Owns a collector of traces for tests: takes OTLP over HTTP, JSON from the services and protobuf from Envoy."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

# Those fields of opentelemetry/proto/trace/v1/trace.proto that Envoy's spans are looked at by.
_STRING, _BYTES, _MESSAGE, _NUMBER = 9, 12, 11, 5
_FIELDS = {
    "Value": [("string_value", 1, _STRING, "")],
    "Attribute": [("key", 1, _STRING, ""), ("value", 2, _MESSAGE, "Value")],
    "Status": [("message", 2, _STRING, ""), ("code", 3, _NUMBER, "")],
    "Span": [
        ("trace_id", 1, _BYTES, ""),
        ("span_id", 2, _BYTES, ""),
        ("parent_span_id", 4, _BYTES, ""),
        ("name", 5, _STRING, ""),
        ("kind", 6, _NUMBER, ""),
        ("attributes", 9, _MESSAGE, "*Attribute"),
        ("status", 15, _MESSAGE, "Status"),
    ],
    "Scope": [("spans", 2, _MESSAGE, "*Span")],
    "Resource": [("attributes", 1, _MESSAGE, "*Attribute")],
    "ResourceSpans": [("resource", 1, _MESSAGE, "Resource"), ("scope_spans", 2, _MESSAGE, "*Scope")],
    "Request": [("resource_spans", 1, _MESSAGE, "*ResourceSpans")],
}


def _request_class():
    file = descriptor_pb2.FileDescriptorProto(name="kit_otlp.proto", package="kit.otlp", syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            label = 3 if of.startswith("*") else 1
            words = {"type_name": f".kit.otlp.{of.strip('*')}"} if of else {}
            message.field.add(name=field, number=number, type=kind, label=label, **words)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kit.otlp.Request"))


_REQUEST = _request_class()


def _hex(request):
    """A protobuf request as the JSON form has it: ids in hexadecimal."""
    found = json_format.MessageToDict(request)
    for resource, told in zip(request.resource_spans, found.get("resourceSpans", []), strict=True):
        for scope, scopes in zip(resource.scope_spans, told.get("scopeSpans", []), strict=True):
            for span, words in zip(scope.spans, scopes.get("spans", []), strict=True):
                words |= {
                    "traceId": span.trace_id.hex(),
                    "spanId": span.span_id.hex(),
                    "parentSpanId": span.parent_span_id.hex(),
                }
    return found


def _texts(attributes):
    return {one["key"]: one.get("value", {}).get("stringValue", "") for one in attributes}


class Collector:
    """Spans by arrival: their service, name, ids and attributes."""

    def __init__(self):
        collector, self.spans, self._arrived = self, [], threading.Condition()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.body()
                is_json = self.headers["content-type"] == "application/json"
                collector.take(json.loads(body) if is_json else _hex(_REQUEST.FromString(body)))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def body(self):
                length = self.headers["content-length"]
                if length is not None:
                    return self.rfile.read(int(length))
                pieces = []  # as Envoy sends it: in chunks, each with its size before it
                while size := int(self.rfile.readline(), 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, request):
        with self._arrived:
            for resource in request.get("resourceSpans", []):
                service = _texts(resource["resource"]["attributes"])["service.name"]
                for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
                    self.spans.append(
                        SimpleNamespace(
                            service=service,
                            name=span["name"],
                            trace=span["traceId"],
                            span=span["spanId"],
                            parent=span.get("parentSpanId", ""),
                            failed=span.get("status", {}).get("code") == 2,
                            attributes=_texts(span.get("attributes", [])),
                        )
                    )
            self._arrived.notify_all()

    def wait_for(self, count, seconds=10):
        """The spans, once there are so many."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.spans) >= count, seconds), self.spans
            return list(self.spans)

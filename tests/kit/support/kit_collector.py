"""Owns a collector of traces for tests: a real OTLP server that keeps the spans it is sent."""

import threading
from concurrent import futures
from types import SimpleNamespace

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Spans by arrival: their service, name, kind, ids and attributes."""

    def __init__(self):
        self.spans = []
        self._arrived = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()

    def Export(self, request, _context):  # noqa: N802 (gRPC names methods)
        with self._arrived:
            for resource in request.resource_spans:
                (service,) = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    self.spans.append(
                        SimpleNamespace(
                            service=service,
                            name=span.name,
                            trace=span.trace_id.hex(),
                            span=span.span_id.hex(),
                            parent=span.parent_span_id.hex(),
                            kind=span.kind,
                            failed=span.status.code == 2,
                            attributes={a.key: a.value.string_value for a in span.attributes},
                        )
                    )
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, count, seconds=10):
        """The spans, once there are so many."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.spans) >= count, seconds), self.spans
            return list(self.spans)

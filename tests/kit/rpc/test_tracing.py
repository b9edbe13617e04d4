"""One trace goes through every service that a call passes; off, nothing is traced and nothing is imported."""

import subprocess
import sys

import grpc
import kit_echo_pb2 as pb
import kit_echo_pb2_grpc
import pytest
from kit_collector import Collector

from services.kit.channels import aio_channel
from services.kit.errors import Kind, ServiceError
from services.kit.serving import AioServer
from services.kit.tracing import end_outgoing_span, outgoing_span

ADD = kit_echo_pb2_grpc.add_EchoServiceServicer_to_server
CALLER = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{CALLER}-b7ad6b7169203331-01"
WORDS = "what nobody but the two of them may read"


class NotReady(ServiceError):  # noqa: N818 (refusals are named for what is wrong)
    domain = "tollkeeper.echo"
    kind = Kind.UNAVAILABLE
    reason = "NOT_READY"
    advice = "Retry."


class Relay(kit_echo_pb2_grpc.EchoServiceServicer):
    """Asks the next one, if there is one; the last one calls a third party, or refuses."""

    def __init__(self, following=None):
        self.following = following

    async def Public(self, request, _context):  # noqa: N802 (gRPC names methods)
        if self.following is not None:
            return await kit_echo_pb2_grpc.EchoServiceStub(self.following).Public(request)
        if request.text == "refuse":
            raise NotReady("not yet")
        span = outgoing_span("POST provider")
        if span is not None:
            end_outgoing_span(span, "answered", failed=False)
        return pb.EchoResponse(text=request.text)


@pytest.fixture
def collector():
    with Collector() as served:
        yield served


@pytest.fixture
async def first(settings, collector, monkeypatch):
    """The first of two services in a row, both traced."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # the exporter's own setting, in milliseconds
    traced = settings.model_copy(update={"otlp_endpoint": collector.endpoint})
    last = AioServer(traced)
    last.register(ADD, Relay())
    async with last, aio_channel(last.address, traced) as channel:
        first = AioServer(traced)
        first.register(ADD, Relay(channel))
        async with first, grpc.aio.insecure_channel(first.address) as own:
            yield kit_echo_pb2_grpc.EchoServiceStub(own)


async def test_one_trace_goes_from_the_caller_through_both_services_to_the_third_party(first, collector):
    await first.Public(pb.PlainRequest(text=WORDS), metadata=(("traceparent", TRACEPARENT),))
    third, last, begun = collector.wait_for(3)
    assert {span.trace for span in (third, last, begun)} == {CALLER}
    assert (begun.parent, last.parent, third.parent) == ("b7ad6b7169203331", begun.span, last.span)
    assert third.name == "POST provider"
    assert last.name == begun.name == "kittest.v1.EchoService/Public"
    assert WORDS not in repr(collector.spans)


async def test_refusal_is_told_by_code_and_reason(first, collector):
    with pytest.raises(grpc.aio.AioRpcError):
        await first.Public(pb.PlainRequest(text="refuse"), timeout=1)
    span = collector.wait_for(1)[0]
    assert span.failed
    assert span.attributes["tollkeeper.reason"] == "NOT_READY"
    assert span.attributes["rpc.grpc.status_code_name"] == "UNAVAILABLE"


async def test_trace_that_the_caller_does_not_sample_is_not_sent(first, collector):
    await first.Public(pb.PlainRequest(text="hi"), metadata=(("traceparent", TRACEPARENT[:-1] + "0"),))
    await first.Public(pb.PlainRequest(text="hi"), metadata=(("traceparent", TRACEPARENT),))
    assert {span.trace for span in collector.wait_for(3)} == {CALLER}
    assert len(collector.spans) == 3


def test_nothing_is_imported_while_it_is_off():
    asked = "import sys, services.kit.command; print([name for name in sys.modules if 'telemetry' in name])"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"

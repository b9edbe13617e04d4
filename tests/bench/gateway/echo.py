"""Owns the echo behind the ceiling: a bare grpc.aio server that gives each HttpBody back. Runs as a program.

    python -m tests.bench.gateway.echo PORT

Asked for a stream it answers the events that the provider answers, a message each.
"""

import sys

import grpc
import grpc.aio
from google.api import httpbody_pb2

from deploy.local.ports import HOST
from services.kit.serving import run_async
from tests.bench.gateway import calls

_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
_EVENTS = [
    httpbody_pb2.HttpBody(content_type="text/event-stream", data=event).SerializeToString() for event in calls.events()
]


async def _echo(request, context):
    if calls.asks_for_stream(request):
        for event in _EVENTS:
            yield event
    else:
        yield request


async def _healthy(request, context):
    return _SERVING


class _Routes(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        if handler_call_details.method == calls.RPC:
            return grpc.unary_stream_rpc_method_handler(_echo)
        # The gateway's own configuration asks for it.
        return grpc.unary_unary_rpc_method_handler(_healthy) if handler_call_details.method == _HEALTH else None


async def _serve() -> None:
    # The loop that the proxy runs on, and nothing else of what a service has.
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Routes(),))
    server.add_insecure_port(f"{HOST}:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    run_async(_serve)

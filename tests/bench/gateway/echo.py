"""Owns the echo behind the ceiling: a bare grpc.aio server that gives each HttpBody back. Runs as a program.

    python -m tests.bench.gateway.echo PORT

Asked for a stream it answers the events that the provider answers, a message each.
"""

import sys

import grpc
from google.api import httpbody_pb2

from tests.bench.gateway import calls
from tests.bench.support.echo import serve

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


if __name__ == "__main__":
    serve(_Routes(), int(sys.argv[1]))

"""Owns the second anchor: a bare grpc.aio server that gives each unary call its bytes back. Runs as a program."""

import sys

import grpc
import grpc.aio

from deploy.local.ports import HOST
from services.kit.serving import run_async

METHOD = "/bench.Echo/Echo"


async def _echo(request, context):
    return request


class _Routes(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        return grpc.unary_unary_rpc_method_handler(_echo) if handler_call_details.method == METHOD else None


async def _serve() -> None:
    # The loop that the ledger runs on, and nothing else of what a service has.
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Routes(),))
    server.add_insecure_port(f"{HOST}:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    run_async(_serve)

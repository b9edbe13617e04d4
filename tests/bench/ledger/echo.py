"""Owns the second anchor: a bare grpc.aio server that gives each unary call its bytes back. Runs as a program."""

import sys

import grpc

from tests.bench.support.echo import serve

METHOD = "/bench.Echo/Echo"


async def _echo(request, context):
    return request


class _Routes(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        return grpc.unary_unary_rpc_method_handler(_echo) if handler_call_details.method == METHOD else None


if __name__ == "__main__":
    serve(_Routes(), int(sys.argv[1]))

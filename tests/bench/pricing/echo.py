"""Owns the anchor: a bare sync gRPC server that gives each unary call its bytes back. Runs as a program."""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from deploy.local.ports import HOST

METHOD = "/bench.Echo/Echo"
# As many threads as pricing serves with by default.
_THREADS = 64


class _Routes(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        if handler_call_details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)


def _serve() -> None:
    server = grpc.server(ThreadPoolExecutor(_THREADS), handlers=(_Routes(),))
    server.add_insecure_port(f"{HOST}:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    _serve()

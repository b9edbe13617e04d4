"""Owns how an echo is served: by a bare grpc.aio server, on the loop of services and with nothing else of one."""

import grpc
import grpc.aio

from deploy.local.ports import HOST
from services.kit.loops import run_async


def serve(routes: grpc.GenericRpcHandler, port: int) -> None:
    """Serve until the process is ended."""

    async def serving() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((routes,))
        server.add_insecure_port(f"{HOST}:{port}")
        await server.start()
        await server.wait_for_termination()

    run_async(serving)

# ruff: noqa: N802, N818, ARG002 (gRPC names methods, refusals are named for what is wrong, contexts go unused)
"""Owns servicers of kit's test contract, aio and sync: they echo, and on certain texts misbehave as asked."""

import asyncio
import time

import grpc
import kit_echo_pb2
import kit_echo_pb2_grpc
import psycopg

from services.kit.call import current_identity, current_request_id
from services.kit.errors import Kind, ServiceError
from services.kit.logs import get_logger
from services.kit.validation import Violations

log = get_logger("kit_echo")

SECRET = "password=hunter2"


class EchoError(ServiceError):
    domain = "tollkeeper.echo"


class OutOfEcho(EchoError):
    kind = Kind.PAYMENT_REQUIRED
    reason = "OUT_OF_ECHO"
    advice = "Buy more echo."


def echoed(request):
    """The answer; raises what the request's text asks for."""
    match request.text:
        case "refuse":
            raise OutOfEcho("no echo left", retry_after_seconds=1.2, available_nanos=12)
        case "keep":  # as of an error that came through a queue: its frame has it, and what is large besides
            large, refusal = bytes(2**20), OutOfEcho("no echo left")
            assert large
            raise refusal
        case "crash":
            raise RuntimeError(SECRET)
        case "storage":
            raise psycopg.OperationalError("connection failed:\n\tConnection refused")
        case "invalid":
            v = Violations()
            v.identifier("account_id", "!" * 10_000)
            v.positive("number", -1)
            v.raise_if_any()
        case "huge":
            raise OutOfEcho("é" * 10_000, **{f"key{n}": "x" * 5000 for n in range(50)})
        case "none":
            return None
    identity = current_identity()
    return kit_echo_pb2.EchoResponse(
        account_id=getattr(request, "account_id", ""),
        text=request.text,
        role=identity.role.name,
        request_id=current_request_id(),
    )


class AioEcho(kit_echo_pb2_grpc.EchoServiceServicer):
    """`cleaned` counts the streams whose generator was closed; `started` is set when a waiting call runs."""

    def __init__(self):
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.cleaned = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def _echo(self, request, context):
        match request.text:
            case "wait":
                self.started.set()
                log.info("waiting")
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "abort":
                await context.abort(grpc.StatusCode.DATA_LOSS, "own abort")
            case "trailing":
                context.set_trailing_metadata((("x-own", "1"),))
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._refuse())
            case "timeout":
                raise TimeoutError
        return echoed(request)

    async def _refuse(self):
        raise OutOfEcho("no echo left")

    async def Public(self, request, context):
        return await self._echo(request, context)

    async def Account(self, request, context):
        return await self._echo(request, context)

    async def Plain(self, request, context):
        return await self._echo(request, context)

    async def Admin(self, request, context):
        return await self._echo(request, context)

    async def Service(self, request, context):
        return await self._echo(request, context)

    async def Down(self, request, context):
        try:
            if request.text != "refuse":
                for number in range(request.number or 3):
                    yield kit_echo_pb2.EchoResponse(account_id=request.account_id, text=str(number))
            if request.text == "endless":
                await asyncio.Event().wait()
            yield echoed(request)
        finally:
            await asyncio.sleep(0.05)
            self.cleaned.set()

    async def Up(self, request_iterator, context):
        texts, account_id = [], ""
        async for request in request_iterator:
            texts.append(request.text)
            account_id = request.account_id
            echoed(request)
        return kit_echo_pb2.EchoResponse(account_id=account_id, text=" ".join(texts))

    async def Both(self, request_iterator, context):
        # The reader/writer form: no generator.
        async for request in request_iterator:
            await context.write(await self._echo(request, context))


class SyncEcho(kit_echo_pb2_grpc.EchoServiceServicer):
    def __init__(self, started=None, release=None):
        self.started = started
        self.release = release

    def _echo(self, request, context):
        match request.text:
            case "wait":
                self.started.set()
                log.info("waiting")
                assert self.release.wait(20)
            case "sleep":
                time.sleep(0.3)
            case "abort":
                context.abort(grpc.StatusCode.DATA_LOSS, "own abort")
            case "trailing":
                context.set_trailing_metadata((("x-own", "1"),))
        return echoed(request)

    def Public(self, request, context):
        return self._echo(request, context)

    def Account(self, request, context):
        return self._echo(request, context)

    def Plain(self, request, context):
        return self._echo(request, context)

    def Admin(self, request, context):
        return self._echo(request, context)

    def Service(self, request, context):
        return self._echo(request, context)

    def Down(self, request, context):
        if request.text != "refuse":
            for number in range(request.number or 3):
                yield kit_echo_pb2.EchoResponse(account_id=request.account_id, text=str(number))
        yield self._echo(request, context)

    def Up(self, request_iterator, context):
        texts, account_id = [], ""
        for request in request_iterator:
            texts.append(request.text)
            account_id = request.account_id
            echoed(request)
        return kit_echo_pb2.EchoResponse(account_id=account_id, text=" ".join(texts))

    def Both(self, request_iterator, context):
        for request in request_iterator:
            yield self._echo(request, context)

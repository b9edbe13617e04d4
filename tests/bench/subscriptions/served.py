"""Owns the processes that the bench of subscriptions measures: Postgres, Redis, pricing and subscriptions itself."""

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from tollkeeper.subscriptions.v1.billing_service_pb2_grpc import MeteringServiceStub
from tollkeeper.subscriptions.v1.operator_service_pb2 import CreateAccountRequest
from tollkeeper.subscriptions.v1.operator_service_pb2_grpc import CustomerServiceStub

from deploy.local import ports, postgres
from deploy.local.ports import HOST
from deploy.local.redis import EmbeddedRedis
from services.kit.identity import Identity, Role, TokenSigner, make_keypair
from tests.bench.support.servers import durable_postgres, finished, listening, python_program

_MIGRATE_SECONDS = 60.0
_CALL_SECONDS = 60.0
_TOKEN_SECONDS = 3600
# Signs the events of a bench, made anew for each run.
WEBHOOK_SECRET = f"whsec_{secrets.token_hex(16)}"


@dataclass(frozen=True)
class Served:
    """A served instance: where it is, its process and database, and how to be somebody to it."""

    address: str
    pid: int
    database_url: str
    signer: TokenSigner
    # Where nobody listens: deliveries to ledger and proxy are not part of what is measured.
    nowhere: str

    def metadata(self, role: Role) -> tuple[tuple[str, str], ...]:
        """What a caller of this role shows."""
        token = self.signer.sign(Identity(role, subject="bench"), _TOKEN_SECONDS)
        return (("authorization", f"Bearer {token}"),)

    @contextlib.contextmanager
    def metering(self) -> Iterator[MeteringServiceStub]:
        """A client with a connection of its own."""
        with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield MeteringServiceStub(channel)

    def create(self, account_id: str, plan: str) -> None:
        """Create an account."""
        with grpc.insecure_channel(self.address) as channel:
            CustomerServiceStub(channel).CreateAccount(
                CreateAccountRequest(account_id=account_id, plan=plan),
                metadata=self.metadata(Role.ADMIN),
                timeout=_CALL_SECONDS,
            )


@contextlib.contextmanager
def served(folder: Path, *, with_redis: bool = True) -> Iterator[Served]:
    """Subscriptions with a durable Postgres, the shipped plans, and Redis or not; its background jobs do not run."""
    with contextlib.ExitStack() as stack:
        server, _ = stack.enter_context(durable_postgres(folder))
        private, jwks = make_keypair()
        signer, keys = TokenSigner(private), folder / "jwks.json"
        keys.write_text(json.dumps(jwks))
        common = {
            "TOLLKEEPER_IDENTITY_JWKS_FILE": str(keys),
            "TOLLKEEPER_SERVICE_TOKEN": signer.sign(Identity(Role.SERVICE, subject="bench"), _TOKEN_SECONDS),
            "TOLLKEEPER_LOG_LEVEL": "error",
        }
        urls = {}
        for name in ("pricing", "subscriptions"):
            urls[name] = postgres.create_database(server.url(), name=name, owner=name, password=server.password)
            common[f"TOLLKEEPER_{name.upper()}_DATABASE_URL"] = urls[name]
            program = python_program(f"migrate-{name}", f"services.{name}", "migrate", env=common)
            finished(program, folder / "migrate.log", timeout_seconds=_MIGRATE_SECONDS)
        if with_redis:
            redis = EmbeddedRedis(folder=folder / "redis", port=ports.free_port(), password=secrets.token_hex(8))
            stack.enter_context(redis.serving(folder / "redis.log"))
            common["TOLLKEEPER_REDIS_URL"] = redis.url
        nowhere = f"{HOST}:{ports.free_port()}"
        common |= {"TOLLKEEPER_LEDGER_ADDR": nowhere, "TOLLKEEPER_PROXY_ADDR": nowhere}
        common |= {
            "TOLLKEEPER_SUBSCRIPTIONS_DELIVER_IN_SERVE": "false",
            "TOLLKEEPER_SUBSCRIPTIONS_INLINE_DELIVERY_SECONDS": "0",
            "TOLLKEEPER_SUBSCRIPTIONS_STRIPE_WEBHOOK_SECRETS": WEBHOOK_SECRET,
        }
        port = 0
        for name in ("pricing", "subscriptions"):

            def program_on(port: int, name: str = name) -> object:
                env = common | {f"TOLLKEEPER_{name.upper()}_LISTEN": f"{HOST}:{port}"}
                return python_program(name, f"services.{name}", "serve", env=env)

            port, child = stack.enter_context(listening(program_on, folder / f"{name}.log"))
            common[f"TOLLKEEPER_{name.upper()}_ADDR"] = f"{HOST}:{port}"
        yield Served(f"{HOST}:{port}", child.record.pid, urls["subscriptions"], signer, nowhere)

"""Owns what the local suite consists of: its processes, their ports and settings, and the order they start in."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local import dev_env, envoy, peers, postgres
from deploy.local.credentials import DEVELOPER, Credentials
from deploy.local.home import REPOSITORY, Home
from deploy.local.launcher import Job, Launcher, Part
from deploy.local.ports import HOST, PortBook, answers, is_free, occupant
from deploy.local.postgres import SERVICES, EmbeddedPostgres
from deploy.local.process import Program
from deploy.local.redis import EmbeddedRedis
from services.kit.settings import misspelt

DEFAULT_GATEWAY_PORT = 8080
_LAST_PORT = 65_535
# The services whose background jobs run in a process of their own (`python -m services.X work`).
WORKERS: tuple[str, ...] = ("ledger", "subscriptions")
# A worker has nothing to ask for its health: one that still runs after this is taken for started.
WORKER_START_SECONDS = 2.0
# The command of subscriptions that sells the plans at Stripe.
SET_UP = "setup-stripe"
# Each service may run several times, as `TOLLKEEPER_<SERVICE>_REPLICAS` says: proxy, proxy-2, proxy-3 …
MAX_REPLICAS = 8
# Every process that may be on record, in the order they start; what stands together starts and ends together.
ORDER = (
    ("postgres", "redis", peers.PROVIDER, peers.STRIPE),
    (
        *SERVICES,
        *(f"{service}-{number}" for service in SERVICES for number in range(2, MAX_REPLICAS + 1)),
        *(f"{service}-worker" for service in WORKERS),
    ),
    "envoy",
)
# Settings of the launcher and what it writes to dev.env: made anew for each process, so not handed down from a shell
# that has read another suite's.
_OURS = {"TOLLKEEPER_HOME", "TOLLKEEPER_GATEWAY_PORT", *dev_env.VARIABLES}
# Settings of the launcher's own, without their prefix.
_SETTINGS = (
    "HOME",
    "GATEWAY_PORT",
    "DATABASE_URL",
    "REDIS_URL",
    *(f"{service.upper()}_{what}" for service in SERVICES for what in ("REPLICAS", "DATABASE_URL")),
)


class SettingError(Exception):
    """A setting of the launcher's own is wrong; the message names it."""


class PortBusyError(Exception):
    """The gateway's port belongs to somebody else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Servers:
    """The database server and the Redis in use: embedded, or given by the environment."""

    postgres: EmbeddedPostgres | None
    admin_url: str
    redis: EmbeddedRedis | None
    redis_url: str


class Suite:
    """The suite of one home. Making it makes the home's secrets and picks its ports; it starts nothing."""

    def __init__(self, home: Home, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
        home.make()
        self.home = home
        self.credentials = Credentials(home)
        self._environ = environ
        self._say = say
        self._port_book = PortBook(home.path("ports.json"))
        self._ports: dict[str, int] = {}
        self.gateway_port = self._gateway_port()
        self.servers = self._servers()
        self.providers = peers.Providers(environ=environ, credentials=self.credentials, port=self.port(peers.PROVIDER))
        self.stripe = peers.Stripe(
            environ=environ,
            credentials=self.credentials,
            port=self.port(peers.STRIPE),
            gateway_url=self.url,
            state=home.path("stripe.sqlite"),
        )

    @property
    def url(self) -> str:
        """Where clients call."""
        return f"http://{HOST}:{self.gateway_port}"

    def _gateway_port(self) -> int:
        """As the environment says; else the one that a running gateway has; else 8080. Raises SettingError."""
        given = self._environ.get("TOLLKEEPER_GATEWAY_PORT")
        if given and not (given.isdecimal() and 1 <= int(given) <= _LAST_PORT):
            raise SettingError(f"TOLLKEEPER_GATEWAY_PORT must be a port from 1 to {_LAST_PORT}, not {given!r}")
        running = self._port_book.get("gateway") if self.gateway_runs() else None
        return int(given) if given else running or DEFAULT_GATEWAY_PORT

    def gateway_runs(self) -> bool:
        """Whether this home's Envoy runs."""
        record = self.home.record("envoy")
        return record is not None and record.alive()

    def port(self, name: str) -> int:
        """The port of one process, or of another listener of it: `ledger`, `ledger-metrics`."""
        if name not in self._ports:
            owner = self.home.record(name.removesuffix("-metrics").removesuffix("-admin"))
            self._ports[name] = self._port_book.assign(
                name, in_use=owner is not None and owner.alive(), spared=self.gateway_port
            )
        return self._ports[name]

    # ---- what there is

    def parts(self) -> list[Part]:
        """Every process, in the order it starts."""
        return [*self._storage(), *self._services(), self._envoy()]

    def _servers(self) -> Servers:
        embedded_postgres = EmbeddedPostgres(
            folder=self.home.path("postgres"), port=self.port("postgres"), password=self.credentials.own("postgres")
        )
        embedded_redis = EmbeddedRedis(
            folder=self.home.path("redis"), port=self.port("redis"), password=self.credentials.own("redis")
        )
        database_url = self._given("TOLLKEEPER_DATABASE_URL", embedded_postgres.password)
        redis_url = self._given("TOLLKEEPER_REDIS_URL", embedded_redis.password)
        return Servers(
            postgres=None if database_url else embedded_postgres,
            admin_url=database_url or embedded_postgres.url(),
            redis=None if redis_url else embedded_redis,
            redis_url=redis_url or embedded_redis.url,
        )

    def _given(self, variable: str, own_password: str) -> str | None:
        """A server's URL from the environment, unless it is only our own one, read from dev.env."""
        url = self._environ.get(variable)
        if not url or urlsplit(url).password == own_password:
            return None
        return re.sub(r"^(\w+)\+\w+://", r"\1://", url)  # without SQLAlchemy's driver

    def _storage(self) -> list[Part]:
        parts = []
        if (database := self.servers.postgres) is not None:
            parts.append(
                Part(
                    name="postgres",
                    port=database.port,
                    program=database.program(),
                    ready=database.ready,
                    prepare=lambda: self._initialise(database),
                    transient=postgres.old_server_lingers,
                )
            )
        if (redis := self.servers.redis) is not None:
            parts.append(
                Part(
                    name="redis", port=redis.port, program=redis.program(), ready=redis.ready, prepare=redis.initialise
                )
            )
        if self.providers.url:
            parts.append(self._sandbox(peers.PROVIDER, self.providers.command()))
        if self.stripe.url:
            parts.append(self._sandbox(peers.STRIPE, self.stripe.command()))
        return parts

    def _initialise(self, database: EmbeddedPostgres) -> None:
        for folder in database.initialise():
            self._say(f"note: {folder} may now be passed through by other users (mode o+x): Postgres is one")

    def _sandbox(self, name: str, command: tuple[str, ...]) -> Part:
        port = self.port(name)
        program = self._python(name, {}, *command)
        return Part(name=name, port=port, program=program, ready=lambda: envoy.get(port, "/healthz") is not None)

    def _services(self) -> list[Part]:
        servers = [self._server(service, name) for service in SERVICES for name in self.replicas(service)]
        return [*servers, *map(self._worker, WORKERS)]

    def replicas(self, service: str) -> list[str]:
        """The names of a service's servers.

        Raises:
            SettingError: their number is none, or not within 1 to 8.
        """
        variable = f"TOLLKEEPER_{service.upper()}_REPLICAS"
        given = self._environ.get(variable) or "1"
        if not (given.isdecimal() and 1 <= int(given) <= MAX_REPLICAS):
            raise SettingError(f"{variable} must be from 1 to {MAX_REPLICAS} on one machine, not {given!r}")
        return [service, *(f"{service}-{number}" for number in range(2, int(given) + 1))]

    def _address(self, service: str) -> str:
        """Where its peers find a service: all of its servers, among which a gRPC channel shares its calls out."""
        found = [f"{HOST}:{self.port(name)}" for name in self.replicas(service)]
        return found[0] if len(found) == 1 else f"ipv4:{','.join(found)}"

    def _server(self, service: str, name: str) -> Part:
        port = self.port(name)
        program = self._python(name, self.settings(service, name), f"services.{service}", "serve")
        return Part(name=name, port=port, program=program, ready=lambda: serving(port))

    def _worker(self, service: str) -> Part:
        name = f"{service}-worker"
        # The metrics' address is the server's.
        settings = self.settings(service) | {f"TOLLKEEPER_{service.upper()}_METRICS_LISTEN": ""}
        return Part(
            name=name,
            port=None,
            program=self._python(name, settings, f"services.{service}", "work"),
            ready=lambda: self._has_started(name),
        )

    def _has_started(self, name: str) -> bool:
        record = self.home.record(name)
        return record is not None and record.alive() and time.time() - record.started_at > WORKER_START_SECONDS

    def _envoy(self) -> Part:
        admin = self.port("envoy-admin")
        ports = {service: [self.port(name) for name in self.replicas(service)] for service in SERVICES}
        traces = self._environ.get("TOLLKEEPER_OTLP_ENDPOINT", "")
        configuration = envoy.render(port=self.gateway_port, admin_port=admin, services=ports, traces=traces)
        return Part(
            name="envoy",
            port=self.gateway_port,
            program=envoy.program(self.home.path("envoy.json")),
            ready=lambda: envoy.ready(self.gateway_port, admin),
            prepare=lambda: self.home.write_private("envoy.json", configuration),
            configuration=configuration,
        )

    # ---- how it is set

    def settings(self, service: str, name: str = "") -> dict[str, str]:
        """The settings of one service, as environment variables; `name` is that of one of its servers."""
        prefix = f"TOLLKEEPER_{service.upper()}"
        settings = {
            f"{prefix}_LISTEN": f"{HOST}:{self.port(name or service)}",
            f"{prefix}_METRICS_LISTEN": f"{HOST}:{self.port((name or service) + '-metrics')}",
            f"{prefix}_DATABASE_URL": self._environ.get(f"{prefix}_DATABASE_URL") or self._database_url(service),
            "TOLLKEEPER_REDIS_URL": self.servers.redis_url,
            "TOLLKEEPER_IDENTITY_JWKS_FILE": str(self.credentials.jwks_file),
            "TOLLKEEPER_SERVICE_TOKEN_FILE": str(self.credentials.service_token_file(service)),
        }
        settings |= {f"TOLLKEEPER_{peer.upper()}_ADDR": self._address(peer) for peer in SERVICES}
        if service == "proxy":
            settings["TOLLKEEPER_PROXY_IDENTITY_SIGNING_KEY_FILE"] = str(self.credentials.signing_key_file)
            settings |= self.providers.settings()
        if service == "subscriptions":
            settings |= self.stripe.settings() | {
                f"{prefix}_DELIVER_IN_SERVE": "false",  # its worker does that
                f"{prefix}_RETURN_URL": self._environ.get(f"{prefix}_RETURN_URL") or f"{self.url}/",
                # A developer's receiver of alerts is on this machine.
                f"{prefix}_ALERT_PRIVATE_ADDRESSES": "true",
            }
        return settings

    def _database_url(self, service: str) -> str:
        role = f"tollkeeper_{service}"
        password = self.credentials.own(f"postgres_{service}")
        return postgres.database_url(self.servers.admin_url, user=role, password=password, database=role)

    def service_program(self, service: str, *arguments: str) -> Program:
        """A service's own command, with the settings that it has in this suite."""
        return self._python(service, self.settings(service), f"services.{service}", *arguments)

    def _python(self, name: str, settings: Mapping[str, str], module: str, *arguments: str) -> Program:
        inherited = {key: value for key, value in self._environ.items() if key not in _OURS}
        return Program(
            name=name,
            argv=(sys.executable, "-m", module, *arguments),
            env={**inherited, "PYTHONUNBUFFERED": "1", **settings},
            cwd=REPOSITORY,
            grace_seconds=25.0,  # services drain for up to 20 s
        )

    # ---- what is done

    def up(self, launcher: Launcher) -> None:
        """Start what does not run healthy, in order: storage, schemas, services, the sandbox Stripe's prices, gateway.

        Raises:
            PortBusyError: somebody else listens on the gateway's port.
            StartFailedError: a process or a migration failed.
            RoleTakenError, psycopg.Error: the given Postgres server refuses the suite's databases.
        """
        for variable, meant in misspelt(self._environ, "TOLLKEEPER_", _SETTINGS):
            self._say(f"note: {variable} is no setting and does nothing; {meant} is one")
        self._require_gateway_port()
        launcher.take_down_all_but([part.name for part in self.parts()])
        launcher.bring_up(self._storage())
        ours = [s for s in SERVICES if not self._environ.get(f"TOLLKEEPER_{s.upper()}_DATABASE_URL")]
        passwords = {service: self.credentials.own(f"postgres_{service}") for service in ours}
        postgres.create_databases(self.servers.admin_url, passwords)
        services = self._services()
        behind = {part.name for part in services if not launcher.runs(part)}
        launcher.run_to_end(self._migrations([s for s in SERVICES if behind & {*self.replicas(s), f"{s}-worker"}]))
        launcher.bring_up(services)
        self._port_book.keep("gateway", self.gateway_port)
        with ThreadPoolExecutor(1) as pool:
            selling = pool.submit(
                launcher.run_to_end, self.stripe_jobs() if behind & {"pricing", "subscriptions"} else []
            )
            launcher.bring_up([self._envoy()])
            selling.result()
        launcher.confirm(self.parts())

    def _migrations(self, services: Sequence[str]) -> list[Job]:
        """What brings the databases of services to this release's schemas."""
        urls = [f"TOLLKEEPER_{service.upper()}_DATABASE_URL" for service in services]
        settings = {url: self.settings(service)[url] for url, service in zip(urls, services, strict=True)}
        program = self._python("migrate", settings, "deploy.local.migrate", *services)
        return [Job(name="migrate", part="migrate", program=program)] if services else []

    def _require_gateway_port(self) -> None:
        ours = self.gateway_runs() and self._port_book.get("gateway") == self.gateway_port
        if not ours and not is_free(self.gateway_port):
            raise PortBusyError(
                f"port {self.gateway_port}, the gateway's, is in use by {occupant(self.gateway_port)}; "
                "end that, or set TOLLKEEPER_GATEWAY_PORT to a free port"
            )

    def stripe_jobs(self) -> list[Job]:
        """What brings the sandbox Stripe's products, prices and meters to what the plans say.

        A real one's are not changed unasked.
        """
        if not self.stripe.url:
            return []
        # A log of its own: its many lines would hide why the service ended, where it does.
        program = self.service_program("subscriptions", SET_UP)
        return [Job(name=f"subscriptions {SET_UP}", part=f"subscriptions-{SET_UP}", program=program)]

    def write_dev_env(self) -> Path:
        """Write what a developer's shell and the tests need to know."""
        values = {
            "TOLLKEEPER_URL": self.url,
            "TOLLKEEPER_ADMIN_KEY": self.credentials.get("admin_key") or "",
            "TOLLKEEPER_DEMO_KEY": self.credentials.get("demo_key") or "",
            "TOLLKEEPER_SERVICE_TOKEN": self.credentials.service_token(DEVELOPER),
            "TOLLKEEPER_DATABASE_URL": self.servers.admin_url,
            "TOLLKEEPER_REDIS_URL": self.servers.redis_url,
            "STRIPE_WEBHOOK_SECRET": self.stripe.webhook_secret,
            "TOLLKEEPER_SANDBOX_STRIPE_URL": self.stripe.url,
            "TOLLKEEPER_SANDBOX_PROVIDER_URL": self.providers.url,
        }
        values |= {f"TOLLKEEPER_{service.upper()}_ADDR": f"{HOST}:{self.port(service)}" for service in SERVICES}
        return dev_env.write(self.home, values)


def serving(port: int) -> bool:
    """Whether a gRPC server on 127.0.0.1 says that it serves."""
    # It is asked again and again while it starts; a channel each time would cost more than the start.
    if not answers(port):
        return False
    with grpc.insecure_channel(f"{HOST}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=1
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def of(environ: Mapping[str, str] | None = None, say: Callable[[str], None] = print) -> Suite:
    """The suite that the environment names."""
    chosen = os.environ if environ is None else environ
    return Suite(Home.of(chosen), chosen, say)

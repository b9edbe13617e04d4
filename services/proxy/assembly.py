"""Owns how the proxy is put together: what is made when it starts, what is ended when it stops, and in which order."""

from __future__ import annotations

import hmac
from pathlib import Path

import redis.asyncio
import redis.exceptions
from envoy.service.auth.v3 import external_auth_pb2_grpc  # type: ignore[import-untyped]
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from tollkeeper.pricing.v1 import pricing_service_pb2_grpc
from tollkeeper.proxy.v1 import (
    entitlement_service_pb2_grpc,
    generate_service_pb2_grpc,
    key_service_pb2_grpc,
    wire_service_pb2_grpc,
)

from services.kit.channels import aio_channel, unary_channel
from services.kit.db import async_engine
from services.kit.identity import KeyFileError, Role, TokenAuthenticator, TokenSigner, TokenVerifier
from services.kit.logs import get_logger
from services.kit.serving import AioServer
from services.proxy.answers import Answers, AnswerStore
from services.proxy.authorization import CHECK, AuthorizationServicer, IdentityTokens
from services.proxy.calls.life import Parts
from services.proxy.calls.running import Calls
from services.proxy.catalogue import CatalogueWatch
from services.proxy.entitlements.service import Entitlements
from services.proxy.entitlements.servicer import EntitlementServicer
from services.proxy.entitlements.store import EntitlementStore
from services.proxy.generate.servicer import GenerateServicer
from services.proxy.invalidation import Announcer, Listener
from services.proxy.keys.credentials import KeyAuthenticator, KnownKeys
from services.proxy.keys.service import Keys
from services.proxy.keys.servicer import KeyServicer
from services.proxy.keys.store import KeyStore
from services.proxy.ledger import Ledger
from services.proxy.oidc import OidcVerifier
from services.proxy.outbox import OutboxStore, Settlements
from services.proxy.rates import RateLimits
from services.proxy.settings import ProxySettings
from services.proxy.upstream import Upstreams
from services.proxy.wire import PROVIDER_CHAT, WireServicer

_log = get_logger(__name__)

# A Redis that is slower than this is of no use on the way of a call.
_REDIS_SECONDS = 0.25


async def make_server(settings: ProxySettings) -> AioServer:
    """The proxy's server, all its parts made. Raises KeyFileError where there is no signing key."""
    server = AioServer(settings)
    if settings.log_texts:
        _log.warning("what model calls are asked and answered is written to this log", setting="LOG_TEXTS")
    signing_key = _signing_key(settings)
    own_secret = _own_secret(signing_key)
    engine = async_engine(settings)
    pricing_channel = aio_channel(settings.pricing_addr, settings)
    client = redis_client(settings.redis_url) if settings.redis_url else None

    cache = {"lifetime_seconds": settings.cache_seconds, "max_entries": settings.cache_entries}
    key_store = KeyStore(engine)
    announcer = Announcer(client)
    known = KnownKeys(key_store, **cache)  # type: ignore[arg-type]
    entitlements = Entitlements(EntitlementStore(engine), announcer, **cache)  # type: ignore[arg-type]
    listener = Listener(client, known, entitlements)
    ledger = Ledger(
        settings.ledger_addr,
        lambda target, name: unary_channel(target, settings, name=name),
        timeout_seconds=settings.ledger_timeout_seconds,
        batch_operations=settings.ledger_batch_operations,
        batches_at_once=settings.ledger_batches_at_once,
        waiting_operations=settings.ledger_waiting_operations,
    )
    settlements = Settlements(ledger, OutboxStore(engine), interval_seconds=settings.outbox_interval_seconds)
    catalogue = CatalogueWatch(pricing_service_pb2_grpc.PricingServiceStub(pricing_channel))
    upstreams = Upstreams(settings)
    answers = Answers(
        AnswerStore(engine, lease_seconds=settings.answers_lease_seconds, ttl_seconds=settings.answers_ttl_seconds),
        lease_seconds=settings.answers_lease_seconds,
        sweep_seconds=settings.answers_sweep_seconds,
        max_bytes=settings.answers_max_bytes,
    )
    rates = RateLimits(client, replicas=settings.replicas)
    calls = Calls(Parts(settings, entitlements, catalogue, rates, ledger, settlements, upstreams, answers))

    identity_tokens = IdentityTokens(TokenSigner(signing_key), ttl_seconds=settings.identity_ttl_seconds)
    tokens = TokenAuthenticator(TokenVerifier(file=settings.identity_jwks_file))
    server.register(
        wire_service_pb2_grpc.add_WireServiceServicer_to_server,
        WireServicer(calls, own_secret=own_secret),
        authenticator=KeyAuthenticator(known, tokens, by_token=frozenset({PROVIDER_CHAT})),
    )
    server.register(
        key_service_pb2_grpc.add_KeyServiceServicer_to_server,
        KeyServicer(Keys(key_store, known, entitlements, ledger, announcer)),
    )
    server.register(
        entitlement_service_pb2_grpc.add_EntitlementServiceServicer_to_server, EntitlementServicer(entitlements)
    )
    server.register(
        generate_service_pb2_grpc.add_GenerateServiceServicer_to_server,
        GenerateServicer(calls, known, own_secret=own_secret),
        # A model call takes as long as its providers may, and then it is settled.
        deadline_seconds=settings.upstream_total_seconds + settings.deadline_seconds,
    )
    server.register(
        external_auth_pb2_grpc.add_AuthorizationServicer_to_server,
        AuthorizationServicer(known, identity_tokens, OidcVerifier(settings) if settings.oidc_issuer else None),
        access_overrides={CHECK: Role.PUBLIC},
    )

    async def start_calls() -> None:
        await calls.start(server.draining)

    async def stop_settlements() -> None:
        await settlements.stop(settings.ledger_timeout_seconds)

    for start in (ledger.start, listener.start, catalogue.start, settlements.start, answers.start, start_calls):
        server.on_start(start)
    # Last added first: calls end, then settlements reach the ledger, then what both need is closed.
    server.on_stop(engine.dispose)
    if client is not None:
        server.on_stop(client.aclose)
        server.on_stop(rates.drained)
    for stop in (ledger.stop, pricing_channel.close, upstreams.close):
        server.on_stop(stop)
    server.on_stop(listener.stop)
    server.on_stop(catalogue.stop)
    server.on_stop(stop_settlements)
    server.on_stop(answers.stop)
    server.on_stop(calls.stop)
    return server


def _signing_key(settings: ProxySettings) -> bytes:
    """The private key (PEM) that signs identity tokens."""
    path: Path | None = settings.identity_signing_key_file
    if path is None:
        raise KeyFileError("no key to sign identity tokens with: set TOLLKEEPER_PROXY_IDENTITY_SIGNING_KEY_FILE")
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error


def _own_secret(signing_key: bytes) -> str:
    """What seals the kept answers of callers without an API key: the same on every replica, and in no database."""
    return hmac.new(signing_key, b"tollkeeper kept answers", "sha256").hexdigest()


def redis_client(url: str, *, timeout_seconds: float = _REDIS_SECONDS) -> redis.asyncio.Redis:
    """A client of the Redis at `url`; `timeout_seconds` is for a connection to be made, and for an answer."""
    client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
        url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        max_connections=64,
        # A connection that was lost is made again at once; one that is silent is not waited for a second time.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.exceptions.ConnectionError,)),
    )
    return client

"""Rotation: another key takes a key's place, with the same rights and no more, and the old one ends when it should."""

import asyncio
import time

import psycopg
import pytest
import redis.asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.proxy.v1 import key_service_pb2 as pb
from tollkeeper.proxy.v1 import wire_service_pb2

from services.kit.db import connection_string

DAY = 86_400
# What two keys of one line differ in.
OWN = ("key_id", "last_four", "created_at", "expires_at", "replaced_by_key_id")


def rotate(proxy, key_id, **fields):
    return proxy.keys.RotateKey(pb.RotateKeyRequest(key_id=key_id, **fields), metadata=proxy.admin)


def get(proxy, key_id):
    return proxy.keys.GetKey(pb.GetKeyRequest(key_id=key_id), metadata=proxy.admin)


def listing(proxy, secret):
    return proxy.wire.ListModels(wire_service_pb2.ListModelsRequest(), metadata=(("x-api-key", secret),))


def in_seconds(seconds):
    return Timestamp(seconds=int(time.time()) + seconds)


def rights(record):
    left = type(record)()
    left.CopyFrom(record)
    for name in OWN:
        left.ClearField(name)
    return left


@pytest.fixture
def keys_made(proxy_database):
    """`keys_made()`: how many keys there are."""

    def count():
        with psycopg.connect(connection_string(proxy_database)) as connection:
            return connection.execute("SELECT count(*) FROM keys").fetchone()[0]

    return count


async def test_rotated_key_has_the_same_rights_and_another_secret(proxy):
    old = await proxy.make_key(
        name="CI",
        prefix="tb_prod_",
        workspace="web",
        allowed_models=["gpt-4o"],
        daily_limit_usd="5.00",
        monthly_limit_nanos=50,
        requests_per_minute=60,
        tokens_per_minute=1000,
    )
    new = await rotate(proxy, old.key_id)
    assert new.key.startswith("tb_prod_")
    assert new.key != old.key
    assert new.record.last_four == new.key[-4:]
    assert new.record.key_id == new.key_id != old.key_id
    assert rights(new.record) == rights(old.record)
    assert not new.record.HasField("expires_at")
    assert await get(proxy, new.key_id) == new.record
    for secret in (old.key, new.key):
        await listing(proxy, secret)


async def test_every_key_of_a_line_names_the_one_that_limits_and_bills_do(proxy):
    first = await proxy.make_key(daily_limit_usd="5.00")
    second = await rotate(proxy, first.key_id)
    third = await rotate(proxy, second.key_id)
    assert {made.record.first_key_id for made in (first, second, third)} == {first.key_id}
    assert (await get(proxy, second.key_id)).first_key_id == first.key_id


async def test_old_key_names_its_successor_and_goes_on_for_a_day(proxy):
    made = await proxy.make_key()
    new = await rotate(proxy, made.key_id)
    old = await get(proxy, made.key_id)
    assert (old.status, old.replaced_by_key_id) == ("active", new.key_id)
    assert old.expires_at.ToNanoseconds() - new.record.created_at.ToNanoseconds() == DAY * 10**9


async def test_old_key_never_ends_later_than_it_was_to(proxy):
    end = in_seconds(DAY)
    made = await proxy.make_key(expires_at=end)
    new = await rotate(proxy, made.key_id, overlap_seconds=30 * DAY)
    assert (await get(proxy, made.key_id)).expires_at == end
    # Rotating does not make a right last longer either.
    assert new.record.expires_at == end


async def test_overlap_of_zero_ends_the_old_key_at_once(proxy, refused):
    made = await proxy.make_key()
    await listing(proxy, made.key)
    new = await rotate(proxy, made.key_id, overlap_seconds=0)
    assert (await refused(listing(proxy, made.key))).reason == "API_KEY_EXPIRED"
    assert (await get(proxy, made.key_id)).status == "expired"
    await listing(proxy, new.key)


async def test_repeated_rotation_makes_one_key_and_does_not_show_it_again(proxy, refused, keys_made):
    made = await proxy.make_key()
    before = keys_made()
    answers = await asyncio.gather(*(rotate(proxy, made.key_id, request_id="r-1") for _ in range(8)))
    assert len({answer.key_id for answer in answers}) == 1
    assert len([answer.key for answer in answers if answer.key]) == 1
    call = rotate(proxy, made.key_id, request_id="r-1")
    again = await call
    assert (again.key, again.record) == ("", await get(proxy, answers[0].key_id))
    assert dict(await call.trailing_metadata())["idempotency-replayed"] == "true"
    assert keys_made() == before + 1
    for other in (
        rotate(proxy, made.key_id, request_id="r-1", overlap_seconds=5),
        rotate(proxy, again.key_id, request_id="r-1"),
        proxy.make_key(request_id="r-1"),
    ):
        assert (await refused(other)).reason == "IDEMPOTENCY_CONFLICT"


async def test_request_id_of_a_made_key_rotates_nothing(proxy, refused, keys_made):
    made = await proxy.make_key(request_id="r-1")
    before = keys_made()
    assert (await refused(rotate(proxy, made.key_id, request_id="r-1"))).reason == "IDEMPOTENCY_CONFLICT"
    assert not (await get(proxy, made.key_id)).replaced_by_key_id
    assert keys_made() == before


async def test_request_that_loses_its_id_to_another_changes_nothing(proxy, keys_made):
    """A key made and a key rotated with the same request id at once: one of them is, and the other left no trace."""
    for number in range(10):
        made = await proxy.make_key()
        before = keys_made()
        results = await asyncio.gather(
            rotate(proxy, made.key_id, request_id=f"r-{number}"),
            proxy.make_key(request_id=f"r-{number}"),
            return_exceptions=True,
        )
        done = [result for result in results if not isinstance(result, BaseException)]
        assert len(done) == 1
        assert keys_made() == before + 1
        old = await get(proxy, made.key_id)
        assert bool(old.replaced_by_key_id) == old.HasField("expires_at") == (done[0] is results[0])


async def test_key_is_rotated_once_however_many_ask(proxy, keys_made):
    made = await proxy.make_key()
    before = keys_made()
    results = await asyncio.gather(*(rotate(proxy, made.key_id) for _ in range(8)), return_exceptions=True)
    done = [result for result in results if not isinstance(result, BaseException)]
    assert len(done) == 1
    assert keys_made() == before + 1
    assert (await get(proxy, made.key_id)).replaced_by_key_id == done[0].key_id


async def test_key_revoked_while_it_is_being_rotated_is_not_rotated(
    proxy, proxy_database, refused, eventually, keys_made
):
    """The revocation is under way when the rotation reads the key, and is there when it writes."""
    made = await proxy.make_key()
    before = keys_made()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with (
        psycopg.connect(connection_string(proxy_database)) as revoking,
        psycopg.connect(connection_string(proxy_database), autocommit=True) as watching,
    ):
        revoking.execute("UPDATE keys SET revoked_at = now() WHERE key_id = %s", [made.key_id])
        rotating = asyncio.create_task(refused(rotate(proxy, made.key_id)))
        await eventually(lambda: watching.execute(waiting).fetchone()[0] == 1)
        revoking.commit()
    assert (await rotating).reason == "KEY_NOT_ACTIVE"
    assert not (await get(proxy, made.key_id)).replaced_by_key_id
    assert keys_made() == before


async def test_only_an_active_key_that_was_not_replaced_is_rotated(proxy, refused, keys_made):
    revoked, ended, replaced = [await proxy.make_key() for _ in range(3)]
    await proxy.keys.RevokeKey(pb.RevokeKeyRequest(key_id=revoked.key_id), metadata=proxy.admin)
    brief = Timestamp()
    brief.FromMilliseconds(int(time.time() * 1000) + 500)
    ended = await proxy.make_key(expires_at=brief)
    while (await get(proxy, ended.key_id)).status == "active":  # noqa: ASYNC110 (it ends by the clock)
        await asyncio.sleep(0.05)
    new = await rotate(proxy, replaced.key_id)
    before = keys_made()
    for key, reason, metadata in (
        (revoked, "KEY_NOT_ACTIVE", {"key_id": revoked.key_id, "status": "revoked"}),
        (ended, "KEY_NOT_ACTIVE", {"key_id": ended.key_id, "status": "expired"}),
        (replaced, "KEY_REPLACED", {"key_id": replaced.key_id, "replaced_by_key_id": new.key_id}),
    ):
        refusal = await refused(rotate(proxy, key.key_id))
        assert (refusal.reason, refusal.metadata) == (reason, metadata)
        assert refusal.trailing["x-tollkeeper-http-status"] == "400"
    assert keys_made() == before


async def test_wrong_fields_are_named_and_unknown_keys_not_found(proxy, refused):
    made = await proxy.make_key()
    for fields, wrong in (
        ({"key_id": ""}, "key_id"),
        ({"key_id": "a\x00b"}, "key_id"),
        ({"request_id": "a b"}, "request_id"),
        ({"overlap_seconds": -1}, "overlap_seconds"),
        ({"overlap_seconds": 30 * DAY + 1}, "overlap_seconds"),
        ({"overlap_seconds": 2**31 - 1}, "overlap_seconds"),
    ):
        refusal = await refused(rotate(proxy, **{"key_id": made.key_id} | fields))
        assert [violation.field for violation in refusal.violations] == [wrong]
    assert (await refused(rotate(proxy, "key-none", request_id="r-1"))).reason == "KEY_NOT_FOUND"
    assert not (await get(proxy, made.key_id)).replaced_by_key_id


async def test_rotation_needs_no_ledger_and_gives_no_second_limit(proxy, ledger):
    made = await proxy.make_key(daily_limit_usd="5.00")
    ledger.down.add("set_limit")
    new = await rotate(proxy, made.key_id)
    assert new.record.daily_limit_nanos == 5_000_000_000
    assert [limit.subject for limit in ledger.limits] == [made.key_id]


async def test_calls_of_all_keys_of_a_line_count_against_the_limits_of_the_first(proxy, ledger):
    line = [await proxy.make_key(daily_limit_usd="5.00")]
    for _ in range(2):
        line.append(await rotate(proxy, line[-1].key_id))
    for made in line:
        await proxy.chat(made.key, max_tokens=5)
    assert {hold.key_id for kind, hold in ledger.log if kind == "hold"} == {line[0].key_id}
    assert {limit.subject for limit in ledger.limits} == {line[0].key_id}


async def test_keys_that_overlap_share_their_limits_per_minute(proxy, refused):
    old = await proxy.make_key(requests_per_minute=2)
    new = await rotate(proxy, old.key_id)
    for made in (old, new):
        await proxy.chat(made.key, max_tokens=5)
    for made in (old, new):
        refusal = await refused(proxy.chat(made.key, max_tokens=5))
        assert (refusal.reason, refusal.metadata["scope"]) == ("RATE_LIMITED", "key")


async def test_operators_key_is_rotated_to_an_operators_key(proxy, authorize):
    made = await proxy.make_key("", key_type="admin", prefix="tk_admin_")
    new = await rotate(proxy, made.key_id)
    identity = await authorize(proxy, {"x-api-key": new.key})
    assert (identity.role.name, identity.key_id, identity.account_id) == ("ADMIN", new.key_id, "")


async def test_rotated_key_is_shown_though_nobody_can_be_told(proxy, monkeypatch):
    """It was shown to nobody, and never could be again."""

    async def publish(*_):
        raise RuntimeError("the handler is closed")  # as uvloop says of a connection that was reset

    old = await proxy.make_key()
    monkeypatch.setattr(redis.asyncio.Redis, "publish", publish)
    new = await rotate(proxy, old.key_id, request_id="once")
    assert await listing(proxy, new.key)
    await proxy.keys.RevokeKey(pb.RevokeKeyRequest(key_id=new.key_id), metadata=proxy.admin)

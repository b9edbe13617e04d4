"""Keys: made once, shown once, kept as a hash, and seen to end within a second."""

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import time

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.proxy.v1 import key_service_pb2 as pb
from tollkeeper.proxy.v1 import wire_service_pb2

from services.kit.db import connection_string
from services.kit.identity import Identity, Role


def in_seconds(seconds):
    moment = Timestamp()
    moment.FromMilliseconds(int((time.time() + seconds) * 1000))
    return moment


def listing(proxy, secret, header="x-api-key"):
    return proxy.wire.ListModels(wire_service_pb2.ListModelsRequest(), metadata=((header, secret),))


async def test_key_is_shown_once_and_only_its_hash_is_kept(proxy, proxy_database):
    made = await proxy.make_key(name="User key", prefix="tb_prod_", workspace="web", allowed_models=["gpt-4o"])
    assert re.fullmatch(r"tb_prod_[A-Za-z0-9]{32,}", made.key)
    assert (made.record.name, made.record.workspace, made.record.status) == ("User key", "web", "active")
    assert made.record.last_four == made.key[-4:]
    with psycopg.connect(connection_string(proxy_database)) as connection:
        row = connection.execute("SELECT * FROM keys WHERE key_id = %s", [made.key_id]).fetchone()
        digest = connection.execute("SELECT key_sha256 FROM keys WHERE key_id = %s", [made.key_id]).fetchone()[0]
    assert made.key not in str(row)
    assert digest == hashlib.sha256(made.key.encode()).digest()
    got = await proxy.keys.GetKey(pb.GetKeyRequest(key_id=made.key_id), metadata=proxy.admin)
    assert got == made.record


async def test_every_wrong_field_is_named_at_once_and_nothing_is_made(proxy, refused, ledger):
    request = pb.CreateKeyRequest(
        account_id="no spaces allowed",
        name="x" * 201,
        key_type="root",
        prefix="UPPER",
        workspace="!",
        allowed_models=["", "m" * 300],
        daily_limit_nanos=-5,
        monthly_limit_usd="1e3",
        expires_at=in_seconds(-10),
        requests_per_minute=-1,
        tokens_per_minute=-1,
        request_id="a b",
    )
    refusal = await refused(proxy.keys.CreateKey(request, metadata=proxy.admin))
    assert {violation.field for violation in refusal.violations} == {
        "account_id",
        "name",
        "key_type",
        "prefix",
        "workspace",
        "allowed_models[0]",
        "allowed_models[1]",
        "daily_limit_nanos",
        "monthly_limit_usd",
        "expires_at",
        "requests_per_minute",
        "tokens_per_minute",
        "request_id",
    }
    both = pb.CreateKeyRequest(account_id="acme", daily_limit_nanos=5, daily_limit_usd="5.00")
    refusal = await refused(proxy.keys.CreateKey(both, metadata=proxy.admin))
    assert [violation.field for violation in refusal.violations] == ["daily_limit_usd"]
    assert not ledger.limits


async def test_key_of_an_unknown_account_is_not_made(proxy, refused):
    assert (await refused(proxy.make_key("nobody"))).reason == "ACCOUNT_NOT_FOUND"


async def test_limits_are_in_the_ledger_before_the_key_is_there(proxy, ledger, refused):
    ledger.down.add("set_limit")
    assert (await refused(proxy.make_key(daily_limit_usd="5.00"))).reason == "LEDGER_UNAVAILABLE"
    listed = await proxy.keys.ListKeys(pb.ListKeysRequest(account_id="acme"), metadata=proxy.admin)
    assert all(not key.daily_limit_nanos for key in listed.keys)
    ledger.down.clear()
    made = await proxy.make_key(daily_limit_usd="5.00", monthly_limit_nanos=50_000_000_000)
    assert [(limit.scope, limit.subject, limit.unit, limit.window, limit.amount_nanos) for limit in ledger.limits] == [
        ("key", made.key_id, "nanos", "day", 5_000_000_000),
        ("key", made.key_id, "nanos", "month", 50_000_000_000),
    ]
    assert (made.record.daily_limit_nanos, made.record.monthly_limit_nanos) == (5_000_000_000, 50_000_000_000)


async def test_repeated_request_makes_one_key_and_does_not_show_it_again(proxy, refused):
    first, second = await asyncio.gather(*(proxy.make_key(name="one", request_id="r-1") for _ in range(2)))
    again = await proxy.make_key(name="one", request_id="r-1")
    assert first.key_id == second.key_id == again.key_id
    assert bool(first.key) != bool(second.key)
    assert not again.key
    assert (await refused(proxy.make_key(name="two", request_id="r-1"))).reason == "IDEMPOTENCY_CONFLICT"


async def test_keys_are_listed_newest_first_in_pages(proxy, refused):
    made = [(await proxy.make_key(name=str(number))).key_id for number in range(5)]
    await proxy.entitle("other")
    await proxy.make_key("other")
    await proxy.keys.RevokeKey(pb.RevokeKeyRequest(key_id=made[1]), metadata=proxy.admin)
    found, token, pages = [], "", 0
    while token or not pages:
        page = await proxy.keys.ListKeys(
            pb.ListKeysRequest(account_id="acme", page_size=2, page_token=token), metadata=proxy.admin
        )
        found += [key.key_id for key in page.keys]
        token, pages = page.next_page_token, pages + 1
    assert [key_id for key_id in found if key_id in made] == made[::-1]
    for status, wanted in (("revoked", [made[1]]), ("active", [made[4], made[3], made[2], made[0]])):
        page = await proxy.keys.ListKeys(pb.ListKeysRequest(account_id="acme", status=status), metadata=proxy.admin)
        assert [key.key_id for key in page.keys if key.key_id in made] == wanted
    for wrong in ({"page_token": "x"}, {"page_token": "eA=="}, {"status": "gone"}, {"page_size": -1}):
        await refused(proxy.keys.ListKeys(pb.ListKeysRequest(**wrong), metadata=proxy.admin))


async def test_revoked_key_is_refused_within_a_second_on_every_replica(start_proxy, refused):
    first, second = await start_proxy(), await start_proxy()
    made = await first.make_key()
    for replica in (first, second):
        await listing(replica, made.key)
    await first.keys.RevokeKey(pb.RevokeKeyRequest(key_id=made.key_id), metadata=first.admin)
    # On the replica that revoked it at once, on the other when its memory of it ends.
    assert (await refused(listing(first, made.key))).reason == "API_KEY_REVOKED"
    await asyncio.sleep(1)
    refusal = await refused(listing(second, made.key))
    assert refusal.reason == "API_KEY_REVOKED"
    assert refusal.trailing["x-tollkeeper-http-status"] == "401"
    again = await first.keys.RevokeKey(pb.RevokeKeyRequest(key_id=made.key_id), metadata=first.admin)
    assert again.status == "revoked"


async def test_expired_and_unknown_keys_are_refused(proxy, refused, ledger):
    made = await proxy.make_key(expires_at=in_seconds(3))
    await listing(proxy, made.key)
    await asyncio.sleep(3.1)
    assert (await refused(listing(proxy, made.key))).reason == "API_KEY_EXPIRED"
    for secret in ("tk_live_" + "A" * 40, "nonsense", "x" * 10_000, made.key + "x"):
        assert (await refused(proxy.chat(secret))).reason == "API_KEY_INVALID"
    refusal = await refused(proxy.chat("", metadata=()))
    assert refusal.reason == "CREDENTIAL_MISSING"
    assert not ledger.holds


@pytest.mark.parametrize("header", ["x-api-key", "x-goog-api-key"])
async def test_key_may_come_in_the_header_of_each_sdk(proxy, key, header):
    await listing(proxy, key, header)


async def test_forged_identity_is_ignored_on_wire_calls(proxy, key, signer, ledger, refused):
    await proxy.entitle("victim")
    other = signer.sign(Identity(Role.ACCOUNT, subject="x", account_id="victim", key_id="key-x"), 60)
    service = signer.sign(Identity(Role.SERVICE, subject="service"), 60)
    for metadata in (
        (("x-tollkeeper-identity", other),),
        (("x-tollkeeper-identity", service),),
        (("authorization", f"Bearer {service}"),),
    ):
        refusal = await refused(proxy.chat("", metadata=metadata))
        assert refusal.reason in {"CREDENTIAL_MISSING", "API_KEY_INVALID"}
    await proxy.chat("", metadata=(("x-tollkeeper-identity", other), ("authorization", f"Bearer {key}")), max_tokens=5)
    assert [bill.account_id for bill in ledger.bills] == ["acme"]


async def test_admin_key_calls_no_model(proxy, refused, ledger):
    made = await proxy.make_key("", key_type="admin")
    assert (await refused(proxy.chat(made.key))).reason == "KEY_TYPE_NOT_ALLOWED"
    assert (await refused(proxy.make_key("", key_type="standard"))).reason == "INVALID_ARGUMENT"
    limited = await refused(proxy.make_key("", key_type="admin", daily_limit_usd="1"))
    assert limited.violations[0].field == "daily_limit_nanos"
    assert not ledger.holds


async def test_key_allowed_some_models_calls_only_those(proxy, refused, ledger):
    made = await proxy.make_key(allowed_models=["gpt-3.5-turbo"])
    refusal = await refused(proxy.chat(made.key))
    assert refusal.reason == "MODEL_NOT_ALLOWED"
    assert refusal.trailing["x-tollkeeper-http-status"] == "403"
    await proxy.chat(made.key, model="gpt-3.5-turbo", max_tokens=5)
    assert len(ledger.bills) == 1


async def test_unknown_key_ids_are_not_found(proxy, refused):
    for call in (
        proxy.keys.GetKey(pb.GetKeyRequest(key_id="key-none"), metadata=proxy.admin),
        proxy.keys.RevokeKey(pb.RevokeKeyRequest(key_id="key-none"), metadata=proxy.admin),
    ):
        assert (await refused(call)).reason == "KEY_NOT_FOUND"
    assert (
        await refused(proxy.keys.GetKey(pb.GetKeyRequest(key_id="k" * 10_000), metadata=proxy.admin))
    ).reason == "INVALID_ARGUMENT"


async def test_rotation_is_not_built_yet(proxy, refused):
    refusal = await refused(proxy.keys.RotateKey(pb.RotateKeyRequest(key_id="key-1"), metadata=proxy.admin))
    assert refusal.reason == "NOT_IMPLEMENTED"


async def test_bootstrap_prints_an_admin_key_that_works(start_proxy, proxy_database, authorize):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "services.proxy", "bootstrap-admin-key"],
        env=environment | {"TOLLKEEPER_PROXY_DATABASE_URL": proxy_database},
        capture_output=True,
        check=True,
        timeout=60,
    )
    printed = json.loads(done.stdout)
    assert set(printed) == {"keyId", "key"}
    proxy = await start_proxy()
    identity = await authorize(proxy, {"authorization": f"Bearer {printed['key']}"})
    assert (identity.role, identity.key_id) == (Role.ADMIN, printed["keyId"])

"""Keys: made once, shown once, kept as a hash, and seen to end within a second."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time

import grpc.aio
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.proxy.v1 import key_service_pb2 as pb
from tollkeeper.proxy.v1 import key_service_pb2_grpc, wire_service_pb2

from services.kit.db import connection_string
from services.kit.errors import RemoteError
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


async def test_limit_of_nothing_is_refused_and_makes_no_key_that_may_spend_all(proxy, refused, ledger):
    nothing = pb.CreateKeyRequest(account_id="acme", daily_limit_nanos=0, monthly_limit_usd="0")
    refusal = await refused(proxy.keys.CreateKey(nothing, metadata=proxy.admin))
    assert [violation.field for violation in refusal.violations] == ["daily_limit_nanos", "monthly_limit_usd"]
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


def limits_of(ledger, key_id):
    """What the ledger was told of a key's limits, as (window, nanos); what was told twice once."""
    return {(limit.window, limit.amount_nanos) for limit in ledger.limits if limit.subject == key_id}


async def test_equal_requests_at_once_make_one_key(proxy, ledger):
    for number in range(5):
        answers = await asyncio.gather(
            *(proxy.make_key(daily_limit_usd="5.00", request_id=f"r-{number}") for _ in range(8))
        )
        assert len({answer.key_id for answer in answers}) == 1
        assert len([answer for answer in answers if answer.key]) == 1
        assert limits_of(ledger, answers[0].key_id) == {("day", 5_000_000_000)}


@pytest.mark.parametrize(
    "other",
    [{"daily_limit_nanos": 7}, {"monthly_limit_nanos": 5}, {"daily_limit_nanos": 5, "monthly_limit_nanos": 9}, {}],
    ids=["amount", "window", "one-more", "none"],
)
async def test_key_that_won_a_race_has_its_own_limits(proxy, ledger, other):
    """Two bodies under one request id at once: the limits of the key that is there are those of its record."""
    ledger.delay_seconds = 0.01
    for number in range(6):
        bodies = [{"daily_limit_nanos": 5}, other]
        results = await asyncio.gather(
            *(proxy.make_key(request_id=f"r-{number}", **body) for body in bodies[:: 1 if number % 2 else -1]),
            return_exceptions=True,
        )
        made = [result for result in results if not isinstance(result, BaseException)]
        refusals = [RemoteError.from_rpc(result) for result in results if isinstance(result, BaseException)]
        assert (len(made), [refusal.reason for refusal in refusals]) == (1, ["IDEMPOTENCY_CONFLICT"])
        record = made[0].record
        wanted = {("day", record.daily_limit_nanos), ("month", record.monthly_limit_nanos)}
        assert limits_of(ledger, record.key_id) == {(window, nanos) for window, nanos in wanted if nanos}


async def test_other_body_after_a_lost_answer_gets_its_own_limits(proxy, ledger, refused):
    ledger.lose["set_limit"] = 1
    lost = proxy.make_key(daily_limit_nanos=5, request_id="r-1")
    assert (await refused(lost)).reason == "LEDGER_UNAVAILABLE"
    made = await proxy.make_key(monthly_limit_nanos=9, request_id="r-1")
    assert limits_of(ledger, made.key_id) == {("month", 9)}


async def test_repeat_after_a_lost_answer_finishes_the_key(proxy, ledger, refused):
    body = {"daily_limit_nanos": 5, "monthly_limit_nanos": 9, "request_id": "r-1"}
    ledger.lose["set_limit"] = 1
    assert (await refused(proxy.make_key(**body))).reason == "LEDGER_UNAVAILABLE"
    made = await proxy.make_key(**body)
    assert made.key
    # Told twice, as one and the same: the ledger knows the repeat by its request id.
    assert len({(limit.subject, limit.window, limit.request_id) for limit in ledger.limits}) == 2
    assert limits_of(ledger, made.key_id) == {("day", 5), ("month", 9)}


async def test_proxy_killed_between_limits_and_key_leaves_no_key(
    start_proxy, proxy_settings, proxy_database, ledger, eventually
):
    """The table is locked for writing, so that the killed process has set the limits and not written the key."""
    names = {"TOLLKEEPER_IDENTITY_JWKS_FILE": "identity_jwks_file", "TOLLKEEPER_PROXY_DATABASE_URL": "database_url"}
    for name in ("listen", "redis_url", "identity_signing_key_file", "ledger_addr", "pricing_addr"):
        names[f"TOLLKEEPER_PROXY_{name.upper()}"] = name
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
    environment |= {variable: str(getattr(proxy_settings, field)) for variable, field in names.items()}
    survivor = await start_proxy()
    body = {"account_id": "acme", "daily_limit_nanos": 5, "request_id": "r-1"}
    with psycopg.connect(connection_string(proxy_database)) as connection:
        async with serving_process(environment) as (process, address):
            connection.execute("LOCK TABLE keys IN SHARE MODE")
            async with grpc.aio.insecure_channel(address) as channel:
                keys = key_service_pb2_grpc.KeyServiceStub(channel)
                asked = keys.CreateKey(pb.CreateKeyRequest(**body), metadata=survivor.admin)
                await eventually(lambda: ledger.limits or asked.done())
                process.kill()
                assert await asked.code() is grpc.StatusCode.UNAVAILABLE
        connection.rollback()
        made_by_request = "SELECT key_id FROM keys WHERE request_id = 'r-1'"
        assert connection.execute(made_by_request).fetchall() == []
    made = await survivor.make_key(**body)
    assert made.key
    assert limits_of(ledger, made.key_id) == {("day", 5)}
    assert {limit.subject for limit in ledger.limits} == {made.key_id}


@contextlib.asynccontextmanager
async def serving_process(environment):
    """A proxy in a process of its own: the process, and its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.proxy", "serve"), env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        while True:
            line = await asyncio.wait_for(process.stderr.readline(), 30)
            assert line, "the proxy ended"
            if b'"serving"' in line:
                break
        yield process, json.loads(line)["address"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"name": "a\x00b"}, "name"),
        ({"name": "\x1b[2J"}, "name"),
        ({"workspace": "a\x00"}, "workspace"),
        ({"workspace": "w" * 65}, "workspace"),
        ({"workspace": "wörk"}, "workspace"),
        ({"account_id": "acme\n"}, "account_id"),
        ({"key_type": "STANDARD"}, "key_type"),
        ({"prefix": "x"}, "prefix"),
        ({"prefix": "x" * 33}, "prefix"),
        ({"prefix": "tk_live_\n"}, "prefix"),
        ({"prefix": "a b"}, "prefix"),
        ({"prefix": "Bearer"}, "prefix"),
        ({"prefix": "tk\u0663_"}, "prefix"),
        ({"prefix": "a.b"}, "prefix"),
        ({"allowed_models": ["m"] * 101}, "allowed_models"),
        ({"allowed_models": ["gpt-4o", "\x00"]}, "allowed_models[1]"),
        ({"allowed_models": [" "]}, "allowed_models[0]"),
        ({"daily_limit_nanos": 2**63 - 1}, "daily_limit_nanos"),
        ({"monthly_limit_usd": "1000000000.000000001"}, "monthly_limit_usd"),
        ({"monthly_limit_usd": "9" * 39}, "monthly_limit_usd"),
        ({"daily_limit_usd": "\u0665"}, "daily_limit_usd"),
        ({"expires_at": Timestamp(seconds=253402300799)}, "expires_at"),
        ({"expires_at": Timestamp(seconds=-62135596800)}, "expires_at"),
        ({"expires_at": Timestamp(seconds=2**62)}, "expires_at"),
        ({"expires_at": Timestamp(seconds=4_000_000_000, nanos=-1)}, "expires_at"),
        ({"expires_at": Timestamp()}, "expires_at"),
        ({"tokens_per_minute": -(2**63)}, "tokens_per_minute"),
        ({"request_id": "r" * 65}, "request_id"),
    ],
)
async def test_field_at_its_edge_is_named(proxy, refused, ledger, fields, wrong):
    refusal = await refused(proxy.make_key(**fields))
    assert [violation.field for violation in refusal.violations] == [wrong]
    assert not ledger.limits


async def test_largest_of_everything_is_taken(proxy, authorize):
    made = await proxy.make_key(
        name="ß" * 200,
        prefix="-_" * 16,
        workspace="w" * 64,
        allowed_models=[f"{number:0>200}" for number in range(100)],
        daily_limit_nanos=10**18,
        monthly_limit_usd="1000000000",
        requests_per_minute=2**31 - 1,
        tokens_per_minute=2**63 - 1,
        expires_at=Timestamp(seconds=253_370_764_799),  # the end of 9998
        request_id="r" * 64,
    )
    got = await proxy.keys.GetKey(pb.GetKeyRequest(key_id=made.key_id), metadata=proxy.admin)
    assert got == made.record
    assert len(made.record.allowed_models) == 100
    for headers in ({"x-api-key": made.key}, {"authorization": f"bearer  {made.key} "}, {"x-goog-api-key": made.key}):
        assert (await authorize(proxy, headers)).key_id == made.key_id


@pytest.mark.parametrize("prefix", ["aa", "--", "tk_admin_", "bearer", "0123456789", "x" * 32])
async def test_key_with_any_prefix_is_known_by_itself_alone(proxy, refused, prefix):
    made = await proxy.make_key(prefix=prefix)
    await listing(proxy, made.key)
    for other in (made.key[1:], made.key[:-1], made.key + "A", made.key.swapcase()):
        assert (await refused(listing(proxy, other))).reason == "API_KEY_INVALID"


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


async def test_revoked_key_is_refused_at_once_and_stays_revoked(proxy, refused):
    made = await proxy.make_key()
    await listing(proxy, made.key)
    first, again = [
        await proxy.keys.RevokeKey(pb.RevokeKeyRequest(key_id=made.key_id), metadata=proxy.admin) for _ in range(2)
    ]
    assert first.status == "revoked"
    assert again == first
    refusal = await refused(listing(proxy, made.key))
    assert refusal.reason == "API_KEY_REVOKED"
    assert refusal.trailing["x-tollkeeper-http-status"] == "401"


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


def test_bootstrap_is_among_the_commands_and_says_which_setting_it_lacks():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
    words = [sys.executable, "-m", "services.proxy"]
    told = subprocess.run([*words, "--help"], env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert "bootstrap-admin-key" in told.stdout
    done = subprocess.run(
        [*words, "bootstrap-admin-key"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "TOLLKEEPER_<SERVICE>_DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


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

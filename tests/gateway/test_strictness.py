"""A request has one reading: what two readers could take for different requests is refused or made plain."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

KEY = {"authorization": "Bearer tk_test_good"}
TRANSACTIONS = "tollkeeper.ledger.v1.JournalService.ListTransactions"
MODEL = "tollkeeper.proxy.v1.WireService.GetModel"

POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
SMUGGLED = b"GET /api/billing/transactions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer forged\r\n\r\n"


AMBIGUOUS = {
    "length and chunks": POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks and length": POST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": POST + b"content-length: 2\r\ncontent-length: 4\r\n\r\n{}" + SMUGGLED,
    "list of lengths": POST + b"content-length: 2, 4\r\n\r\n{}" + SMUGGLED,
    "negative length": POST + b"content-length: -2\r\n\r\n{}" + SMUGGLED,
    "signed length": POST + b"content-length: +2\r\n\r\n{}" + SMUGGLED,
    "hexadecimal length": POST + b"content-length: 0x2\r\n\r\n{}" + SMUGGLED,
    "unknown coding": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked not last": POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "space before the colon": POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "bad chunk size": POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n\r\n" + SMUGGLED,
    "nul in a value": POST + b"x: a\x00b\r\ncontent-length: 0\r\n\r\n" + SMUGGLED,
    "no host": b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n" + SMUGGLED,
    "two hosts": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nhost: y\r\ncontent-length: 0\r\n\r\n" + SMUGGLED,
    "unknown version": b"POST /v1/chat/completions HTTP/9.9\r\nhost: x\r\ncontent-length: 0\r\n\r\n" + SMUGGLED,
    "nul in the path": b"GET /v1/models\x00 HTTP/1.1\r\nhost: x\r\n\r\n" + SMUGGLED,
}


def at_once(gateway, requests):
    """What each of these is answered with. Envoy gives who was refused a second to hang up, so they wait together."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return dict(zip(requests, pool.map(gateway.raw, requests.values()), strict=True))


def refused_once(answer):
    """Whether there was one answer, and it was a refusal."""
    status = int(answer.split(b" ", 2)[1])
    return (400 <= status < 500 or status == 501) and answer.count(b"HTTP/1.1") == 1


def test_ambiguous_request_is_refused_and_nothing_is_read_after_it(gateway, services):
    answers = at_once(gateway, AMBIGUOUS)
    assert {name: answer for name, answer in answers.items() if not refused_once(answer)} == {}
    assert services.calls == []
    assert services.checks == []


def test_refused_request_is_answered_in_json_all_the_same(gateway):
    head, _, body = gateway.raw(POST + b"x_y: 1\r\ncontent-length: 0\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"application/json" in head
    assert json.loads(body)["details"][0]["reason"] == "INVALID_REQUEST"


def test_http_1_0_is_told_what_is_spoken_here(gateway, services):
    paths = (b"/healthz", b"/api/billing/transactions", b"/v1/models")
    for answer in at_once(gateway, {path: b"GET " + path + b" HTTP/1.0\r\nhost: x\r\n\r\n" for path in paths}).values():
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 426")
        assert json.loads(body)["details"][0]["reason"] == "HTTP_VERSION_REFUSED"
    assert services.calls == []


@pytest.mark.parametrize(
    "path",
    [
        "/api//billing///transactions",
        "/api/./billing/transactions",
        "/v1/../api/billing/transactions",
        "/v1/models/x/../../../api/billing/transactions",
        "/v1/models/..%2f..%2fapi/billing/transactions",
        "/v1/models/%2e%2e/%2E%2E/api/billing/transactions",
        "/v1/models/..%5c..%5capi%5cbilling%5ctransactions",
    ],
)
def test_path_said_otherwise_is_the_same_path_to_all_who_read_it(gateway, services, path):
    connection = gateway.connect()
    connection.request("GET", path, headers=KEY)
    response = connection.getresponse()
    response.read()
    connection.close()
    if response.status == 200:
        # Whoever serves it, the authorizer was asked about that very path.
        assert [call.rpc for call in services.calls] == [TRANSACTIONS]
        assert [check.path for check in services.checks] == ["/api/billing/transactions"]
    else:
        assert response.status in {400, 404}
        assert services.calls == []


def test_path_above_the_root_is_refused(gateway, services):
    assert gateway("GET", "/v1/models/..%2f..%2f..%2f..%2fetc/passwd").status in {400, 404}
    assert services.calls == []


@pytest.mark.parametrize(("size", "status"), [(60_000, 200), (70_000, 431)])
def test_headers_over_64_kib_are_a_431(gateway, services, size, status):
    answer = gateway("GET", "/v1/models", x_long="x" * size)
    assert answer.status == status
    assert len(services.calls) == (status == 200)


@pytest.mark.parametrize(("count", "status"), [(90, 200), (110, 431)])
def test_more_than_a_hundred_headers_are_a_431(gateway, services, count, status):
    connection = gateway.connect()
    connection.request("GET", "/v1/models", headers={f"x-{number}": "v" for number in range(count)})
    assert connection.getresponse().status == status
    connection.close()
    assert len(services.calls) == (status == 200)


@pytest.mark.parametrize("count", [94, 97])
def test_header_that_the_identity_makes_one_too_many_is_a_431(gateway, services, count):
    headers = {f"x-{number}": "v" for number in range(count)} | KEY
    connection = gateway.connect()
    connection.request("GET", "/api/billing/transactions", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 431
    assert json.loads(answer.read())["details"][0]["reason"] == "HEADERS_TOO_LARGE"
    connection.close()
    assert services.calls == []


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PUT", "HEAD", "PROPFIND"])
def test_method_that_no_path_takes_reaches_nobody(gateway, services, method):
    connection = gateway.connect()
    try:
        connection.request(method, "/api/billing/transactions", headers=KEY)
        assert connection.getresponse().status in {400, 404, 405, 501}
    except http.client.HTTPException:
        pass  # closed without a word
    finally:
        connection.close()
    assert services.calls == []
    assert services.checks == []


def test_answers_name_the_gateway_and_nothing_behind_it(gateway):
    for path in ("/healthz", "/v1/models", "/nothing"):
        headers = gateway("GET", path).headers
        assert headers["server"] == "tollkeeper"
        assert not {"x-powered-by", "via", "x-envoy-upstream-service-time"} & set(headers)


def test_upgrade_is_not_taken(gateway, services):
    sent = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    assert not gateway.raw(sent.replace(b"\r\n\r\n", b"\r\nsec-websocket-version: 13\r\n\r\n")).startswith(
        b"HTTP/1.1 101"
    )


# ---- whose address it is


def address_logged(gateway, name, **headers):
    gateway("GET", f"/v1/models/{name}", **headers)
    import time  # noqa: PLC0415

    deadline = time.monotonic() + 15
    while name not in (log := gateway.log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return next(json.loads(line)["client"] for line in log.splitlines() if name in line)


def test_forwarded_address_is_not_believed_where_no_proxy_is_trusted(gateway):
    assert address_logged(gateway, "forged", x_forwarded_for="9.9.9.9") == "127.0.0.1"


def test_forwarded_address_is_the_client_where_a_proxy_is_trusted(make_gateway):
    behind = make_gateway(trusted_hops=1)
    assert address_logged(behind, "relayed", x_forwarded_for="8.8.8.8, 9.9.9.9") == "9.9.9.9"

"""Owns the proof that a public price map is compared and published as promised: dry by default, guarded, once."""

import contextlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from tollkeeper.pricing.v1 import pricing_service_pb2 as pb
from tollkeeper.pricing.v1.resources_pb2 import Price, Rate, Usage

from services.pricing.litellm.fetching import BadAddressError, FetchError, fetch

USD = 1_000_000_000
LINK_LOCAL = ("169.254.169.254", "[fe80::1]", "[fe80::1%25eth0]", "[::ffff:169.254.169.254]", "0.0.0.0", "224.0.0.1")
INPUT, OUTPUT = "input_cost_per_token", "output_cost_per_token"


def content(**entries):
    full = {
        key.replace("_", "-"): {"litellm_provider": "acme", "mode": "chat", **fields} for key, fields in entries.items()
    }
    return json.dumps(full).encode()


def ordered(source=b"", request_id="r1", *, dry_run=False, **fields):
    return pb.ImportPricesRequest(content=source, dry_run=dry_run, request_id=request_id, **fields)


def told(response):
    return [(change.kind, change.model) for change in response.changes]


def versions(admin):
    found = admin.prices.ListCatalogueVersions(pb.ListCatalogueVersionsRequest()).versions
    return [(one.version, one.author, one.reason, one.prices_changed) for one in found]


def cost_of(pricing, model, **fields):
    usage = Usage(input_tokens=1_000_000)
    return pricing.prices.CalculateCost(pb.CalculateCostRequest(provider="acme", model=model, usage=usage, **fields))


@pytest.fixture
def admin(pricing, client):
    return client(pricing.server, "ADMIN")


@pytest.fixture
def web():
    """`with web(answer) as url`: a server whose requests `answer(handler)` answers."""

    @contextmanager
    def serving(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/map.json"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    return serving


def sent(handler, body, status=200, **headers):
    handler.send_response(status)
    for name, value in {"content-length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def test_import_is_dry_by_default_and_writes_nothing(pricing, admin, refused):
    response = admin.prices.ImportPrices(
        pb.ImportPricesRequest(content=content(a={INPUT: 1e-06, "cost_per_moon": 5}, b={}))
    )
    assert told(response) == [("new", "a")]
    assert [(one.key, one.reason) for one in response.skipped] == [("b", "has no price")]
    assert list(response.unknown_fields) == ["cost_per_moon"]
    assert not response.HasField("version")
    assert response.changes[0].after.rates[0].nanos_per_million == USD
    assert not response.changes[0].HasField("before")
    assert [number for number, *_ in versions(admin)] == [1]
    assert refused(lambda _: cost_of(pricing, "a"), None).reason == "PRICE_NOT_FOUND"


def test_applied_import_publishes_what_is_new_and_changed_as_one_version(pricing, admin):
    first = content(same={INPUT: 1e-06}, moved={INPUT: 1e-06}, gone={INPUT: 1e-06})
    assert admin.prices.ImportPrices(ordered(first, reason="spring")).version.version == 2
    second = content(same={INPUT: 1e-06}, moved={INPUT: 1.1e-06}, added={INPUT: 3e-06, f"{INPUT}_batches": 1e-06})
    response = admin.prices.ImportPrices(ordered(second, "r2"))
    assert told(response) == [("changed", "moved"), ("new", "added"), ("gone", "gone")]
    assert (response.changes[0].largest_move_basis_points, response.version.prices_changed) == (1000, 2)
    assert (response.changes[0].before.version, response.changes[0].after.version) == (2, 3)
    assert versions(admin)[:2] == [(3, "the-admin", "", 2), (2, "the-admin", "spring", 3)]
    assert (cost_of(pricing, "moved").cost_nanos, cost_of(pricing, "moved").price_version) == (1_100_000_000, 3)
    assert cost_of(pricing, "moved", price_version=2).cost_nanos == USD
    assert cost_of(pricing, "same").price_version == 2
    assert cost_of(pricing, "gone").cost_nanos == USD  # told, not withdrawn
    assert cost_of(pricing, "added", service_tier="batch").cost_nanos == USD


def test_model_that_was_withdrawn_stays_so_whatever_a_map_says(pricing, admin, refused):
    admin.prices.ImportPrices(ordered(content(kept={INPUT: 1e-06}, banned={INPUT: 1e-06})))
    withdrawal = Price(provider="acme", model="banned", withdrawn=True)
    admin.prices.PublishPrices(pb.PublishPricesRequest(prices=[withdrawal], request_id="p1"))
    response = admin.prices.ImportPrices(ordered(content(kept={INPUT: 1e-06}, banned={INPUT: 9e-06}), "r2"))
    assert told(response) == [("withdrawn", "banned")]
    assert not response.HasField("version")
    assert refused(lambda _: cost_of(pricing, "banned"), None).reason == "PRICE_NOT_FOUND"
    rates = [Rate(component="input", nanos_per_million=USD)]
    back = Price(provider="acme", model="banned", mode="chat", rates=rates)
    admin.prices.PublishPrices(pb.PublishPricesRequest(prices=[back], request_id="p2"))
    assert cost_of(pricing, "banned").cost_nanos == USD


def test_map_that_differs_in_nothing_publishes_nothing(admin):
    admin.prices.ImportPrices(ordered(content(a={INPUT: 1e-06})))
    response = admin.prices.ImportPrices(ordered(content(a={INPUT: 1e-06}), "r2"))
    assert told(response) == []
    assert not response.HasField("version")
    assert [number for number, *_ in versions(admin)] == [2, 1]


def test_shipped_price_that_the_map_has_otherwise_is_a_move(admin, refused):
    shipped = json.dumps({"gpt-4o": {"litellm_provider": "openai", "mode": "chat", INPUT: 2.5e-06, OUTPUT: 1e-05}})
    error = refused(admin.prices.ImportPrices, ordered(shipped.encode()))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PRICE_MOVE_TOO_LARGE")
    assert [(one.field, one.description) for one in error.violations] == [("openai/gpt-4o", "50.00 %")]
    assert [number for number, *_ in versions(admin)] == [1]
    assert admin.prices.ImportPrices(ordered(shipped.encode(), max_move_percent=50)).version.version == 2


@pytest.mark.parametrize(
    ("was", "becomes", "limit", "passes"),
    [
        (1e-06, 1.2e-06, {}, True),
        (1e-06, 1.2001e-06, {}, False),
        (1e-06, 0.7999e-06, {}, False),
        (1e-06, 1e-06 * 1.001, {"max_move_percent": 0}, False),
        (1e-06, 0, {"max_move_percent": 100}, True),
        (0, 1e-06, {"max_move_percent": 999_999}, False),
        (0, 1e-06, {"max_move_percent": 1_000_000}, True),
    ],
)
def test_move_above_the_limit_is_refused_whole(admin, refused, was, becomes, limit, passes):  # noqa: PLR0917 (a case)
    admin.prices.ImportPrices(ordered(content(a={INPUT: was})))
    request = ordered(content(a={INPUT: becomes}, b={INPUT: 1e-06}), "r2", **limit)
    if passes:
        assert admin.prices.ImportPrices(request).version.version == 3
    else:
        assert refused(admin.prices.ImportPrices, request).reason == "PRICE_MOVE_TOO_LARGE"
        assert [number for number, *_ in versions(admin)] == [2, 1]
    request.dry_run = True
    admin.prices.ImportPrices(request)  # a dry run tells moves, it does not refuse them


def test_repeated_import_publishes_once_and_answers_the_same(admin):
    admin.prices.ImportPrices(ordered(content(a={INPUT: 1e-06}, gone={INPUT: 1e-06})))
    request = ordered(content(a={INPUT: 1.1e-06}, b={INPUT: 1e-06}, c={}), "r2")
    first = admin.prices.ImportPrices(request)
    admin.prices.ImportPrices(ordered(content(a={INPUT: 1.2e-06}), "r3"))
    second, call = admin.prices.ImportPrices.with_call(request)
    assert dict(call.trailing_metadata())["idempotency-replayed"] == "true"
    assert second == first
    assert [number for number, *_ in versions(admin)] == [4, 3, 2, 1]


def test_other_body_with_the_same_key_is_refused(admin, refused):
    admin.prices.ImportPrices(ordered(content(a={INPUT: 1e-06})))
    for other in (ordered(content(b={INPUT: 1e-06})), ordered(content(a={INPUT: 1e-06}), max_move_percent=21)):
        assert refused(admin.prices.ImportPrices, other).reason == "IDEMPOTENCY_CONFLICT"


BAD_REQUESTS = (
    (ordered(), "content"),
    (ordered(b"{}", url="http://127.0.0.1/x"), "content"),
    (ordered(b"{}"), "content"),
    (ordered(b"x" * (10 * 1024 * 1024 + 1)), "content"),
    (ordered(b"x" * (10 * 1024 * 1024)), "content"),
    (ordered(content(a={INPUT: -1})), "content"),
    (ordered(content(a={INPUT: 1e-06}), request_id=""), "request_id"),
    (ordered(content(a={INPUT: 1e-06}), max_move_percent=-1), "max_move_percent"),
    (ordered(content(a={INPUT: 1e-06}), max_move_percent=1_000_001), "max_move_percent"),
    (ordered(content(a={INPUT: 1e-06}), reason="x" * 501), "reason"),
    (ordered(url="file:///etc/passwd"), "url"),
    (ordered(url="ftp://127.0.0.1/map"), "url"),
    (ordered(url="http://"), "url"),
    (ordered(url="http://127.0.0.1:port/"), "url"),
    (ordered(url="http://[::1/"), "url"),
    (ordered(url="http://user:secret@127.0.0.1/"), "url"),
    (ordered(url="http://127.0.0.1/a b"), "url"),
    (ordered(url="http://127.0.0.1/\n"), "url"),
    (ordered(url="http://127.0.0.1/" + "x" * 2000), "url"),
    *((ordered(url=f"http://{host}/"), "url") for host in LINK_LOCAL),
)


def test_bad_request_names_the_field_and_writes_nothing(admin, refused):
    for request, field in BAD_REQUESTS:
        error = refused(admin.prices.ImportPrices, request)
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT, request
        assert [violation.field for violation in error.violations] == [field], request
    assert [number for number, *_ in versions(admin)] == [1]


def test_no_customer_imports(pricing, client, refused):
    customer = client(pricing.server, "ACCOUNT", "acme")
    assert refused(customer.prices.ImportPrices, ordered(content(a={INPUT: 1e-06}))).reason == "ROLE_TOO_LOW"


# ------------------------------------------------------------------------------------------------------- by its address


def test_map_is_fetched_by_its_address_through_redirects(admin, web):
    asked = []

    def answer(handler):
        asked.append(handler.path)
        if handler.path == "/map.json":
            sent(handler, b"", 302, location="/moved.json")
        else:
            sent(handler, content(a={INPUT: 1e-06}))

    with web(answer) as url:
        response = admin.prices.ImportPrices(ordered(url=url))
        assert (told(response), response.version.version) == ([("new", "a")], 2)
        assert asked == ["/map.json", "/moved.json"]
        again, call = admin.prices.ImportPrices.with_call(ordered(url=url))
        assert dict(call.trailing_metadata())["idempotency-replayed"] == "true"
        assert (told(again), again.version) == (told(response), response.version)
        assert len(asked) == 2  # a repeat asks nobody


def _nothing(_handler):
    pass


def _endless(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(12):
        handler.wfile.write(b" " * 1024 * 1024)


def _cut_short(handler):
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")


BAD_ANSWERS = (
    (lambda handler: sent(handler, b"", 404), "PRICE_MAP_UNREACHABLE", "the server answered 404"),
    (lambda handler: sent(handler, b"", 500), "PRICE_MAP_UNREACHABLE", "the server answered 500"),
    (lambda handler: sent(handler, b"", 302, location=handler.path), "PRICE_MAP_UNREACHABLE", "answered 302"),
    (
        lambda handler: sent(handler, b"", 302, location=f"{handler.path}x"),
        "PRICE_MAP_UNREACHABLE",
        "answered 302",
    ),
    (lambda handler: sent(handler, b"", 302, location="file:///etc/passwd"), "PRICE_MAP_UNREACHABLE", "302"),
    (lambda handler: sent(handler, b"", 302, location="ftp://127.0.0.1/"), "PRICE_MAP_UNREACHABLE", "unknown url"),
    (lambda handler: handler.wfile.write(b"junk\r\n\r\n"), "PRICE_MAP_UNREACHABLE", "could not be fetched"),
    (_nothing, "PRICE_MAP_UNREACHABLE", "could not be fetched"),
    (_cut_short, "PRICE_MAP_UNREACHABLE", "cut short"),
    (_endless, "INVALID_ARGUMENT", "larger than"),
    (lambda handler: sent(handler, b"<html>"), "INVALID_ARGUMENT", "is not JSON"),
    *(
        (
            lambda handler, host=host: sent(handler, b"", 302, location=f"http://{host}/"),
            "INVALID_ARGUMENT",
            "link-local",
        )
        for host in LINK_LOCAL
    ),
)


def test_address_that_gives_no_map_is_refused_with_the_reason(admin, refused, web):
    for answer, reason, told in BAD_ANSWERS:
        with web(answer) as url:
            error = refused(admin.prices.ImportPrices, ordered(url=url))
        assert error.reason == reason, told
        assert told in error.message
    assert refused(admin.prices.ImportPrices, ordered(url=url)).reason == "PRICE_MAP_UNREACHABLE"  # nobody is there
    assert [number for number, *_ in versions(admin)] == [1]


def test_name_of_a_link_local_address_is_told_nothing(admin, refused, web, monkeypatch):
    asked = []

    def of_a_name(host):
        if host == "127.0.0.1":  # as if that were the link-local address which `localhost` turns out to be
            raise BadAddressError("must not be a link-local address")

    monkeypatch.setattr("services.pricing.litellm.fetching.check_peer", of_a_name)
    with web(asked.append) as url:
        error = refused(admin.prices.ImportPrices, ordered(url=url.replace("127.0.0.1", "localhost")))
    assert [violation.field for violation in error.violations] == ["url"]
    assert asked == []


def test_slow_answer_is_cut_off(web):
    stopped = threading.Event()

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while not stopped.wait(0.02):
                handler.wfile.write(b" ")

    with web(drip) as url:
        with pytest.raises(FetchError, match="in time"):
            fetch(url, timeout_seconds=0.3)
        stopped.set()

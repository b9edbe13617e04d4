# ruff: noqa: N818 (refusals are named for what is wrong)
"""Owns the tests of the error model: the catalogue, the wire form and its bounds, and reading it back."""

import grpc
import psycopg
import pytest
import sqlalchemy.exc
from google.rpc import error_details_pb2, status_pb2
from hypothesis import example, given
from hypothesis import strategies as st

from services.kit.errors import (
    DETAILS_KEY,
    HTTP_STATUS_KEY,
    REASON_KEY,
    Kind,
    RemoteError,
    ServiceError,
    Violation,
    catalogue,
    wire_form,
)
from services.kit.refusals import Internal, KitError, PeerUnavailable, StorageUnavailable, as_refusal


class ShopError(ServiceError):
    domain = "tollkeeper.shop"


class ShopClosed(ShopError):
    kind = Kind.PRECONDITION
    reason = "SHOP_CLOSED"
    advice = "Come back tomorrow."


class BakeryClosed(ShopClosed):
    reason = "BAKERY_CLOSED"


class FakeRpcError(grpc.RpcError):
    """What a failed call raises, as the client library makes it."""

    def __init__(self, code, details="", trailing=()):
        self._answer = code, details, trailing

    def code(self):
        return self._answer[0]

    def details(self):
        return self._answer[1]

    def trailing_metadata(self):
        return self._answer[2]


def over_the_wire(error):
    return RemoteError.from_rpc(FakeRpcError(*wire_form(error)))


def test_every_kind_is_told_apart_by_code_and_http_status():
    for kind in Kind:
        assert Kind.of(kind.grpc_code, kind.http_status) is kind


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Kind.EXHAUSTED),
        (grpc.StatusCode.INVALID_ARGUMENT, Kind.INVALID),
        (grpc.StatusCode.UNAVAILABLE, Kind.UNAVAILABLE),
        (grpc.StatusCode.OUT_OF_RANGE, Kind.INVALID),
        (grpc.StatusCode.UNKNOWN, Kind.INTERNAL),
    ],
)
def test_a_bare_code_has_a_kind(code, kind):
    assert Kind.of(code) is kind


def test_the_catalogue_lists_every_refusal_of_a_service_and_no_base():
    assert catalogue(ShopError) == [BakeryClosed, ShopClosed]
    assert all(refusal.advice and refusal.domain == "tollkeeper" for refusal in catalogue(KitError))
    reasons = [refusal.reason for refusal in catalogue(KitError)]
    assert len(set(reasons)) == len(reasons) == 12


@pytest.mark.parametrize(
    "body",
    [
        {"reason": "closed", "advice": "x", "domain": "y"},
        {"reason": "CLOSED_", "advice": "x", "domain": "y"},
        {"reason": "CLOSED", "domain": "y"},
        {"reason": "CLOSED", "advice": "x"},
    ],
)
def test_an_incomplete_refusal_cannot_be_declared(body):
    with pytest.raises(TypeError):
        type("Closed", (ServiceError,), body)


def test_a_refusal_survives_the_wire():
    sent = ShopClosed(
        "closed until monday",
        violations=[Violation("a", "is wrong"), Violation("b", "is wrong too")],
        retry_after_seconds=1.25,
        opens="monday",
        days=3,
    )
    got = over_the_wire(sent)
    assert (got.reason, got.domain, got.kind, got.code) == (
        "SHOP_CLOSED",
        "tollkeeper.shop",
        Kind.PRECONDITION,
        sent.code,
    )
    assert (got.message, got.metadata) == ("closed until monday", {"opens": "monday", "days": "3"})
    assert got.violations == sent.violations
    assert got.retry_after_seconds == 1.25
    assert wire_form(got) == wire_form(sent)


def test_the_status_is_what_grpc_status_readers_expect():
    code, message, trailing = wire_form(ShopClosed("closed", retry_after_seconds=0.1))
    metadata = dict(trailing)
    assert (metadata[REASON_KEY], metadata[HTTP_STATUS_KEY], metadata["retry-after"]) == ("SHOP_CLOSED", "400", "1")
    status = status_pb2.Status.FromString(metadata[DETAILS_KEY])
    assert (status.code, status.message) == (code.value[0], message)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, retry.retry_delay.nanos) == ("SHOP_CLOSED", 100_000_000)


@example("é" * 10_000, [Violation("x" * 4000, "😀" * 4000)] * 60, {f"k{n}": "😀" * 4000 for n in range(60)})
@given(
    st.text(max_size=3000),
    st.lists(st.builds(Violation, st.text(max_size=400), st.text(max_size=400)), max_size=60),
    st.dictionaries(st.from_regex(r"[a-z_]{1,100}", fullmatch=True), st.text(max_size=400), max_size=60),
)
def test_no_refusal_outgrows_what_peers_take(message, violations, metadata):
    metadata = {f"m_{key}": value for key, value in metadata.items()}
    _, text, trailing = wire_form(ShopClosed(message, violations=violations, **metadata))
    on_the_wire = 3 * len(text.encode()) + sum(
        len(key) + (len(value) * 4 // 3 + 4 if isinstance(value, bytes) else len(value)) for key, value in trailing
    )
    assert on_the_wire < 8000
    assert over_the_wire(ShopClosed(message, violations=violations, **metadata)).reason == "SHOP_CLOSED"


def test_text_that_is_no_unicode_does_not_break_a_refusal():
    assert over_the_wire(ShopClosed("\ud800", key="\udfff")).reason == "SHOP_CLOSED"


def test_a_peer_that_is_not_ours_is_read_without_trust():
    error = RemoteError.from_rpc(
        FakeRpcError(grpc.StatusCode.UNAVAILABLE, "down", ((DETAILS_KEY, b"\xff\xff"), (HTTP_STATUS_KEY, "abc")))
    )
    assert (error.kind, error.reason, error.message) == (Kind.UNAVAILABLE, "", "down")
    assert RemoteError.from_rpc(grpc.RpcError()).code is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (RuntimeError("password=hunter2"), Internal),
        (ServiceError("a base, without a reason"), Internal),
        (FakeRpcError(grpc.StatusCode.UNAVAILABLE, "10.0.0.7 refused"), PeerUnavailable),
        (FakeRpcError(grpc.StatusCode.DEADLINE_EXCEEDED), PeerUnavailable),
        (FakeRpcError(grpc.StatusCode.INTERNAL, "10.0.0.7 broke"), Internal),
        (RemoteError.from_rpc(FakeRpcError(grpc.StatusCode.UNAVAILABLE, "10.0.0.7 refused")), PeerUnavailable),
        (RemoteError.from_rpc(FakeRpcError(grpc.StatusCode.UNKNOWN, "10.0.0.7 broke")), Internal),
        (psycopg.OperationalError("host 10.0.0.7"), StorageUnavailable),
        (psycopg.errors.QueryCanceled("statement timeout"), StorageUnavailable),
        (psycopg.errors.UniqueViolation("key 10.0.0.7"), Internal),
        (sqlalchemy.exc.OperationalError("SELECT 10.0.0.7", {}, Exception()), StorageUnavailable),
        (sqlalchemy.exc.TimeoutError("pool of 10.0.0.7"), StorageUnavailable),
    ],
)
def test_what_is_no_refusal_becomes_one_that_leaks_nothing(error, refusal):
    made = as_refusal(error, "req-1")
    assert type(made) is refusal
    sent = repr(wire_form(made))
    assert "hunter2" not in sent
    assert "10.0.0.7" not in sent
    assert ("req-1" in sent) == (refusal is Internal)


def test_a_refusal_of_another_service_passes_on_when_raised_again():
    remote = over_the_wire(ShopClosed("closed"))
    assert as_refusal(remote, "req-1") is remote


def test_one_failure_of_a_task_group_is_that_failure():
    refusal = ShopClosed("closed")
    assert as_refusal(ExceptionGroup("", [ExceptionGroup("", [refusal])]), "r") is refusal
    assert type(as_refusal(ExceptionGroup("", [refusal, ShopClosed("again")]), "r")) is Internal

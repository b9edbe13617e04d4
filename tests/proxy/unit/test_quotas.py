"""Which quota the headers of a model call are about, and what they say."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.ledger.v1 import resources_pb2

from services.kit.errors import Kind, RemoteError
from services.proxy.calls.quotas import quota_headers, refusal_headers

EXCEEDED = {
    "limitId": "plan::tokens:cycle",
    "amount": "1000",
    "used": "700",
    "held": "200",
    "required": "500",
    "resetsAt": "2026-12-01T00:00:00.500000+00:00",
}


def quota(unit, amount, remaining):
    ends = Timestamp(seconds=1_800_000_000, nanos=999_999_000)
    return resources_pb2.Quota(unit=unit, amount=amount, remaining=remaining, resets_at=ends)


@pytest.mark.parametrize(
    ("tokens", "requests", "metric", "limit", "remaining"),
    [
        ((1000, 400), (10, 5), "llm_tokens", 1000, 400),
        ((1000, 500), (10, 4), "api_calls", 10, 4),
        ((1000, 1), (0, 0), "api_calls", 0, 0),  # a quota of nothing is used up
        ((2**63 - 1, 2**62), (10, 6), "llm_tokens", 2**63 - 1, 2**62),
    ],
)
def test_the_quota_with_the_smallest_share_left_is_told(tokens, requests, metric, limit, remaining):
    quotas = [quota("tokens", *tokens), quota("requests", *requests)]
    for told in (quota_headers(quotas), quota_headers(quotas[::-1])):
        assert dict(told) == {
            "x-quota-metric": metric,
            "x-quota-limit": str(limit),
            "x-quota-remaining": str(remaining),
            "x-quota-reset": "1800000000",
        }


def test_without_quotas_there_are_no_headers():
    assert quota_headers(()) == ()


def refused(reason="LIMIT_EXCEEDED", **changes):
    said = {name: value for name, value in (EXCEEDED | changes).items() if value is not None}
    return RemoteError("used up", code=Kind.EXHAUSTED.grpc_code, kind=Kind.EXHAUSTED, reason=reason, metadata=said)


def test_refusal_of_a_quota_says_what_is_left_of_it():
    assert dict(refusal_headers(refused())) == {
        "x-quota-metric": "llm_tokens",
        "x-quota-limit": "1000",
        "x-quota-remaining": "100",
        "x-quota-reset": "1796083200",
    }
    assert dict(refusal_headers(refused(limitId="account::requests:cycle", used="950")))["x-quota-remaining"] == "0"


@pytest.mark.parametrize(
    "changes",
    [
        {"reason": "INSUFFICIENT_CREDIT"},
        {"limitId": "key:k1:tokens:day"},
        {"limitId": "plan::nanos:cycle"},
        {"limitId": "account::tokens:month"},
        {"limitId": None},
        {"held": None},
        {"amount": "many"},
        {"resetsAt": ""},
    ],
    ids=str,
)
def test_refusal_that_is_no_quotas_or_says_too_little_has_no_headers(changes):
    assert refusal_headers(refused(**changes)) == ()

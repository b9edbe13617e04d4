"""Whatever the OpenAPI document allows, and much that it does not, has an answer that the document names, never a 5xx.

A suite of its own, for what is made up here is written too. `OPENAPI_EXAMPLES=500` runs it for longer, with another
`OPENAPI_SEED`.
"""

import collections
import contextlib
import os
import random

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "3"))
SEED = int(os.environ.get("OPENAPI_SEED", "1"))
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
CREDENTIALS = {"authorization", "x-api-key", "x-goog-api-key"}
# What a provider takes; what is made up comes on top.
MODEL_CALLS = {
    "ChatCompletions": {"model": "gpt-4o", "messages": [{"role": "user", "content": "a toll"}]},
    "ProviderChat": {"model": "gpt-4o", "messages": [{"role": "user", "content": "a toll"}]},
    "Responses": {"model": "gpt-4o", "input": "a toll"},
    "Embeddings": {"model": "text-embedding-3-small", "input": "a toll"},
    "Messages": {"model": "claude-3-haiku", "max_tokens": 9, "messages": [{"role": "user", "content": "a toll"}]},
    "GenerateContent": {"contents": [{"parts": [{"text": "a toll"}]}]},
    "CountTokens": {"model": "claude-3-haiku", "messages": [{"role": "user", "content": "a toll"}]},
    "CountInputTokens": {"model": "gpt-4o", "input": "a toll"},
    "CountGoogleTokens": {"contents": [{"parts": [{"text": "a toll"}]}]},
}


@pytest.fixture(scope="module")
def made(own_suite):
    """A suite with a customer, and what requests may name of it."""
    suite = own_suite()
    customer = suite.customer(credit_nanos=10**12)
    suite.known = {
        "accountId": customer.account_id,
        "keyId": suite.customer(10**9).key_id,
        "planId": "starter",
        "plan": "payg",
        "tier": "starter",
        "provider": "openai",
        "model": "gemini-1.5-pro",
        "metric": "api_calls",
        "scope": "account",
        "window": "day",
        "unit": "nanos",
        "source": "purchase",
    }
    suite.customer_key = customer.key
    suite.statuses = collections.Counter()
    suite.document = schemathesis.openapi.from_dict(suite.get("/openapi.json").body)
    return suite


def make_known(case, known, choose):
    """Put names of things that there are where a request names things, so that it gets past the first check."""
    if "accountId" in {parameter.name for parameter in case.operation.query}:
        case.query["accountId"] = known["accountId"]
    for holder in (case.path_parameters, case.query, case.body):
        for name in list(holder) if hasattr(holder, "keys") else ():
            if name in known and choose.random() < 0.8:
                holder[name] = known[name]
    if isinstance(case.body, dict):
        if "accountId" in case.body or "/api/billing" in case.path:
            case.body["accountId"] = known["accountId"]
        case.body |= MODEL_CALLS.get(operation_id(case.operation), {})


def operation_id(operation):
    return operation.definition.raw["operationId"].rstrip("2").replace("Stream", "")


def logged(suite, response):
    """What services said of the request."""
    [request_id] = response.headers.get("x-request-id", ["none"])
    logs = (path.read_text(errors="replace").splitlines() for path in (suite.home / "logs").glob("*.log"))
    return [line[:3000] for lines in logs for line in lines if request_id in line][-5:]


def call(suite, case):
    """Each way in which the answer is not one that the document names."""
    key = suite.customer_key if case.path.startswith(("/v1", "/api/ai")) else suite.admin_key
    headers = {name: value for name, value in (case.headers or {}).items() if name.lower() not in CREDENTIALS}
    case.headers = headers | {"authorization": f"Bearer {key}"}
    response = case.call(base_url=suite.url, timeout=30)
    try:
        case.validate_response(response, checks=CHECKS)
    except schemathesis.errors.FailureGroup as group:
        shown = [response.text[:500], case.as_curl_command()[:1500], *logged(suite, response)]
        return ["\n  ".join([f"{case.operation.label}: {failure}", *shown]) for failure in group.exceptions]
    finally:
        suite.statuses[response.status_code] += 1
    return []


def failures(suite, operation, mode):
    """Each different answer to what is made up for one operation that the document does not name."""
    choose = random.Random(SEED)
    found = {}

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode), sensible=st.booleans())
    def examples(case, sensible):
        if sensible:
            make_known(case, suite.known, choose)
        for failure in call(suite, case):
            found.setdefault(failure[:120], failure)

    # An operation without any input can not be called wrongly.
    with contextlib.suppress(hypothesis.errors.Unsatisfiable, schemathesis.errors.SchemathesisError):
        examples()
    return list(found.values())


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_one_that_the_document_names(made, mode):
    operations = [result.ok() for result in made.document.get_all_operations()]
    wrong = [failure for operation in operations for failure in failures(made, operation, mode)]
    print(mode.value, dict(sorted(made.statuses.items())))
    assert not wrong, "\n\n".join(wrong)
    assert made.statuses[200]

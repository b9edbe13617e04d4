"""A provider's credentials: which may be called for a model, and what is kept of its rate limits."""

import pytest

from services.proxy.settings import ProxySettings
from services.proxy.upstream.credentials import Credentials


@pytest.fixture
def credentials():
    found = Credentials("openai", ["one", "two"], ProxySettings())
    yield found
    found.close()


def limit(credentials, now, model, seconds, *, key="one"):
    (credential,) = (one for one in credentials._all if one.key == key)
    credential.limited(now, model, seconds)
    return credential


def test_limit_is_of_one_credential_and_one_model(credentials):
    limit(credentials, 0, "large", 30)
    assert credentials.take(1, "large").key == "two"
    assert credentials.take(1, "small").key == "one"
    assert credentials.ready_in(1, "large") == 0
    assert credentials.limited_for(1, "large") == 0
    limit(credentials, 1, "large", 10, key="two")
    assert credentials.take(2, "large") is None
    assert credentials.ready_in(2, "large") == credentials.limited_for(2, "large") == 9
    assert credentials.take(11, "large").key == "two"
    assert credentials.take(30, "large").key == "one"


def test_long_limit_is_told_as_the_provider_said_it_and_tried_again_sooner(credentials):
    for key in ("one", "two"):
        limit(credentials, 0, "large", 86_400, key=key)
    assert credentials.limited_for(100, "large") == 86_300
    assert credentials.ready_in(100, "large") == 200
    assert credentials.take(300, "large").key == "one"


def test_limits_that_are_over_are_forgotten_and_those_that_run_are_bounded(credentials):
    for number in range(10):
        one = limit(credentials, 0, f"over-{number}", 5)
    assert len(limit(credentials, 5, "next", 30)._limits) == 1
    for number in range(5000):
        one = limit(credentials, 6, f"model-{number}", 100 + number / 1000)
    assert len(one._limits) == 1024
    assert one.limited_for(7, "model-4999") > 0
    assert one.limited_for(7, "next") == 0

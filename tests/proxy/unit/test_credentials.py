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
    assert len(limit(credentials, 5, "next", 30)._for_all.limits) == 1
    for number in range(5000):
        one = limit(credentials, 6, f"model-{number}", 100 + number / 1000)
    assert len(one._for_all.limits) == 1024
    assert one.limited_for(7, "model-4999") > 0
    assert one.limited_for(7, "next") == 0


def test_limit_of_no_length_doubles_while_it_is_said_again_and_begins_anew_after_an_answer(credentials):
    (one, _) = credentials._all
    now, waits = 0.0, []
    for _ in range(9):
        one.limited(now, "large", None)
        one.limited(now, "large", None)  # of another call that was under way
        waits.append(one.ready_in(now, "large"))
        now += waits[-1]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    one.answered(now, "small")
    one.limited(now, "large", None)
    assert one.ready_in(now, "large") == 30
    one.answered(now + 30, "large")
    one.limited(now + 30, "large", None)
    assert one.ready_in(now + 30, "large") == 0.5


def test_accounts_with_something_of_their_own_are_bounded(credentials):
    (one, _) = credentials._all
    for number in range(5000):
        one.answered(0, "m")
        one.rejected(0, 401, f"account-{number}")
    assert len(one._own) == 1024
    assert one.ready_in(0, "m", "account-4999") == 60
    assert one.ready_in(0, "m", "account-0") == one.ready_in(0, "m") == 0


def test_what_is_an_accounts_own_is_forgotten_with_its_next_answer(credentials):
    (one, _) = credentials._all
    one.failed(0, "acme")
    assert one._own
    one.answered(1, "m", "acme")
    assert not one._own


def meets_a_failure(one, now, account):
    one.failed(now, account)
    one.rested(now, 60, account)


MET = {
    "a refusal": lambda one, now, account: one.rejected(now, 401, account),
    "a failure with a rest": meets_a_failure,
    "a limit": lambda one, now, account: one.limited(now, "m", 60, account),
}


@pytest.mark.parametrize("meets", MET.values(), ids=MET)
def test_what_some_accounts_meet_while_others_are_answered_is_not_for_all(credentials, meets):
    (one, _) = credentials._all
    now = 0.0
    for number in range(200):
        one.answered(now, "m", "bob")
        for account in ("a", "b", "c", "d"):
            meets(one, now, f"{account}-{number}")
        now += 4
        assert one.ready_in(now, "m", "bob") == one.ready_in(now, "m", "carol") == 0


@pytest.mark.parametrize("meets", MET.values(), ids=MET)
def test_what_accounts_go_on_meeting_with_no_answer_to_anybody_is_for_all(credentials, meets):
    (one, _) = credentials._all
    one.answered(0, "m", "bob")
    for now in range(1, 6):
        meets(one, now, f"account-{now}")
    assert one.ready_in(5, "m", "bob") > 50


def test_answer_for_another_model_says_nothing_of_a_models_limit(credentials):
    (one, _) = credentials._all
    one.answered(0, "other", "bob")
    for account in ("a", "b", "c"):
        one.limited(1, "m", 60, account)
    assert one.ready_in(1, "m", "bob") == 60
    assert one.ready_in(1, "other", "bob") == 0

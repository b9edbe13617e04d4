"""What is worth an alert, how a webhook is signed and retried, and which addresses are never called."""

import base64
import json
import socket
from datetime import UTC, datetime, timedelta

import pytest

from services.subscriptions.alerts import model
from services.subscriptions.alerts.addresses import is_public
from services.subscriptions.alerts.model import Alert, CountedLimit
from services.subscriptions.alerts.store import Due, Endpoint
from services.subscriptions.alerts.watching import quota_limits
from services.subscriptions.alerts.webhooks import NotSentError, WebhookSender
from services.subscriptions.metering.model import Quota, QuotaTerms, Use

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def limit(used, amount=1000, *, resets_at=NOW + timedelta(days=9), **fields):
    values = {
        "limit_id": "plan::tokens:cycle", "scope": "plan", "subject": "", "unit": "tokens", "window": "cycle",
    } | fields  # fmt: skip
    return CountedLimit(amount=amount, used=used, resets_at=resets_at, **values)


def raised(*limits):
    return list(model.limit_alerts("acme", limits))


@pytest.mark.parametrize(
    ("used", "amount", "type_"),
    [
        (499, 1000, None),
        (500, 1000, "limit_50"),
        (799, 1000, "limit_50"),
        (800, 1000, "limit_80"),
        (999, 1000, "limit_80"),
        (1000, 1000, "limit_100"),
        (5000, 1000, "limit_100"),
        (1, 3, None),
        (2, 3, "limit_50"),
        # Shares of amounts that no float could tell apart.
        (8 * 10**17 - 1, 10**18, "limit_50"),
        (8 * 10**17, 10**18, "limit_80"),
        (0, 0, None),
    ],
)
def test_limit_raises_the_highest_threshold_it_has_reached(used, amount, type_):
    assert [alert.type for alert in raised(limit(used, amount))] == ([type_] if type_ else [])


def test_each_limit_raises_its_own():
    of_key = limit(500, limit_id="key:k1:nanos:day", scope="key", subject="k1", unit="nanos", window="day")
    alerts = raised(limit(1000), of_key)
    assert [alert.type for alert in alerts] == ["limit_100", "limit_50"]
    assert alerts[1].message == "50 % of the limit on nanos in a day of key k1 is used."
    assert len({alert.dedupe_key for alert in alerts}) == 2


def test_alert_is_the_same_within_a_window_and_another_in_the_next_or_of_another_amount():
    (first,), (again,) = raised(limit(800)), raised(limit(950))
    assert first.dedupe_key == again.dedupe_key
    (next_window,) = raised(limit(800, resets_at=NOW + timedelta(days=40)))
    (larger,) = raised(limit(1600, amount=2000))
    (lifetime,) = raised(limit(800, resets_at=None))
    assert len({alert.dedupe_key for alert in (first, next_window, larger, lifetime)}) == 4


def test_lower_threshold_is_outdone_by_the_higher_ones_of_its_window_alone():
    (half,), (most,), (whole,) = raised(limit(500)), raised(limit(800)), raised(limit(1000))
    assert set(half.outdone_by) == {most.dedupe_key, whole.dedupe_key}
    assert most.outdone_by == (whole.dedupe_key,)
    assert whole.outdone_by == ()


def test_facts_hold_amounts_as_text():
    (alert,) = raised(limit(2**62, amount=2**62))
    assert alert.facts["used"] == alert.facts["amount"] == str(2**62)


def test_quotas_of_a_metered_plan_are_limits_of_its_cycle():
    quota = Quota(QuotaTerms("user_seats", 25, "soft", 0), Use(used=20, level=3), NOW + timedelta(days=3))
    (alert,) = raised(*quota_limits([quota]))
    assert (alert.type, alert.message) == (
        "limit_80", "80 % of the limit on user_seats in a cycle of the plan is used.",
    )  # fmt: skip


@pytest.mark.parametrize(("available", "is_low"), [(1_000_000_001, False), (1_000_000_000, True), (-5, True)])
def test_balance_at_or_below_the_threshold_is_low(available, is_low):
    assert (model.low_balance_alert("acme", available, 1_000_000_000, NOW) is not None) == is_low


def test_low_balance_is_told_once_a_day():
    keys = [model.low_balance_alert("acme", 5, 10, NOW + timedelta(hours=hours)).dedupe_key for hours in (0, 11, 12)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("nanos", "words"),
    [(999_999_999, "$0.99"), (1_050_000_000, "$1.05"), (-9_999_999, "$-0.00"), (-1_230_000_000, "$-1.23")],
)
def test_low_balance_is_said_in_whole_cents(nanos, words):
    assert words in model.low_balance_alert("acme", nanos, 2 * 10**9, NOW).message


def test_failed_payment_says_until_when_all_goes_on():
    alert = model.payment_failed_alert("acme", "sub_1", "The payment failed.", grace_until=NOW)
    assert alert.message == "The payment failed. Everything goes on until 2026-11-21 12:00 UTC."


def test_signature_is_that_of_the_standard_webhooks_specification():
    """The example of the specification's own text and of its reference libraries' tests."""
    signed = model.signature(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_signing_secrets_are_of_the_length_that_the_specification_asks_for():
    """Between 24 and 64 random bytes, in base64 after `whsec_`."""
    secrets = {model.new_secret() for _ in range(5)}
    assert len(secrets) == 5
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64


def test_body_is_the_same_at_every_attempt_and_has_the_specifications_form():
    alert = Alert("acme", "limit_80", "k", "words", {"used": "1"})
    body = model.body_of("alert-1", alert, NOW)
    assert body == model.body_of("alert-1", alert, NOW)
    assert json.loads(body) == {
        "type": "alert.limit_80",
        "timestamp": "2026-11-21T12:00:00+00:00",
        "data": {"alertId": "alert-1", "accountId": "acme", "message": "words", "used": "1"},
    }


def test_retries_begin_within_seconds_and_go_on_for_days():
    delays, attempts = [], 1
    while (seconds := model.retry_delay_seconds(attempts)) is not None:
        delays.append(seconds)
        attempts += 1
    assert delays == sorted(delays), "each pause is at least as long as the one before"
    assert delays[0] <= 60
    assert sum(delays[:5]) <= 12 * 3600, "an endpoint that was down for an hour has it the same day"
    assert 2 * 86_400 <= sum(delays) <= 5 * 86_400
    assert attempts == 10


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.100.100.200",
        "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1",
        "fe80::1%1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "2002:7f00:1::", "2002:a00:1::1",
        "not an address", "",
    ],
)  # fmt: skip
def test_address_of_ones_own_network_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_address_of_the_internet_is_public(address):
    assert is_public(address)


def due(url="https://hooks.example.com/x"):
    alert = Alert("acme", "limit_80", "k", "words")
    return Due("alert-1", alert, NOW, "endpoint-1", url, SECRET, "", 1)


def resolving(monkeypatch, *answers):
    """Names mean `answers`, one after the other; what was connected to, which nothing answers."""
    waiting, reached = list(answers), []

    def getaddrinfo(_host, port, **_options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in waiting.pop(0)]

    def create_connection(address, _timeout):
        reached.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    return reached


def sender(**options):
    return WebhookSender(**({"timeout_seconds": 5, "private_addresses": False} | options))


def test_address_that_was_checked_is_the_one_connected_to(monkeypatch):
    """A name that means a private address when it is asked for again is not asked for again."""
    reached = resolving(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    with pytest.raises(NotSentError, match="ConnectionRefusedError"):
        sender()(due())
    assert reached == [("93.184.216.34", 443)]


def test_name_that_means_any_private_address_is_not_called(monkeypatch):
    reached = resolving(monkeypatch, ["93.184.216.34", "10.0.0.1"])
    with pytest.raises(NotSentError, match="not on a public address"):
        sender()(due())
    assert reached == []


def test_next_address_is_tried_and_no_more_than_three(monkeypatch):
    reached = resolving(monkeypatch, [f"8.8.8.{number}" for number in range(9)])
    with pytest.raises(NotSentError):
        sender()(due("https://hooks.example.com:8443/"))
    assert reached == [(f"8.8.8.{number}", 8443) for number in range(3)]


@pytest.mark.parametrize("url", ["https://" + "a" * 64 + ".com/", "https://a..b/"])
def test_name_that_cannot_be_one_fails_as_an_attempt(url):
    with pytest.raises(NotSentError):
        sender()(due(url))


def test_what_fails_is_told_without_address_or_secret(monkeypatch):
    resolving(monkeypatch, ["8.8.8.8"])
    with pytest.raises(NotSentError) as caught:
        sender()(due("https://hooks.example.com/in-the-path?token=hidden"))
    assert str(caught.value) == "the endpoint was not reached: ConnectionRefusedError"


def test_secrets_are_not_shown_where_an_endpoint_is():
    endpoint = Endpoint("endpoint-1", "acme", "https://x.example", SECRET, (), NOW)
    assert SECRET not in repr(endpoint)
    assert SECRET not in repr(due())

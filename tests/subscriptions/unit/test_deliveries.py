from datetime import UTC, datetime, timedelta

import pytest

from services.subscriptions.model.delivery import (
    GrantCredit,
    OpenLedgerAccount,
    SetEntitlement,
    SetPlanLimits,
    from_payload,
    retry_delay_seconds,
    to_payload,
)
from services.subscriptions.model.plan import PlanLimit

NOW = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
DELIVERIES = [
    OpenLedgerAccount("acme", "Acme", NOW),
    SetPlanLimits("acme", 3, (PlanLimit("tokens", 2**62, "hard", 80),), ("requests",)),
    GrantCredit("acme", "promo:2026-11-21", 5_000_000_000, "promotion", "…", NOW, 0),
    SetEntitlement("acme", "payg", 2**40, True, ("*",), ("*",), 32_000, 600, 0, 1_500_000),
]


@pytest.mark.parametrize("delivery", DELIVERIES, ids=lambda d: d.kind)
def test_delivery_comes_out_of_the_outbox_as_it_went_in(delivery):
    assert from_payload(to_payload(delivery)) == delivery


@pytest.mark.parametrize("delivery", DELIVERIES, ids=lambda d: d.kind)
def test_delivery_written_by_a_newer_release_is_read(delivery):
    assert from_payload(to_payload(delivery) | {"added_later": 1}) == delivery


def test_grant_lapses_at_its_expiry():
    grant = DELIVERIES[2]
    assert not grant.has_lapsed(NOW - timedelta(microseconds=1))
    assert grant.has_lapsed(NOW)


def test_retries_back_off_to_a_minute_and_refusals_to_five():
    delays = [retry_delay_seconds(n, refused=False) for n in range(1, 12)]
    assert delays[:4] == [0.5, 1, 2, 4]
    assert delays == sorted(delays)
    assert retry_delay_seconds(10**6, refused=False) == 60
    assert retry_delay_seconds(1, refused=True) == 300

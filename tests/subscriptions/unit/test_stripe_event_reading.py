import json
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.subscriptions.stripe.events import NotAnEventError, ReadEvent, Reference, read_event


def body(kind="invoice.paid", **about):
    event = {"object": "event", "id": "evt_1", "type": kind, "created": 1_700_000_000, "data": {"object": about}}
    return json.dumps(event)


@pytest.mark.parametrize(
    ("kind", "about", "customer", "reference"),
    [
        ("invoice.paid", {"object": "invoice", "id": "in_1", "customer": "cus_1"}, "cus_1", ("invoice", "in_1")),
        ("invoice.upcoming", {"object": "invoice", "id": "upcoming_in_1", "customer": "cus_1"}, "cus_1", None),
        ("invoice.upcoming", {"object": "invoice", "customer": "cus_1"}, "cus_1", None),
        ("invoice.created", {"object": "invoice", "id": "in_1", "customer": "cus_1"}, "cus_1", None),
        ("charge.refunded", {"object": "charge", "id": "ch_1", "customer": None}, "", ("charge", "ch_1")),
        ("charge.dispute.created", {"object": "dispute", "id": "du_1", "charge": "ch_1"}, "", ("charge", "ch_1")),
        ("charge.dispute.closed", {"object": "dispute", "charge": {"id": "ch_1"}}, "", ("charge", "ch_1")),
        ("refund.failed", {"object": "refund", "id": "re_1", "charge": None}, "", None),
        ("customer.deleted", {"object": "customer", "id": "cus_1"}, "cus_1", None),
        ("customer.subscription.updated", {"object": "subscription", "customer": {"id": "cus_1"}}, "cus_1", None),
        ("checkout.session.completed", {"object": "checkout.session", "id": "cs_1"}, "", ("checkout.session", "cs_1")),
        ("new.kind", {"object": "new", "id": "new_1", "customer": 7}, "", None),
    ],
)
def test_an_event_says_whom_and_what_it_is_about(kind, about, customer, reference):
    event = read_event(body(kind, **about))
    assert (event.customer_id, event.reference) == (customer, Reference(*reference) if reference else None)
    assert event.created_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
abouts = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("object", "id", "customer", "charge"), values | st.sampled_from(["charge", "dispute"]))
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # what else the machine does is no matter
@given(
    st.fixed_dictionaries(
        {"object": st.just("event")},
        optional={
            "id": values, "type": values, "created": values, "data": values | st.fixed_dictionaries({"object": abouts}),
        },
    )
    | values
)  # fmt: skip
def test_any_json_is_read_or_refused(value):
    with suppress(NotAnEventError):
        assert isinstance(read_event(json.dumps(value)), ReadEvent)


@given(st.text(max_size=50))
def test_any_text_is_read_or_refused(words):
    with suppress(NotAnEventError):
        read_event(words)

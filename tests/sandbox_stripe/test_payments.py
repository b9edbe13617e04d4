"""Payments: test cards, refunds, disputes, fees, invoices by hand, checkouts and the pages a person clicks through."""

from __future__ import annotations

import pytest
import stripe
from sandbox_stripe_process import DAY, KEY, NEW_YEAR


def _charge(shop, customer, card, **more):
    method = shop.v1.payment_methods.create(
        {"type": "card", "card": {"number": card, "exp_month": 1, "exp_year": 2033}}
    )
    params = {"amount": 1000, "currency": "usd", "customer": customer.id, "payment_method": method.id, "confirm": True}
    return shop.v1.payment_intents.create({**params, **more})


@pytest.mark.parametrize(
    ("card", "code", "decline_code"),
    [
        ("4000000000000002", "card_declined", "generic_decline"),
        ("4000000000009995", "card_declined", "insufficient_funds"),
        ("4000000000009987", "card_declined", "lost_card"),
        ("4000000000000069", "expired_card", None),
        ("4000000000000127", "incorrect_cvc", None),
        ("4000000000000119", "processing_error", None),
    ],
)
def test_declining_cards_decline_and_the_try_is_kept(shop, card, code, decline_code):
    customer = shop.customer(card=None)
    with pytest.raises(stripe.CardError) as refused:
        _charge(shop, customer, card)
    assert (refused.value.http_status, refused.value.code) == (402, code)
    assert refused.value.error.to_dict().get("decline_code") == decline_code
    intent = shop.v1.payment_intents.retrieve(refused.value.error.payment_intent.id, {"expand": ["latest_charge"]})
    assert (intent.status, intent.last_payment_error.code) == ("requires_payment_method", code)
    assert (intent.latest_charge.status, intent.latest_charge.paid) == ("failed", False)
    kinds = shop.events_of(intent.id)
    assert kinds == ["payment_intent.created", "charge.failed", "payment_intent.payment_failed"]


def test_a_declining_card_cannot_be_attached(shop):
    customer = shop.customer(card=None)
    with pytest.raises(stripe.CardError):
        shop.v1.payment_methods.attach("pm_card_chargeDeclined", {"customer": customer.id})
    assert shop.v1.payment_methods.list({"customer": customer.id}).data == []


def test_real_card_numbers_are_never_taken(shop):
    with pytest.raises(stripe.InvalidRequestError, match="test cards only"):
        shop.v1.payment_methods.create(
            {"type": "card", "card": {"number": "4111111111111111", "exp_month": 1, "exp_year": 2033}}
        )


def test_a_payment_has_a_charge_with_stripes_fee(shop):
    customer = shop.customer(card=None)
    intent = _charge(shop, customer, "4242424242424242", amount=9900, metadata={"account": "acme"})
    charge = shop.v1.charges.retrieve(intent.latest_charge, {"expand": ["balance_transaction"]})
    assert (charge.amount_captured, charge.metadata.to_dict()) == (9900, {"account": "acme"})
    # 2.9 % and 30 cents, of which the product specification says $3.171.
    assert (charge.balance_transaction.fee, charge.balance_transaction.net) == (317, 9583)


def test_an_off_session_charge_uses_the_saved_card(shop):
    customer = shop.customer()
    method = shop.v1.customers.retrieve(customer.id).invoice_settings.default_payment_method
    params = {"amount": 2000, "currency": "usd", "customer": customer.id, "payment_method": method}
    paid = shop.v1.payment_intents.create({**params, "confirm": True, "off_session": True})
    assert paid.status == "succeeded"
    shop.v1.payment_methods.detach(method)
    with pytest.raises(stripe.InvalidRequestError, match="not attached"):
        shop.v1.payment_methods.detach(method)


def _invoice(shop, customer):
    shop.v1.invoice_items.create({"customer": customer.id, "amount": 1900, "currency": "usd"})
    made = shop.v1.invoices.create({"customer": customer.id, "pending_invoice_items_behavior": "include"})
    return shop.v1.invoices.finalize_invoice(made.id)


def test_credit_notes_take_first_what_is_still_to_be_paid_and_then_give_back(shop):
    customer = shop.customer()
    invoice = _invoice(shop, customer)
    note = shop.v1.credit_notes.create({"invoice": invoice.id, "amount": 900})
    assert (note.pre_payment_amount, note.type) == (900, "pre_payment")
    assert shop.v1.invoices.pay(invoice.id).amount_paid == 1000
    with pytest.raises(stripe.InvalidRequestError, match="must equal the post payment amount"):
        shop.v1.credit_notes.create({"invoice": invoice.id, "amount": 500, "credit_amount": 499})
    with pytest.raises(stripe.InvalidRequestError, match="within what is left"):
        shop.v1.credit_notes.create({"invoice": invoice.id, "amount": 1001, "credit_amount": 1001})
    back = {"refund_amount": 300, "credit_amount": 150, "out_of_band_amount": 50}
    note = shop.v1.credit_notes.create({"invoice": invoice.id, "amount": 500, **back})
    assert (note.post_payment_amount, note.refunds[0].amount_refunded, note.out_of_band_amount) == (500, 300, 50)
    assert shop.v1.customers.retrieve(customer.id).balance == -150
    found = shop.v1.invoices.retrieve(invoice.id)
    assert (found.pre_payment_credit_notes_amount, found.post_payment_credit_notes_amount) == (900, 500)


def test_invoice_that_is_credited_whole_is_paid_and_a_void_note_counts_no_more(shop):
    invoice = _invoice(shop, shop.customer())
    note = shop.v1.credit_notes.create({"invoice": invoice.id, "amount": 900})
    assert shop.v1.credit_notes.void_credit_note(note.id).status == "void"
    assert shop.v1.invoices.retrieve(invoice.id).amount_remaining == 1900
    shop.v1.credit_notes.create({"invoice": invoice.id, "amount": 1900})
    found = shop.v1.invoices.retrieve(invoice.id)
    assert (found.status, found.amount_paid, found.amount_remaining) == ("paid", 0, 0)
    assert {"invoice.paid", "invoice.payment_succeeded"} < set(shop.events_of(invoice.id))


def test_refunds_never_exceed_the_charge(shop):
    intent = _charge(shop, shop.customer(card=None), "4242424242424242")
    first = shop.v1.refunds.create({"payment_intent": intent.id, "amount": 400, "metadata": {"why": "test"}})
    assert (first.status, first.amount, first.charge) == ("succeeded", 400, intent.latest_charge)
    with pytest.raises(
        stripe.InvalidRequestError, match=r"\$7.00\) is greater than unrefunded amount on charge \(\$6.00"
    ):
        shop.v1.refunds.create({"charge": intent.latest_charge, "amount": 700})
    assert shop.v1.refunds.create({"charge": intent.latest_charge}).amount == 600
    with pytest.raises(stripe.InvalidRequestError) as refused:
        shop.v1.refunds.create({"charge": intent.latest_charge})
    assert refused.value.code == "charge_already_refunded"
    told = [e for e in shop.events(type="charge.refunded") if e.data.object.id == intent.latest_charge]
    assert [(e.data.object.amount_refunded, e.data.object.refunded) for e in told] == [(400, False), (1000, True)]
    assert told[0].data.previous_attributes.to_dict() == {"amount_refunded": 0}


@pytest.mark.parametrize("status", ["won", "lost"])
def test_a_dispute_is_opened_and_decided(sandbox, shop, status):
    intent = _charge(shop, shop.customer(card=None), "4242424242424242")
    code, dispute = sandbox.call("POST", "/sandbox/disputes", {"charge": intent.latest_charge})
    assert (code, dispute["status"], dispute["amount"]) == (200, "needs_response", 1000)
    assert shop.v1.charges.retrieve(intent.latest_charge).disputed
    with pytest.raises(stripe.InvalidRequestError, match="charged back"):
        shop.v1.refunds.create({"charge": intent.latest_charge})
    sandbox.call("POST", f"/sandbox/disputes/{dispute['id']}/close", {"status": status})
    assert shop.v1.disputes.retrieve(dispute["id"]).status == status
    kinds = ["created", "funds_withdrawn", "closed"] + (["funds_reinstated"] if status == "won" else [])
    found = [k for k in shop.events_of(dispute["id"]) if k.startswith("charge.dispute")]
    assert found == [f"charge.dispute.{kind}" for kind in kinds]
    assert sandbox.call("POST", f"/sandbox/disputes/{dispute['id']}/close", {"status": status})[0] == 400


def test_an_invoice_is_made_by_hand_paid_or_voided(shop):
    customer = shop.customer()
    for amount, words in ((1200, "Support"), (300, "Shipping")):
        shop.v1.invoice_items.create(
            {"customer": customer.id, "amount": amount, "currency": "usd", "description": words}
        )
    invoice = shop.v1.invoices.create({"customer": customer.id, "pending_invoice_items_behavior": "include"})
    assert (invoice.status, invoice.total, invoice.number) == ("draft", 1500, None)
    final = shop.v1.invoices.finalize_invoice(invoice.id)
    assert (final.status, final.amount_due) == ("open", 1500)
    assert shop.v1.invoices.pay(invoice.id).status == "paid"
    with pytest.raises(stripe.InvalidRequestError, match="already paid"):
        shop.v1.invoices.pay(invoice.id)
    intent = shop.v1.invoice_payments.list({"invoice": invoice.id}).data[0].payment.payment_intent
    by_intent = shop.v1.invoice_payments.list({"payment": {"type": "payment_intent", "payment_intent": intent}})
    assert [joined.invoice for joined in by_intent.data] == [invoice.id]
    other = shop.v1.invoices.create({"customer": customer.id})
    shop.v1.invoice_items.create({"customer": customer.id, "amount": 700, "currency": "usd", "invoice": other.id})
    shop.v1.invoices.finalize_invoice(other.id)
    assert shop.v1.invoices.void_invoice(other.id).status == "void"


def test_an_invoice_has_a_page_and_a_valid_pdf(sandbox, shop):
    subscription = shop.subscribe(shop.customer(name="Jenny (Rosen)"), shop.price(1900), expand=["latest_invoice"])
    invoice = subscription.latest_invoice
    assert invoice.hosted_invoice_url.startswith(sandbox.url)
    path = invoice.invoice_pdf.removeprefix(sandbox.url)
    status, pdf = sandbox.call("GET", path)
    assert (status, pdf[:8], pdf.rstrip()[-5:]) == (200, b"%PDF-1.4", b"%%EOF")
    # Each object begins where the file's own table says.
    start = int(pdf.rsplit(b"startxref", 1)[1].split()[0])
    entries = [line for line in pdf[start:].split(b"\n")[2:] if line.endswith(b" n ")]
    assert len(entries) >= 5
    for number, entry in enumerate(entries, start=1):
        assert pdf[int(entry[:10]) :].startswith(b"%d 0 obj" % number)
    assert rb"Jenny \(Rosen\)" in pdf
    assert b"$19.00" in pdf
    page = sandbox.call("GET", invoice.hosted_invoice_url.removeprefix(sandbox.url))[1].decode()
    assert "Sandbox Stripe: no real money" in page


def test_a_failed_invoice_is_paid_on_its_page(sandbox, shop):
    subscription = shop.subscribe(shop.customer(), shop.price(1900), payment_behavior="default_incomplete")
    url = shop.v1.invoices.retrieve(subscription.latest_invoice).hosted_invoice_url
    assert sandbox.form(url + "/pay", {"card": "4000000000000002"})[0] == 402
    assert sandbox.form(url + "/pay", {"card": "4242424242424242"})[0] == 200
    assert shop.v1.subscriptions.retrieve(subscription.id).status == "active"


# ---- checkout


def _checkout(shop, price, **more):
    params = {
        "mode": "subscription",
        "line_items": [{"price": price.id, "quantity": 1}],
        "success_url": "http://127.0.0.1:1/ok?session={CHECKOUT_SESSION_ID}",
        "cancel_url": "http://127.0.0.1:1/back",
        "client_reference_id": "acme",
        "metadata": {"tier": "starter"},
        "subscription_data": {"metadata": {"account": "acme"}},
    }
    return shop.v1.checkout.sessions.create({**params, **more})


def test_a_checkout_makes_customer_and_subscription(sandbox, shop):
    session = _checkout(shop, shop.price(1900))
    assert (session.status, session.payment_status, session.amount_total) == ("open", "unpaid", 1900)
    status, answer = sandbox.form(session.url + "/complete", {"card": "4242424242424242", "email": "j@example.com"})
    assert (status, answer["redirect"]) == (200, f"http://127.0.0.1:1/ok?session={session.id}")
    done = shop.v1.checkout.sessions.retrieve(session.id, {"expand": ["subscription", "customer", "invoice"]})
    assert (done.status, done.payment_status, done.url) == ("complete", "paid", None)
    assert (done.client_reference_id, done.customer_details.email) == ("acme", "j@example.com")
    assert done.subscription.metadata.to_dict() == {"account": "acme"}
    assert done.subscription.default_payment_method is not None
    assert done.invoice.id == done.subscription.latest_invoice
    items = shop.v1.checkout.sessions.line_items.list(session.id)
    assert [(item.quantity, item.amount_total) for item in items.data] == [(1, 1900)]
    assert sandbox.form(session.url + "/complete", {"card": "4242424242424242"})[0] == 409
    kinds = shop.events_of(done.customer.id)
    assert kinds[0] == "customer.created"
    assert kinds[-2:] == ["invoice.payment_succeeded", "checkout.session.completed"]


def test_a_declined_card_leaves_the_checkout_open(sandbox, shop):
    session = _checkout(shop, shop.price(1900))
    for _ in range(2):
        status, answer = sandbox.form(session.url + "/complete", {"card": "4000 0000 0000 0002"})
        assert (status, answer["error"]["code"]) == (402, "card_declined")
    assert shop.v1.checkout.sessions.retrieve(session.id).status == "open"
    assert sandbox.form(session.url + "/complete", {"card": "4242 4242 4242 4242"})[0] == 200


def test_a_card_that_fails_on_renewal_passes_the_checkout(sandbox, shop):
    clock = shop.clock()
    customer = shop.customer(clock, card=None)
    session = _checkout(shop, shop.price(1900), customer=customer.id)
    assert sandbox.form(session.url + "/complete", {"card": "4000000000000341"})[0] == 200
    done = shop.v1.checkout.sessions.retrieve(session.id)
    assert (done.customer, done.payment_status) == (customer.id, "paid")
    shop.advance(clock, NEW_YEAR + 31 * DAY + 3600)
    assert shop.v1.subscriptions.retrieve(done.subscription).status == "past_due"


def test_a_top_up_pays_once_and_carries_its_metadata(sandbox, shop):
    customer = shop.customer(card=None)
    sale = {"currency": "usd", "unit_amount": 2500, "product_data": {"name": "Credit"}}
    session = shop.v1.checkout.sessions.create(
        {
            "mode": "payment",
            "customer": customer.id,
            "line_items": [{"price_data": sale, "quantity": 2}],
            "success_url": "http://127.0.0.1:1/ok",
            "payment_intent_data": {"metadata": {"account": "acme"}, "setup_future_usage": "off_session"},
        }
    )
    assert session.amount_total == 5000
    sandbox.form(session.url + "/complete", {"card": "4242424242424242"})
    done = shop.v1.checkout.sessions.retrieve(session.id, {"expand": ["payment_intent"]})
    assert (done.payment_status, done.payment_intent.amount_received) == ("paid", 5000)
    assert done.payment_intent.metadata.to_dict() == {"account": "acme"}
    assert len(shop.v1.payment_methods.list({"customer": customer.id}).data) == 1


def test_a_setup_checkout_saves_a_card(sandbox, shop):
    customer = shop.customer(card=None)
    session = shop.v1.checkout.sessions.create(
        {"mode": "setup", "currency": "usd", "customer": customer.id, "success_url": "http://127.0.0.1:1/ok"}
    )
    sandbox.form(session.url + "/complete", {"card": "5555555555554444"})
    done = shop.v1.checkout.sessions.retrieve(session.id, {"expand": ["setup_intent.payment_method"]})
    assert (done.payment_status, done.setup_intent.status) == ("no_payment_required", "succeeded")
    assert done.setup_intent.payment_method.card.brand == "mastercard"


def test_an_expired_checkout_takes_no_card(sandbox, shop):
    session = _checkout(shop, shop.price(1900))
    assert shop.v1.checkout.sessions.expire(session.id).status == "expired"
    assert sandbox.form(session.url + "/complete", {"card": "4242424242424242"})[0] == 409
    assert shop.events_of(session.id) == ["checkout.session.expired"]
    with pytest.raises(stripe.InvalidRequestError, match="can be expired"):
        shop.v1.checkout.sessions.expire(session.id)


def test_a_person_clicks_through_an_upgrade(sandbox, shop):
    session = _checkout(shop, shop.price(1900, name="<b>Starter</b>"))
    status, page = sandbox.call("GET", session.url.removeprefix(sandbox.url), headers={"accept": "text/html"})
    assert status == 200
    assert b"&lt;b&gt;Starter&lt;/b&gt;" in page
    assert b"$19.00" in page
    status, page = sandbox.form(session.url + "/complete", {"card": "4000000000000002"}, accept="text/html")
    assert (status, b"Your card was declined." in page) == (402, True)
    assert sandbox.form(session.url + "/cancel", {}, accept="text/html") == (303, "http://127.0.0.1:1/back")
    done = sandbox.form(session.url + "/complete", {"card": "4242424242424242"}, accept="text/html")
    assert done == (303, f"http://127.0.0.1:1/ok?session={session.id}")


def test_the_portal_does_what_its_configuration_lets_it(sandbox, shop):
    customer = shop.customer()
    small, large = shop.price(1900), shop.price(9900)
    subscription = shop.subscribe(customer, small)
    offered = [{"product": large.product, "prices": [large.id]}]
    configuration = shop.v1.billing_portal.configurations.create(
        {
            "features": {
                "subscription_cancel": {"enabled": True},
                "payment_method_update": {"enabled": True},
                "subscription_update": {
                    "enabled": True,
                    "default_allowed_updates": ["price"],
                    "proration_behavior": "always_invoice",
                    "products": offered,
                },
            }
        }
    )
    portal = shop.v1.billing_portal.sessions.create(
        {"customer": customer.id, "configuration": configuration.id, "return_url": "http://127.0.0.1:1/"}
    )
    assert b"Customer portal" in sandbox.call("GET", portal.url.removeprefix(sandbox.url))[1]
    assert sandbox.form(portal.url + "/cancel", {})[0] == 200
    ending = shop.v1.subscriptions.retrieve(subscription.id)
    assert (ending.cancel_at_period_end, ending.cancel_at) == (False, ending["items"].data[0].current_period_end)
    sandbox.form(portal.url + "/resume", {})
    assert shop.v1.subscriptions.retrieve(subscription.id).cancel_at is None
    assert sandbox.form(portal.url + "/card", {"card": "5555555555554444"})[0] == 200
    assert sandbox.form(portal.url + "/switch", {"price": large.id})[0] == 200
    found = shop.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})
    assert found["items"].data[0].price.id == large.id
    assert found.latest_invoice.status == "paid"
    assert sandbox.form(portal.url + "/switch", {"price": small.id})[0] == 400
    strict = shop.v1.billing_portal.configurations.create({"features": {"invoice_history": {"enabled": True}}})
    other = shop.v1.billing_portal.sessions.create({"customer": customer.id, "configuration": strict.id})
    assert sandbox.form(other.url + "/cancel", {})[0] == 403


def test_the_key_is_not_needed_for_pages_and_not_shown_by_them(sandbox, shop):
    session = _checkout(shop, shop.price(1900))
    assert KEY.encode() not in sandbox.call("GET", session.url.removeprefix(sandbox.url))[1]

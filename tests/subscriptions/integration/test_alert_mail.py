"""Alerts by e-mail, in a real SMTP conversation."""

import email
import email.policy

import pytest
from subscriptions_alerts import add_endpoint, deliveries, make_due, raise_alert, send_all
from subscriptions_receivers import MailServer, Receiver
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb


@pytest.fixture
def mail():
    with MailServer().serve() as server:
        yield server


@pytest.fixture(autouse=True)
def account(operator):
    request = pb.CreateAccountRequest(account_id="acme", email="owner@acme.example")
    operator(operator.customers.CreateAccount, request)


def smtp(mail):
    return {"smtp_host": "127.0.0.1", "smtp_port": mail.port, "smtp_starttls": False, "smtp_sender": "bill@toll.test"}


def test_alert_is_mailed_to_the_accounts_address(database, mail, sender):
    raise_alert(database)
    send_all(sender(**smtp(mail)))
    (letter,) = mail.letters
    assert (letter.sender, letter.recipients) == ("bill@toll.test", ["owner@acme.example"])
    read = email.message_from_string(letter.text, policy=email.policy.default)
    assert (read["To"], read["From"], read["Subject"]) == ("owner@acme.example", "bill@toll.test", "[acme] words of k")
    assert read["Date"]
    assert read["Message-ID"].startswith("<alert-")
    assert read.get_content().split() == ["words", "of", "k", "Account:", "acme"]
    assert deliveries(database) == [("delivered", 1, "")]


def test_sender_may_have_a_name_of_any_letters(database, mail, sender):
    raise_alert(database)
    send_all(sender(**smtp(mail) | {"smtp_sender": "Müller GmbH <bill@toll.test>"}))
    assert deliveries(database) == [("delivered", 1, "")]
    (letter,) = mail.letters
    read = email.message_from_string(letter.text, policy=email.policy.default)
    assert (letter.sender, read["From"]) == ("bill@toll.test", "Müller GmbH <bill@toll.test>")


def test_mail_that_is_not_taken_is_tried_again(database, mail, sender):
    raise_alert(database)
    mail.refuses, sending = True, sender(**smtp(mail))
    send_all(sending)
    assert deliveries(database) == [("pending", 1, "the mail was not taken: SMTPRecipientsRefused")]
    mail.refuses = False
    make_due(database)
    send_all(sending)
    assert [letter.recipients for letter in mail.letters] == [["owner@acme.example"]]


def test_mail_that_was_taken_is_sent_once_however_the_server_takes_its_leave(database, mail, sender):
    raise_alert(database)
    mail.farewell, sending = "421 going down", sender(**smtp(mail))
    send_all(sending)
    make_due(database)
    send_all(sending)
    assert len(mail.letters) == 1
    assert deliveries(database) == [("delivered", 1, "")]


def test_mail_server_without_the_encryption_asked_for_is_told_nothing(database, mail, sender):
    raise_alert(database)
    send_all(sender(**smtp(mail) | {"smtp_starttls": True, "smtp_user": "u", "smtp_password": "hidden"}))
    assert mail.letters == []
    assert deliveries(database) == [("pending", 1, "the mail was not taken: SMTPNotSupportedError")]


def test_without_a_mail_server_mail_is_skipped_and_webhooks_go(database, sender):
    with Receiver().serve() as receiver:
        add_endpoint(database, receiver.url)
        raise_alert(database)
        send_all(sender())
        assert len(receiver.requests) == 1
    assert sorted(status for status, _, _ in deliveries(database)) == ["delivered", "skipped"]

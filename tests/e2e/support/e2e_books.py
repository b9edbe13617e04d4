"""Owns what provider, ledger and outbox have of a suite's calls, and that it agrees when an outage is over."""

import json
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from fractions import Fraction

import psycopg

from deploy.local.suite import of as local_suite

PAYG_MULTIPLIER = Fraction(3, 2)
# Dollars for a million tokens, in and out, of the shipped catalogue; the embedding's is published where it is used.
PRICES = {
    "gpt-4o": ("5", "15"),
    "gpt-4-turbo": ("10", "30"),
    "gpt-3.5-turbo": ("0.5", "1.5"),
    "claude-3-haiku": ("0.8", "4"),
    "claude-3-opus": ("15", "75"),
    "gemini-1.5-pro": ("1.25", "5"),
    "gemini-2.0-flash": ("0.075", "0.3"),
    "claude-sonnet": ("3", "15"),
    "meta-llama/Llama-3.1-8B-Instruct": ("100", "200"),
    "text-embedding-3-small": ("0.02", "0"),
}


def billed_nanos(model, input_tokens, output_tokens):
    """What a customer on payg pays, rounded half to even."""
    usd_in, usd_out = PRICES[model]
    return round((input_tokens * Fraction(usd_in) + output_tokens * Fraction(usd_out)) * 1000 * PAYG_MULTIPLIER)


class Books:
    """The books of a suite: what ledger, outbox and provider have of all calls that were ever made."""

    def __init__(self, suite):
        self._suite = suite
        self._given = {}

    def prepaid(self, **key_words):
        """A new customer on payg with ten dollars, whose account is audited."""
        customer = self._suite.customer(credit_nanos=10**10, **key_words)
        self._given[customer.account_id] = 10**10
        return customer

    def buys(self, customer, nanos):
        """Expect that an account has so much more credit, given once."""
        self._given[customer.account_id] += nanos

    def paid_by(self, customer):
        """What an account was billed so far."""
        statement = "SELECT coalesce(sum(billed), 0) FROM usage WHERE account_id = %s"
        return int(self.rows("ledger", statement, customer.account_id)[0][0])

    def rows(self, service, statement, *arguments):
        """What a statement finds in a service's database."""
        with psycopg.connect(self._suite.database(service)) as connection:
            return connection.execute(statement, arguments).fetchall()

    def provider(self, method="GET", what="usage", body=None):
        """The provider's own log of what reached it, or what else its administration is asked for."""
        url = f"{self._suite.env['TOLLKEEPER_SANDBOX_PROVIDER_URL']}/sandbox/{what}"
        sent = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, sent, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def outbox(self):
        """The ends of holds that the ledger has not taken."""
        return self.rows("proxy", "SELECT hold_id, kind, refused FROM outbox")

    def open_holds(self):
        return {row[0] for row in self.rows("ledger", "SELECT hold_id FROM holds WHERE status = 'open'")}

    def settled(self):
        """Whether no call is under way anywhere, all credit has arrived, and no bill is in a proxy's memory alone."""
        provider = self.provider()
        if provider["in_flight"] or self.outbox() or self.open_holds():
            return False
        answered = sum(record["status"] == 200 for record in provider["records"])
        return self.rows("ledger", "SELECT count(*) FROM usage")[0][0] >= answered and all(
            sum(book) >= self._given[account_id] for account_id, book in self.balances(self._given).items()
        )

    def audit(self):
        """Assert that provider, ledger and accounts agree to the token and the nano, and that the ledger verifies.

        It holds where no proxy was killed: one may lose the bills of calls that were under way.
        """
        columns = "hold_id, account_id, model, input_tokens, output_tokens, billed, estimated"
        usage = self.rows("ledger", f"SELECT {columns} FROM usage")
        assert len({row[0] for row in usage}) == len(usage), "a call was billed twice"
        answered = [record for record in self.provider()["records"] if record["status"] == 200]
        whole = Counter((r["model"], r["input_tokens"], r["output_tokens"]) for r in answered if r["completed"])
        broken = Counter(r["model"] for r in answered if not r["completed"])
        assert Counter(row[2:5] for row in usage if not row[6]) == whole
        assert Counter(row[2] for row in usage if row[6]) == broken
        spent = Counter()
        for _, account, model, came, went, nanos, _ in usage:
            if account in self._given:
                assert nanos == billed_nanos(model, came, went) > 0
                spent[account] += nanos
        assert self.balances(self._given) == {
            name: (given - spent[name], 0, spent[name]) for name, given in self._given.items()
        }
        verified = self.verified()
        assert verified.returncode == 0, verified.stdout + verified.stderr

    def balances(self, accounts):
        """What each account has available, held and spent."""
        statement = "SELECT account_id, available, held, spent FROM accounts WHERE account_id = ANY(%s)"
        return {row[0]: tuple(map(int, row[1:])) for row in self.rows("ledger", statement, list(accounts))}

    def verified(self):
        """What the ledger says when it derives every balance anew from its journal."""
        local = local_suite(self._suite.environment, say=lambda _line: None)
        return subprocess.run(
            [sys.executable, "-m", "services.ledger", "verify", "--json"],
            env={**os.environ, **local.settings("ledger")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

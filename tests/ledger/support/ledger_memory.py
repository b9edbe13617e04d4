"""Owns a ledger in memory: the store's part (what is read for a batch, what is kept of it) without a database."""

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson

from services.ledger.model.batch import Batch
from services.ledger.model.operations import (
    Adjust,
    CreateHold,
    Credit,
    Debit,
    DeleteLimit,
    ExtendHold,
    OpenAccount,
    ReleaseHold,
    SetLimit,
    SetStatus,
    SettleHold,
    Touch,
    Undo,
    UpdateAccount,
    Usage,
)
from services.ledger.model.rows import Loaded, sequence_of
from services.ledger.store.documents import limits_json, limits_of

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
# Columns of an account that are written once, and those that are written only where it is reworded.
FIXED = ("account_id", "created_at", "open_hash")
WORDS = ("display_name", "status", "status_reason", "overdraft_kind", "overdraft_limit", "cycle_anchor")
# Columns of a hold that are written once.
MADE = ("account_id", "hold_id", "requests", "key_id", "workspace", "billable", "created_at", "sequence", "body_hash")


class Memory:
    """Rows by key, and a clock that only tests move."""

    def __init__(self):
        self.now = START
        self.books, self.holds, self.subjects, self.requests, self.entries = {}, {}, {}, {}, {}
        self.grants, self.undone = {}, {}
        self.usage = []

    def wait(self, seconds):
        self.now += timedelta(seconds=seconds)

    def load(self):
        loaded = Loaded(
            **copy.deepcopy(
                {
                    "books": self.books,
                    "holds": self.holds,
                    "subjects": self.subjects,
                    "requests": self.requests,
                    "entries": self.entries,
                    "grants": self.grants,
                    "undone": self.undone,
                }
            )
        )
        for record in self.usage:
            loaded.usage.setdefault(record.account_id, []).append(record)
        for account_id, book in loaded.books.items():
            moment = max(self.now, book.touched_at)
            opened = [h for h in loaded.holds.values() if h.account_id == account_id and h.status == "open"]
            loaded.lapsed[account_id] = sorted(
                (h for h in opened if h.expires_at <= moment), key=lambda hold: (hold.expires_at, hold.sequence)
            )
            loaded.next_lapse[account_id] = min((h.expires_at for h in opened if h.expires_at > moment), default=None)
        return loaded

    def apply(self, *groups):
        """Run one batch of linked groups and keep what it writes; the results of all operations, in order."""
        loaded = self.load()
        batch = Batch(loaded, self.now)
        results = [result for group in groups for result in batch.run(group)]
        changes = batch.changes
        self.books |= copy.deepcopy(changes.opened)
        for account_id in changes.books.keys() - changes.opened.keys():
            kept = FIXED if account_id in changes.reworded else FIXED + WORDS
            fixed = {name: getattr(self.books[account_id], name) for name in kept}
            self.books[account_id] = replace(copy.deepcopy(changes.books[account_id]), **fixed)
        assert not changes.made.keys() & self.holds.keys()
        self.holds |= copy.deepcopy(changes.made)
        for key, hold in changes.holds.items():
            there = self.holds[key]
            self.holds[key] = replace(copy.deepcopy(hold), **{name: getattr(there, name) for name in MADE})
        self.subjects |= copy.deepcopy(changes.subjects)
        self.requests |= changes.requests
        for entry in changes.entries:
            assert (entry.account_id, entry.sequence) not in self.entries
            self.entries[entry.account_id, entry.sequence] = entry
        self.usage += changes.usage
        self.undone |= changes.undone
        self.grants |= copy.deepcopy(changes.grants)
        for key, row in self.grants.items():
            row.expired += changes.expired.get(key, 0) if key not in changes.grants else 0
        self._check_that_all_was_written(loaded, changes)
        return results

    def _check_that_all_was_written(self, loaded, changes):
        """What the batch believes in is what was written: nothing was changed on the side."""
        assert self.holds == loaded.holds
        assert self.requests == loaded.requests
        assert self.undone == loaded.undone
        assert {key: row.expired for key, row in self.grants.items()} == {
            key: row.expired for key, row in loaded.grants.items()
        }
        assert self.books.keys() == loaded.books.keys()
        for account_id, book in self.books.items():
            assert book == loaded.books[account_id] or account_id not in changes.books
            assert as_in_its_row(book.limits) == book.limits
            assert (book.sequence, book.last_hash) == (
                loaded.books[account_id].sequence,
                loaded.books[account_id].last_hash,
            )
            book.check()
        for limits in self.subjects.values():
            assert as_in_its_row(limits) == limits

    def do(self, operation):
        """Do one operation alone; its answer. Raises its refusal."""
        (result,) = self.apply([operation])
        if isinstance(result.outcome, Exception):
            raise result.outcome
        return result.outcome

    def journal(self, account_id="acme"):
        return [entry for key, entry in sorted(self.entries.items()) if key[0] == account_id]


def as_in_its_row(limits):
    """Limits as they are written, also those that are written from what they keep of it, and read back."""
    return limits_of(orjson.loads(limits_json(limits)))


def opened(account_id="acme", **words):
    words = {"overdraft_kind": "none", "overdraft_limit": 0, "cycle_anchor": None} | words
    return OpenAccount(account_id=account_id, display_name="", body_hash=b"open", **words)


def credit(amount, request_id, account_id="acme", **words):
    words = {"source": "purchase", "priority": 100, "expires_at": None, "rollover_cap": 0} | words
    body_hash = repr((amount, words)).encode()
    return Credit(
        account_id=account_id, amount=amount, description="", request_id=request_id, body_hash=body_hash, **words
    )


def adjust(amount, request_id, account_id="acme"):
    return Adjust(account_id, amount, "", request_id, b"adjust %d" % amount)


def debit(amount, request_id, account_id="acme", **words):
    words = {"tokens": 0, "requests": 1, "key_id": "", "workspace": "", "usage": None} | words
    body_hash = repr((amount, words)).encode()
    return Debit(
        account_id=account_id, amount=amount, description="", request_id=request_id, body_hash=body_hash, **words
    )


def undo(kind, transaction_id, request_id, amount=None, account_id="acme"):
    body_hash = repr((kind, transaction_id, amount)).encode()
    sequence = sequence_of(transaction_id)
    return Undo(account_id, kind, transaction_id, sequence, amount, "", request_id, body_hash)


def extend(amount, hold_id, request_id, account_id="acme", *, tokens=0, ttl_seconds=0):
    body_hash = repr((amount, tokens, ttl_seconds)).encode()
    return ExtendHold(account_id, hold_id, amount, tokens, ttl_seconds, request_id, body_hash)


def update(request_id, account_id="acme", *, display_name=None, overdraft=None, cycle_anchor=None):
    body_hash = repr((display_name, overdraft, cycle_anchor)).encode()
    return UpdateAccount(account_id, display_name, overdraft, cycle_anchor, request_id, body_hash)


def hold(amount, hold_id, account_id="acme", **words):
    words = {
        "minimum": amount,
        "tokens": 0,
        "minimum_tokens": words.get("tokens", 0),
        "requests": 1,
        "key_id": "",
        "workspace": "",
        "ttl_seconds": 300,
        "billable": True,
    } | words
    return CreateHold(
        account_id=account_id, hold_id=hold_id, amount=amount, body_hash=repr((amount, words)).encode(), **words
    )


def settle(amount, hold_id, account_id="acme", tokens=0, usage=None):
    body_hash = repr((amount, tokens)).encode()
    return SettleHold(account_id, hold_id, amount, tokens, usage, "", body_hash)


def release(hold_id, account_id="acme"):
    return ReleaseHold(account_id, hold_id, "")


def suspend(request_id, account_id="acme"):
    return SetStatus(account_id, "suspended", "why", request_id, b"suspend")


def close(request_id, account_id="acme"):
    return SetStatus(account_id, "closed", "why", request_id, b"close")


def set_limit(amount, account_id="acme", **words):
    words = {
        "scope": "account",
        "subject": "",
        "unit": "nanos",
        "window": "day",
        "mode": "hard",
        "warn_percent": 80,
        "request_id": "",
    } | words
    return SetLimit(account_id=account_id, amount=amount, body_hash=repr((amount, words)).encode(), **words)


def delete_limit(account_id="acme", *, scope="account", subject="", unit="nanos", window="day", request_id=""):
    body_hash = repr((scope, subject, unit, window)).encode()
    return DeleteLimit(account_id, scope, subject, unit, window, request_id, body_hash)


def touch(account_id="acme"):
    return Touch(account_id)


def usage(**words):
    names = ["input_cost", "output_cost", "cost", "price_version", "duration_milliseconds"]
    names += [f"{kind}_tokens" for kind in ("input", "output", "cached", "cache_write", "reasoning")]
    texts = ("session", "provider", "model", "endpoint", "provider_request_id")
    values = dict.fromkeys(names, 0) | dict.fromkeys(texts, "") | {"estimated": False, "internal": False}
    values |= {"status": "ok", "started_at": None, "service_tier": "standard", "units": {}}
    return Usage(**values | words)

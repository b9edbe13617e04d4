"""Owns the shadow of a ledger: the same promises kept in the plainest way, to hold the real one against.

Every nano is a coin of its own, with its grant's place in the spending order. Limits keep no counters: their use is
found by going through all holds and debits ever made. What was spent is remembered coin by coin, so that a refund gives
back the very coins.
"""

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from services.ledger.model.operations import (
    Adjust,
    CreateHold,
    Credit,
    Debit,
    DeleteLimit,
    ExtendHold,
    ReleaseHold,
    SetLimit,
    SetStatus,
    SettleHold,
    Touch,
    Undo,
    UpdateAccount,
)
from services.ledger.model.windows import cycle_containing

NEVER = datetime.max.replace(tzinfo=UTC)
NONE_PAID = None


@dataclass
class ShadowHold:
    asked: CreateHold
    made_at: datetime
    lapses_at: datetime
    coins: list
    unbacked: int
    tokens: int
    status: str = "open"
    settled: SettleHold | None = None

    @property
    def amount(self):
        return len(self.coins) + self.unbacked

    def counted(self, unit):
        """Used and held."""
        if self.status == "open":
            return 0, {"nanos": self.amount, "tokens": self.tokens, "requests": self.asked.requests}[unit]
        if self.settled:
            return {"nanos": self.settled.amount, "tokens": self.settled.tokens}.get(unit, self.asked.requests), 0
        return 0, 0


@dataclass
class ShadowDebit:
    asked: Debit
    made_at: datetime

    def counted(self, unit):
        return {"nanos": self.asked.amount, "tokens": self.asked.tokens, "requests": self.asked.requests}[unit], 0


@dataclass
class ShadowAccount:
    overdraft: int
    now: datetime
    anchor: datetime
    cycle: tuple
    status: str = "open"
    place: int = 0
    free: list = field(default_factory=list)
    owed: int = 0
    funded: int = 0
    spent: int = 0
    expired: int = 0
    cycle_spent: int = 0
    holds: dict = field(default_factory=dict)
    debits: list = field(default_factory=list)
    limits: dict = field(default_factory=dict)
    asked: dict = field(default_factory=dict)
    # By grant's place: what rolls over of it, and what has expired.
    caps: dict = field(default_factory=dict)
    ran_out: dict = field(default_factory=dict)
    # By what asked for it: the coins that were spent, or how many were given; and in which cycle.
    deductions: dict = field(default_factory=dict)
    credits: dict = field(default_factory=dict)

    @property
    def unbacked(self):
        return sum(hold.unbacked for hold in self.open_holds())

    @property
    def available(self):
        return len(self.free) - self.owed - self.unbacked

    @property
    def held(self):
        return sum(hold.amount for hold in self.open_holds())

    def open_holds(self):
        return [hold for hold in self.holds.values() if hold.status == "open"]

    def figures(self):
        return (self.available, self.held, self.funded, self.spent, self.expired, self.owed, self.cycle_spent)

    # Time

    def let_happen(self, now):
        for hold in sorted(self.open_holds(), key=lambda hold: hold.lapses_at):
            if hold.lapses_at <= now:
                self.come_to(hold.lapses_at)
                self.give_back(hold, "expired")
        self.come_to(now)

    def come_to(self, moment):
        """Grants expire in order, then it is that moment."""
        while due := [coin for coin in self.free if coin[1] <= moment]:
            first = min(due, key=lambda coin: coin[1])
            self.turn_to(first[1])
            grant = [coin for coin in self.free if coin[2] == first[2]]
            self.free = [coin for coin in self.free if coin[2] != first[2]]
            carried = min(len(grant), self.caps.get(first[2], 0))
            self.caps[first[2]] = self.caps.get(first[2], 0) - carried
            self.ran_out[first[2]] = self.ran_out.get(first[2], 0) + len(grant) - carried
            self.expired += len(grant) - carried
            self.place += 1
            ends = cycle_containing(self.anchor, first[1])[1]
            self.add_free([(first[0], ends, self.place)] * carried)
        self.turn_to(moment)

    def turn_to(self, moment):
        self.now = max(self.now, moment)
        if self.now >= self.cycle[1]:
            self.cycle = cycle_containing(self.anchor, self.now)
            self.cycle_spent = 0

    def give_back(self, hold, status):
        hold.status = status
        self.add_free(hold.coins)

    def add_free(self, coins):
        self.free = sorted(self.free + coins)
        paid = min(self.owed, len(self.free))
        self.owed -= paid
        self.free = self.free[paid:]

    def spend(self, amount):
        """Coins to pay with; what none is left for is owed."""
        coins, self.free = self.free[:amount], self.free[amount:]
        self.owed += amount - len(coins)
        return coins + [NONE_PAID] * (amount - len(coins))

    # Limits

    def use(self, made):
        """What a limit counts now, used and held, from all holds and debits ever made."""
        used = held = 0
        for thing in [*self.holds.values(), *self.debits]:
            if self.same_window(made.window, thing.made_at) and made.subject in {"", thing.asked.key_id}:
                more_used, more_held = thing.counted(made.unit)
                used, held = used + more_used, held + more_held
        return used, held

    def same_window(self, window, moment):
        if window == "day":
            return moment.date() == self.now.date()
        if window == "month":
            return (moment.year, moment.month) == (self.now.year, self.now.month)
        return window == "lifetime" or moment >= self.cycle[0]

    def limit_use(self):
        return {name: (limit.amount, *self.use(limit)) for name, limit in self.limits.items()}

    def quotas(self):
        """What a hold's answer says of the whole account's limits on tokens and requests in the cycle."""
        return {
            (made.unit, made.amount, max(made.amount - sum(self.use(made)), 0), self.cycle[1])
            for made in self.limits.values()
            if not made.subject and made.window == "cycle" and made.unit != "nanos"
        }

    def refusal(self, key_id, made_at, *, nanos, tokens, requests):
        """Why so much is not to be had, if it is not, of what was asked for at that time."""
        if nanos > 0 and self.available + self.overdraft < nanos:
            return "INSUFFICIENT_CREDIT"
        for made in self.limits.values():
            applies = made.mode == "hard" and made.subject in {"", key_id}
            counts = self.same_window(made.window, made_at)  # what is counted in no window is not to be had at all
            room = max(made.amount - sum(self.use(made)), 0) if counts else 0
            if applies and {"nanos": nanos, "tokens": tokens, "requests": requests}[made.unit] > room:
                return "LIMIT_EXCEEDED"
        return ""


def limit_name(operation):
    return f"{operation.scope}:{operation.subject}:{operation.unit}:{operation.window}"


class Shadow:
    """Accounts, and what each operation ought to answer: a refusal's reason, `replayed` or `done`."""

    def __init__(self, overdrafts, now):
        self.accounts = {
            name: ShadowAccount(overdraft, now, now, cycle_containing(now, now))
            for name, overdraft in overdrafts.items()
        }

    def apply(self, groups, now, names):
        """`names`: of transactions that are to be undone, what they are called here.

        `self.quotas` are then what was left of them after each operation, where that was done.
        """
        self.names = names
        touched = set()
        answers, self.quotas = [], []
        for group in groups:
            for account_id in {operation.account_id for operation in group} - touched:
                self.accounts[account_id].let_happen(now)
                touched.add(account_id)
            before = copy.deepcopy(self.accounts)
            found, left = [], []
            for operation in group:
                found.append(self.do(operation))
                left.append(self.accounts[operation.account_id].quotas())
                if found[-1].isupper():
                    self.accounts = before
                    found = ["LINKED_OPERATION_FAILED"] * (len(found) - 1) + found[-1:]
                    found += ["LINKED_OPERATION_FAILED"] * (len(group) - len(found))
                    break
            answers += found
            self.quotas += left + [set()] * (len(found) - len(left))
        return answers

    def do(self, operation):
        account = self.accounts[operation.account_id]
        account.place += 1
        if isinstance(operation, ExtendHold) and operation.hold_id not in account.holds:
            return "HOLD_NOT_FOUND"
        request_id = getattr(operation, "request_id", "")
        past = account.asked.get(request_id) if request_id else None
        if past is not None:
            return "replayed" if past == operation else "IDEMPOTENCY_CONFLICT"
        closed = account.status == "closed"
        if closed and isinstance(operation, Credit | Adjust | Debit | Undo | SetStatus | UpdateAccount | ExtendHold):
            return "ACCOUNT_CLOSED"
        rules = {
            Adjust: self.adjust,
            CreateHold: self.hold,
            Credit: self.credit,
            Debit: self.debit,
            ExtendHold: self.extend,
            ReleaseHold: self.release,
            SetStatus: self.status,
            SettleHold: self.settle,
            Undo: self.undo,
            UpdateAccount: self.update,
        }
        match operation:
            case SetLimit():
                account.limits[limit_name(operation)] = operation
                answer = "done"
            case DeleteLimit():
                account.limits.pop(limit_name(operation), None)
                answer = "done"
            case Touch():
                answer = "done"
            case _:
                answer = rules[type(operation)](account, operation)
        if answer == "done" and request_id:
            account.asked[request_id] = operation
        return answer

    def status(self, account, operation):
        if operation.status == "closed" and account.open_holds():
            return "ACCOUNT_HAS_HOLDS"
        account.status = operation.status
        return "done"

    def update(self, account, operation):
        if operation.overdraft is not None:
            kind, amount = operation.overdraft
            account.overdraft = {"none": 0, "fixed": amount, "unlimited": 10**15}[kind]
        if operation.cycle_anchor is not None and operation.cycle_anchor != account.anchor:
            account.now += timedelta(microseconds=1)
            account.anchor = operation.cycle_anchor
            account.cycle = (account.now, cycle_containing(account.anchor, account.now)[1])
            account.cycle_spent = 0
        return "done"

    def credit(self, account, operation):
        if operation.expires_at is not None and operation.expires_at <= account.now:
            return "GRANT_EXPIRED"
        self.give(account, operation.request_id, operation.amount, operation.priority, operation.expires_at)
        account.caps[account.place] = operation.rollover_cap
        return "done"

    def give(self, account, request_id, amount, priority=100, expires_at=None):
        account.funded += amount
        account.credits[request_id] = [account.place, amount]
        account.add_free([(priority, expires_at or NEVER, account.place)] * amount)

    def adjust(self, account, operation):
        if operation.amount > 0:
            self.give(account, operation.request_id, operation.amount)
        else:
            account.funded += operation.amount
            account.spend(-operation.amount)
        return "done"

    def debit(self, account, operation):
        if account.status == "suspended":
            return "ACCOUNT_SUSPENDED"
        refusal = account.refusal(
            operation.key_id,
            account.now,
            nanos=operation.amount,
            tokens=operation.tokens,
            requests=operation.requests,
        )
        if refusal:
            return refusal
        account.debits.append(ShadowDebit(operation, account.now))
        self.deduct(account, ("debit", operation.request_id), account.spend(operation.amount))
        return "done"

    def deduct(self, account, name, coins):
        account.spent += len(coins)
        account.cycle_spent += len(coins)
        account.deductions[name] = (coins, account.now)

    def undo(self, account, operation):
        name = self.names.get((operation.account_id, operation.transaction_id))
        if name is None:
            return "TRANSACTION_NOT_FOUND"
        if operation.kind == "refund" and name in account.deductions:
            return self.refund(account, operation, *account.deductions[name])
        if operation.kind == "reversal" and name[0] == "credit":
            return self.reverse(account, operation, account.credits[name[1]])
        return "NOT_REFUNDABLE"

    def refund(self, account, operation, coins, spent_at):
        amount = len(coins) if operation.amount is None else operation.amount
        if not 0 < amount <= len(coins):
            return "REFUND_EXCEEDS_ORIGINAL"
        back = [coins.pop() for _ in range(amount)]
        good = [coin for coin in back if coin and coin[1] > account.now]
        unpaid = min(account.owed, back.count(NONE_PAID))
        account.owed -= unpaid
        account.spent -= amount
        account.cycle_spent -= amount if spent_at >= account.cycle[0] else 0
        account.add_free(good + [(100, NEVER, account.place)] * (amount - len(good) - unpaid))
        return "done"

    def reverse(self, account, operation, given):
        place, left = given
        amount = left if operation.amount is None else operation.amount
        if not 0 < amount <= left:
            return "REFUND_EXCEEDS_ORIGINAL"
        given[1] -= amount
        own = [coin for coin in account.free if coin[2] == place][:amount]
        account.free = sorted(
            [coin for coin in account.free if coin[2] != place]
            + [coin for coin in account.free if coin[2] == place][len(own) :]
        )
        from_expired = min(account.ran_out.get(place, 0), amount - len(own))
        account.ran_out[place] = account.ran_out.get(place, 0) - from_expired
        account.expired -= from_expired
        account.funded -= amount
        account.spend(amount - len(own) - from_expired)
        return "done"

    def hold(self, account, operation):
        there = account.holds.get(operation.hold_id)
        if there is not None:
            return "replayed" if there.asked == operation else "IDEMPOTENCY_CONFLICT"
        if account.status != "open":
            return f"ACCOUNT_{account.status.upper()}"
        payable = account.available + account.overdraft
        if operation.billable and payable < operation.minimum:
            return "INSUFFICIENT_CREDIT"
        refusal = account.refusal(
            operation.key_id,
            account.now,
            nanos=operation.minimum,
            tokens=operation.minimum_tokens,
            requests=operation.requests,
        )
        if refusal:
            return refusal
        amount = min(operation.amount, payable) if operation.billable else operation.amount
        tokens = operation.tokens
        for made in account.limits.values():
            if made.mode == "hard" and made.subject in {"", operation.key_id}:
                room = max(made.amount - sum(account.use(made)), 0)
                amount = min(amount, room) if made.unit == "nanos" else amount
                tokens = min(tokens, room) if made.unit == "tokens" else tokens
        coins, account.free = account.free[:amount], account.free[amount:]
        account.holds[operation.hold_id] = ShadowHold(
            asked=operation,
            made_at=account.now,
            lapses_at=account.now + timedelta(seconds=operation.ttl_seconds),
            coins=coins,
            unbacked=amount - len(coins),
            tokens=tokens,
        )
        return "done"

    def extend(self, account, operation):
        hold = account.holds[operation.hold_id]
        if hold.status != "open":
            return "HOLD_ENDED"
        if account.status == "suspended":
            return "ACCOUNT_SUSPENDED"
        if operation.amount and not hold.asked.billable:
            return "HOLD_NOT_BILLABLE"
        refusal = account.refusal(
            hold.asked.key_id, hold.made_at, nanos=operation.amount, tokens=operation.tokens, requests=0
        )
        if refusal:
            return refusal
        coins, account.free = account.free[: operation.amount], account.free[operation.amount :]
        hold.coins += coins
        hold.unbacked += operation.amount - len(coins)
        hold.tokens += operation.tokens
        if operation.ttl_seconds:
            hold.lapses_at = max(hold.lapses_at, account.now + timedelta(seconds=operation.ttl_seconds))
        return "done"

    def settle(self, account, operation):
        hold = account.holds.get(operation.hold_id)
        if hold is None:
            return "HOLD_NOT_FOUND"
        if hold.status == "settled":
            return "replayed" if hold.settled == operation else "IDEMPOTENCY_CONFLICT"
        if hold.status == "released":
            return "HOLD_ENDED"
        if operation.amount and not hold.asked.billable:
            return "HOLD_NOT_BILLABLE"
        coins = hold.coins if hold.status == "open" else []
        hold.status, hold.settled = "settled", operation
        paid = coins[: operation.amount] + account.spend(max(operation.amount - len(coins), 0))
        self.deduct(account, ("hold", operation.hold_id), paid)
        account.add_free(coins[operation.amount :])
        account.come_to(account.now)
        return "done"

    def release(self, account, operation):
        hold = account.holds.get(operation.hold_id)
        if hold is None:
            return "HOLD_NOT_FOUND"
        if hold.status == "settled":
            return "HOLD_ENDED"
        if hold.status == "released":
            return "replayed"
        if hold.status == "open":
            account.give_back(hold, "released")
            account.come_to(account.now)
        return "done"

"""Owns the shadow of a ledger: the same promises kept in the plainest way, to hold the real one against.

Every nano is a coin of its own, with its grant's place in the spending order. Limits keep no counters: their use is
found by going through all holds ever made.
"""

import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from services.ledger.model.operations import (
    CreateHold,
    Credit,
    DeleteLimit,
    ReleaseHold,
    SetLimit,
    SetStatus,
    SettleHold,
    Touch,
)

NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass
class ShadowHold:
    asked: CreateHold
    place: int
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


@dataclass
class ShadowAccount:
    overdraft: int
    now: datetime
    status: str = "open"
    place: int = 0
    free: list = field(default_factory=list)
    owed: int = 0
    funded: int = 0
    spent: int = 0
    expired: int = 0
    holds: dict = field(default_factory=dict)
    limits: dict = field(default_factory=dict)
    asked: dict = field(default_factory=dict)

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
        return (self.available, self.held, self.funded, self.spent, self.expired, self.owed)

    # Time

    def let_happen(self, now):
        self.now = now
        for hold in self.open_holds():
            if hold.lapses_at <= now:
                self.give_back(hold, "expired")
        self.expire()

    def expire(self):
        left = [coin for coin in self.free if coin[1] > self.now]
        self.expired += len(self.free) - len(left)
        self.free = left

    def give_back(self, hold, status):
        hold.status = status
        self.add_free(hold.coins)

    def add_free(self, coins):
        self.free = sorted(self.free + coins)
        paid = min(self.owed, len(self.free))
        self.owed -= paid
        self.free = self.free[paid:]

    # Limits

    def use(self, limit):
        """What a limit counts now, used and held, from all holds ever made."""
        made, place = limit
        used = held = 0
        for hold in self.holds.values():
            counted = (
                hold.place > place
                and same_window(made.window, hold.made_at, self.now)
                and (not made.subject or made.subject == hold.asked.key_id)
            )
            if counted and hold.status == "open":
                held += {"nanos": hold.amount, "tokens": hold.tokens, "requests": hold.asked.requests}[made.unit]
            elif counted and hold.settled:
                used += {"nanos": hold.settled.amount, "tokens": hold.settled.tokens}.get(
                    made.unit, hold.asked.requests
                )
        return used, held

    def limit_use(self):
        return {name: (limit[0].amount, *self.use(limit)) for name, limit in self.limits.items()}


def same_window(window, moment, now):
    if window == "day":
        return moment.date() == now.date()
    if window == "month":
        return (moment.year, moment.month) == (now.year, now.month)
    return True


def limit_name(operation):
    return f"{operation.scope}:{operation.subject}:{operation.unit}:{operation.window}"


class Shadow:
    """Accounts, and what each operation ought to answer: a refusal's reason, `replayed` or `done`."""

    def __init__(self, overdrafts, now):
        self.accounts = {name: ShadowAccount(overdraft, now) for name, overdraft in overdrafts.items()}

    def apply(self, groups, now):
        touched = set()
        answers = []
        for group in groups:
            for account_id in {operation.account_id for operation in group} - touched:
                self.accounts[account_id].let_happen(now)
                touched.add(account_id)
            before = copy.deepcopy(self.accounts)
            found = []
            for operation in group:
                found.append(self.do(operation))
                if found[-1].isupper():
                    self.accounts = before
                    found = ["LINKED_OPERATION_FAILED"] * (len(found) - 1) + found[-1:]
                    found += ["LINKED_OPERATION_FAILED"] * (len(group) - len(found))
                    break
            answers += found
        return answers

    def do(self, operation):
        account = self.accounts[operation.account_id]
        account.place += 1
        match operation:
            case Credit() | SetStatus():
                return self.keyed(account, operation)
            case CreateHold():
                return self.hold(account, operation)
            case SettleHold():
                return self.settle(account, operation)
            case ReleaseHold():
                return self.release(account, operation)
            case SetLimit():
                there = account.limits.get(limit_name(operation))
                account.limits[limit_name(operation)] = (operation, there[1] if there else account.place)
            case DeleteLimit():
                account.limits.pop(limit_name(operation), None)
            case Touch():
                pass
        return "done"

    def keyed(self, account, operation):
        past = account.asked.get(operation.request_id)
        if past is not None:
            return "replayed" if past == operation else "IDEMPOTENCY_CONFLICT"
        if isinstance(operation, SetStatus):
            account.status = operation.status
        else:
            if operation.expires_at is not None and operation.expires_at <= account.now:
                return "GRANT_EXPIRED"
            account.funded += operation.amount
            coin = (operation.priority, operation.expires_at or NEVER, account.place)
            account.add_free([coin] * operation.amount)
        account.asked[operation.request_id] = operation
        return "done"

    def hold(self, account, operation):
        there = account.holds.get(operation.hold_id)
        if there is not None:
            return "replayed" if there.asked == operation else "IDEMPOTENCY_CONFLICT"
        if account.status == "suspended":
            return "ACCOUNT_SUSPENDED"
        payable = account.available + account.overdraft
        if operation.billable and payable < operation.minimum:
            return "INSUFFICIENT_CREDIT"
        amount = min(operation.amount, payable) if operation.billable else operation.amount
        tokens = operation.tokens
        for made, place in account.limits.values():
            if made.mode == "soft" or (made.subject and made.subject != operation.key_id):
                continue
            room = max(made.amount - sum(account.use((made, place))), 0)
            least = {"nanos": operation.minimum, "tokens": operation.minimum_tokens}.get(made.unit, operation.requests)
            if least > room:
                return "LIMIT_EXCEEDED"
            amount = min(amount, room) if made.unit == "nanos" else amount
            tokens = min(tokens, room) if made.unit == "tokens" else tokens
        coins, account.free = account.free[:amount], account.free[amount:]
        account.holds[operation.hold_id] = ShadowHold(
            asked=operation,
            place=account.place,
            made_at=account.now,
            lapses_at=account.now + timedelta(seconds=operation.ttl_seconds),
            coins=coins,
            unbacked=amount - len(coins),
            tokens=tokens,
        )
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
        rest = operation.amount - len(coins)
        account.spent += operation.amount
        if rest > 0:
            taken = min(rest, len(account.free))
            account.free = account.free[taken:]
            account.owed += rest - taken
        hold.status, hold.settled = "settled", replace(operation)
        account.add_free(coins[operation.amount :])
        account.expire()
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
            account.expire()
        return "done"

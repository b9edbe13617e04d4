"""Owns whims: random operations, in calls that are made at once, which suit what was answered so far."""

from services.ledger.model.operations import CreateHold, ReleaseHold, SetStatus, SettleHold
from tests.ledger.support.ledger_chance import Chance, Ranges
from tests.ledger.support.ledger_memory import credit, touch

ACCOUNTS = {
    "plain": {},
    "other": {},
    "some": {"overdraft_kind": "fixed", "overdraft_limit": 25},
    "house": {"overdraft_kind": "unlimited"},
}
USED = {"plain": 6, "other": 3, "some": 3, "house": 2}
WILD = Ranges(
    most=45,
    workspaces=("", "", "w1", "w2"),
    lifetimes=(1, 2, 3, 5, 30, 86_400),
    extensions=(0, 1, 5, 3600),
    expiries=(0, 1, 3, 9, 3600),
    unlimited=35,
    suspended=40,
    closed=2,
)
CALM = Ranges(most=7, keys=("", "k1"), workspaces=("", "w1"), lifetimes=(3, 30, 300, 86_400))


class Answered:
    """What answers have shown of a ledger: its holds as they were asked for, and its entries."""

    def __init__(self, clock):
        self._clock = clock
        self.holds, self.entries = {}, {}

    @property
    def now(self):
        return self._clock.now


class Whims(Chance):
    """Draws calls one after another: what is asked for again is a whole operation, and most is of holds alone."""

    def __init__(self, seed, clock):
        super().__init__(seed, Answered(clock), USED, CALM)
        self._usual = True
        self._numbers = 0
        self._before = []  # operations that were done, to be done again

    @property
    def calm(self):
        return self.ranges is CALM

    def calls(self):
        """Calls that are made at once, each of some linked groups.

        For some steps on end they are few, and what goes with model calls alone: then most is remembered.
        """
        self._drawn = []
        if self.often(6):
            self.ranges = WILD if self.calm else CALM
            if self.calm:
                return [self._refilled(name) for name in ACCOUNTS]
        self._usual = self.calm or self.often(75)
        count = 1 if self.calm else self.random.choice([1, 1, 2, 3])
        return [self._call(most=2 if self.calm else 8) for _ in range(count)]

    def _refilled(self, name):
        return [[SetStatus(name, "open", "", self.request_id(), b"resume")], [credit(300, self.request_id(), name)]]

    def note(self, operation, result):
        """What became of an operation."""
        if isinstance(result.outcome, Exception):
            return
        place = (operation.account_id, getattr(operation, "hold_id", ""))
        if isinstance(operation, CreateHold) and not result.replayed:
            self._ledger.holds[place] = operation
            self._made.append(place)
            self._open.append(place)
        elif isinstance(operation, SettleHold | ReleaseHold) and place in self._open:
            self._open.remove(place)
        self._before = [*self._before[-60:], operation]
        entry = getattr(result.outcome, "entry", None)
        if entry is not None and not result.replayed:
            self._ledger.entries[entry.account_id, entry.sequence] = entry

    def _call(self, most):
        sizes = self.random.choices([1, 2, 3], [14, 2, 1], k=self.random.choice([1, 1, 2, most]))
        self._at = super().account()
        return [self._group(size) for size in sizes]

    def _group(self, size):
        """Mostly of one account."""
        if self.often(20):
            self._at = super().account()
        group = []
        for _ in range(size):
            if self.often(4):
                self._at = super().account()
            group.append(self.operation())
            self._drawn.append(group[-1])
        return group

    def kinds(self):
        usual = {self.hold: 50, self.settle: 40, self.release: 8, self.again: 3 if self.calm else 10}
        if self._usual:
            return usual
        return {kind: weight // 2 for kind, weight in usual.items()} | {
            self.extend: 6, self.credit: 16, self.debit: 6, self.adjust: 3, self.undo: 6, self.limit: 14,
            self.touch: 3, self.status: 5, self.update: 2,
        }  # fmt: skip

    def account(self):
        return self._at

    def request_id(self):
        self._numbers += 1
        return f"n{self._numbers}"

    def place(self):
        """Mostly an open hold of the account at hand, or one that was asked for at the same moment."""
        places = [place for place in self._open[-12:] if place[0] == self._at]
        if self.often(0 if self.calm else 25):
            places = [(x.account_id, x.hold_id) for x in self._drawn if isinstance(x, CreateHold)]
        if not places or self.often(3 if self.calm else 12):
            places = [*self._made[-40:], (self._at, "never")]
        return self.random.choice(places)

    def new_place(self):
        return self.place() if self.often(3) else (self._at, self.request_id())

    def spent(self, there):
        return self.random.choice([0, 1, there.amount if there else 3, 30, 60])

    def allowed(self):
        return self.random.choice([0, 20, 100, 400, 2000])

    def part(self):
        return self.random.choice([None, 1, 20])

    def again(self):
        found = [x for x in self._before if x.account_id == self._at or self.often(5)]
        usual = [x for x in found if isinstance(x, CreateHold | SettleHold | ReleaseHold)]
        return self.random.choice((usual if self.often(80) else found) or [touch(self._at)])

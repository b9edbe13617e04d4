"""Owns the time that is measured, and what was answered in it."""

import dataclasses


@dataclasses.dataclass(slots=True)
class Window:
    """The time that is measured, and when each request was sent and answered, by the performance counter."""

    begins: float
    ends: float
    answered: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    over: bool = False

    def note(self, sent: float, now: float) -> None:
        """Note an answer; the first after the window has ended ends the sending."""
        self.answered.append((sent, now))
        self.over = self.over or now >= self.ends

    def rate(self) -> float:
        """Requests a second. One that was under way when the window began or ended counts by its part within."""
        begins, ends = self.begins, self.ends
        done = sum(max(0.0, min(now, ends) - max(sent, begins)) / (now - sent) for sent, now in self.answered)
        return done / (ends - begins)

    def took(self) -> list[float]:
        """Seconds that those took which were answered within."""
        return [now - sent for sent, now in self.answered if self.begins <= now <= self.ends]

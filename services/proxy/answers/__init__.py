"""Owns the answers of calls with an `Idempotency-Key`: kept for a day, encrypted, and given again."""

from services.proxy.answers.model import KeptAnswer
from services.proxy.answers.service import Answers, Begun
from services.proxy.answers.store import AnswerStore

__all__ = ["AnswerStore", "Answers", "Begun", "KeptAnswer"]

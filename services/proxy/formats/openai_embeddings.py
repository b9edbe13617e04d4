"""Owns OpenAI's embeddings: what is read of a request, what its answer used. The output has no tokens and no cap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import orjson

from services import rating
from services.kit.validation import Violations
from services.proxy.formats import reading, tokens
from services.proxy.formats.answer import AnswerReader, Event
from services.proxy.formats.request import Request
from services.proxy.upstream import Outgoing, Provider
from services.rating import accounting

_MAX_INPUTS = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsRequest(Request):
    """Texts, or texts as tokens, to embed."""

    form: ClassVar[str] = "embeddings"
    owner: ClassVar[str] = "openai"

    @classmethod
    def read(cls, raw: bytes, *, model: str = "", stream: bool = False) -> Self:
        """See Request."""
        violations = Violations()
        body, model = reading.body_and_model(violations, raw, model)
        count = tokens.InputCount(raw, model)
        _count_input(count, violations, body.get("input"))
        violations.raise_if_any()
        return cls(
            body=body,
            model=model,
            stream=stream,
            choices=0,
            cap=None,
            input_bound=count.bound,
            input_guess=count.guess,
            service_tier=rating.STANDARD,
            components=frozenset(),
        )

    def outgoing(self, cap: int, provider: Provider, headers: tuple[tuple[str, str], ...] = ()) -> Outgoing:
        """See Request."""
        del cap
        model = provider.id_of(self.model)
        sent = orjson.dumps({**self.body, "model": model})
        return Outgoing(self.form, "embeddings", sent, stream=False, headers=headers, model=model)

    def reader(self) -> AnswerReader:
        """See Request."""
        return EmbeddingsReader()

    def texts(self) -> Iterator[str]:
        """See Request."""
        given = self.body["input"]
        yield from (one for one in (given if isinstance(given, list) else [given]) if isinstance(one, str))

    def estimated_input(self) -> int:
        """See Request. What is given as tokens needs no estimate."""
        given = self.body["input"]
        counted = 0
        for one in given if isinstance(given, list) else ():
            counted += len(one) if isinstance(one, list) else isinstance(one, int)
        return counted + tokens.estimated(self.model, self.texts()) or 1


class EmbeddingsReader(AnswerReader):
    """Reads embeddings, which come whole."""

    def broken(self, credits_object: Mapping[str, Any] | None) -> bytes:
        """See AnswerReader."""
        raise NotImplementedError

    def cut_short(self, credits_object: Mapping[str, Any] | None, counted: rating.Usage) -> bytes:
        """See AnswerReader."""
        raise NotImplementedError

    def _whole(self, answer: dict[str, Any]) -> None:
        self.count(accounting.openai_embeddings, answer.get("usage"))

    def _chunk(self, raw: bytes, chunk: dict[str, Any]) -> Event:
        raise NotImplementedError


def _count_input(count: tokens.InputCount, violations: Violations, given: object) -> None:
    if isinstance(given, str) and given:
        count.text(given)
    elif isinstance(given, list) and given:
        if isinstance(given[0], int):
            count.guess += len(given)
            return
        violations.count("input", given, at_most=_MAX_INPUTS)
        violations.raise_if_any()
        for number, one in enumerate(given):
            if isinstance(one, str):
                count.text(one)
            elif isinstance(one, list):
                count.guess += len(one)
            else:
                violations.add(f"input[{number}]", "must be a string or a list of tokens")
    else:
        violations.add("input", "is required: a string, a list of strings, or of tokens")

"""Owns the texts of calls in the log, for an operator who has turned that on: one line a call, each text bounded.

Off, which it is unless `LOG_TEXTS` is set, nothing of what a customer wrote or a model answered is logged anywhere.
"""

from __future__ import annotations

from services.kit.logs import get_logger
from services.proxy.calls.call import Call

_log = get_logger(__name__)


class Texts:
    """What one call was asked and what it answered: of each at most `limit_bytes`, and never the caller's credential.

    `take` hears every piece of the answer; of a stream they are joined. `body` is the client's, as it came.
    """

    def __init__(self, call: Call, body: bytes, limit_bytes: int) -> None:
        self._call = call
        self._request = body
        self._limit_bytes = limit_bytes
        self._secret = call.asked.secret.encode()
        # So much of the text that a credential at its end is whole, and found.
        self._kept_bytes = limit_bytes + len(self._secret)
        self._answer = bytearray()
        self._answer_bytes = 0
        call.delivery.overheard = self.take

    def take(self, piece: bytes) -> None:
        """Note the next piece of the answer."""
        self._answer_bytes += len(piece)
        if len(self._answer) < self._kept_bytes:
            self._answer += piece[: self._kept_bytes - len(self._answer)]

    def log(self) -> None:
        """Write the call's line. An answer that is not given, or not here, is empty."""
        call = self._call
        _log.info(
            "text of a call",
            call_id=call.call_id,
            account_id=call.key.account_id,
            key_id=call.key.key_id,
            endpoint=call.asked.endpoint,
            provider=call.provider,
            model=call.request.model,
            request=self._shown(self._request[: self._kept_bytes]),
            request_bytes=len(self._request),
            answer=self._shown(bytes(self._answer)),
            answer_bytes=self._answer_bytes,
        )

    def _shown(self, text: bytes) -> str:
        if self._secret:  # by as much as it takes, so that half of another one does not move into what is shown
            text = text.replace(self._secret, b"*" * len(self._secret))
        return text[: self._limit_bytes].decode(errors="replace")

"""Owns a roll-out of a suite's services, one server after the other, and the load that must not notice."""

import concurrent.futures
import os
import signal
import threading
import time

import psutil

CALLERS = 6
QUESTION = [{"role": "user", "content": "What is a toll?"}]
# Below the plan's 600 calls a minute, all callers together.
PAUSE_SECONDS = 0.6
LONG = QUESTION[0] | {"content": "What is a toll? [[sandbox delay_ms=1500]]"}


class Load:
    """Callers that go on until told to stop: model calls, quick ones and long ones, views, and writes."""

    def __init__(self, suite, customer):
        self.suite, self.customer = suite, customer
        self.failures, self.calls = [], 0
        self._counting = threading.Lock()
        self._stop = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(CALLERS)
        kinds = (self._call, self._long_call, self._stream, self._view, self._prices, self._limit)
        self._callers = [self._pool.submit(self._go_on, kind) for kind in kinds]

    def _go_on(self, kind):
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                answer = kind(number)
            except (OSError, ValueError) as error:
                self.failures.append((kind.__name__, repr(error)))
            else:
                if answer.status != 200:
                    self.failures.append((kind.__name__, answer.status, answer.body))
            time.sleep(PAUSE_SECONDS)

    def _model(self, body):
        answer = self.suite.post("/v1/chat/completions", body, self.customer.key)
        with self._counting:
            self.calls += answer.status == 200
        return answer

    def _call(self, _number):
        return self._model({"model": "gpt-4o", "messages": QUESTION, "max_tokens": 8})

    def _long_call(self, _number):
        return self._model({"model": "gpt-4o", "messages": [LONG], "max_tokens": 8})

    def _stream(self, _number):
        body = {"model": "gpt-4o", "messages": QUESTION, "max_tokens": 8, "stream": True}
        status, raw = self.suite.raw("/v1/chat/completions", body, self.customer.key)
        if status != 200:
            raise ValueError(f"{status} {raw}")
        if b'"credits"' not in raw or b"[DONE]" not in raw:
            raise ValueError(f"the stream broke off: {raw[-200:]}")
        with self._counting:
            self.calls += 1
        return self.suite.get("/v1/models", self.customer.key)

    def _view(self, _number):
        return self.suite.get("/api/credits/balance", self.customer.key)

    def _prices(self, _number):
        return self.suite.get("/api/admin/prices?pageSize=1", self.suite.admin_key)

    def _limit(self, number):
        """A write: each is another request, so none is a repeat of one that was done."""
        limit = {"scope": "workspace", "subject": "w", "unit": "nanos", "window": "day", "requestId": f"limit-{number}"}
        path = f"/api/admin/accounts/{self.customer.account_id}/limits"
        return self.suite.post(path, limit | {"amountNanos": str(number)}, self.suite.admin_key)

    def stop(self):
        self._stop.set()
        for caller in self._callers:
            caller.result(60)
        self._pool.shutdown()


def restart(suite, name):
    """End one server as a roll-out does, and start it again; the others serve meanwhile."""
    pid = suite.pid(name)
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGTERM)
    psutil.wait_procs([process], timeout=40)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    suite.start(name, "envoy")  # which runs, and is ready when it sends calls to all of them

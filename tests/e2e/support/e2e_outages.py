"""Owns how parts of a suite are taken away, and the calls that are made or under way meanwhile."""

import concurrent.futures
import contextlib
import json
import time
import urllib.parse
from http.client import HTTPConnection, HTTPException

import psutil

QUESTION = "What is a toll?"
# A stream of so many chunks lasts for longer than it takes to look at what is refused meanwhile.
LONG = "[[sandbox output_tokens=16 chunk_tokens=1 delay_ms=400]] What is a toll?"


def _ended(process):
    """Whether a process runs no more; one that nobody has collected does not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def gone(suite, *names):
    """Processes killed, and all that they forked; they are back when this ends.

    Begins when none runs any more: a killed Postgres' sessions go on answering for some milliseconds (seen: 16).
    """
    servers = [psutil.Process(suite.pid(name)) for name in names]
    killed = [each for server in servers for each in (server, *server.children(recursive=True))]
    for each in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    while not all(map(_ended, killed)):
        time.sleep(0.001)
    try:
        yield
    finally:
        suite.start(*names, "envoy")  # which runs, and is ready when it sends calls to all of them


@contextlib.contextmanager
def frozen(suite, name):
    """A process and all that it forked, stopped: its connections stand, and nothing answers."""
    server = psutil.Process(suite.pid(name))
    stopped = [server, *server.children(recursive=True)]
    for each in stopped:
        each.suspend()
    try:
        yield
    finally:
        for each in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()


def chat(text=QUESTION, model="gpt-4o", **more):
    """The body of a call at `/v1/chat/completions`."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 50, **more}


class Stream:
    """One streamed call in a thread of its own, begun when this is made."""

    def __init__(self, suite, key, text=LONG, model="gpt-4o"):
        self._url = urllib.parse.urlsplit(suite.url)
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._call = self._pool.submit(self._read, key, chat(text, model, stream=True))

    def _read(self, key, body):
        connection = HTTPConnection(self._url.hostname, self._url.port, timeout=60)
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body),
            {"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        answer = connection.getresponse()
        lines = []
        try:
            lines.extend(line.decode().strip() for line in answer)
        except (HTTPException, OSError):
            lines.append("broken off")
        finally:
            connection.close()
        return answer.status, [line.removeprefix("data: ") for line in lines if line]

    def runs(self):
        """Whether it has not ended."""
        return not self._call.done()

    def end(self):
        """Its status and the events that came, once it has ended."""
        try:
            return self._call.result(60)
        finally:
            self._pool.shutdown()

"""Owns the sampling of the proxy's process: Python itself imports this where the bench put its folder on the path.

SIGUSR1 begins it, and SIGUSR1 again ends it and writes the file. A timer of processor time, not of the clock, asks
every four milliseconds which function the main thread is in; what native code took stands with what called it.
"""

import atexit
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

# A tick of the kernel's, which no such timer is finer than.
_INTERVAL_SECONDS = 0.004
_MOST_FRAMES = 100


def _name(frame):
    code = frame.f_code
    parts = Path(code.co_filename).parts
    return f"{'/'.join(parts[-3:])}:{code.co_firstlineno} {code.co_qualname}"


class _Sampler:
    def __init__(self, file):
        self._file = file
        self._running = False

    def toggle(self, _number, _frame):
        self._running = not self._running
        if self._running:
            self._samples, self._own, self._total = 0, Counter(), Counter()
            signal.setitimer(signal.ITIMER_PROF, _INTERVAL_SECONDS, _INTERVAL_SECONDS)
        else:
            signal.setitimer(signal.ITIMER_PROF, 0)
            part = self._file.with_suffix(".part")
            part.write_text(json.dumps({"samples": self._samples, "own": self._own, "total": self._total}))
            part.replace(self._file)

    def take(self, _number, frame):
        self._samples += 1
        seen = set()
        while frame is not None and len(seen) < _MOST_FRAMES:
            name = _name(frame)
            if not seen:
                self._own[name] += 1
            seen.add(name)
            frame = frame.f_back
        self._total.update(seen)


if "BENCH_SAMPLES_FILE" in os.environ and sys.orig_argv[-3:] == ["-m", "services.proxy", "serve"]:
    _sampler = _Sampler(Path(os.environ["BENCH_SAMPLES_FILE"]))
    signal.signal(signal.SIGUSR1, _sampler.toggle)
    signal.signal(signal.SIGPROF, _sampler.take)
    # A signal that comes while the interpreter ends would end it otherwise.
    atexit.register(signal.setitimer, signal.ITIMER_PROF, 0)

"""A command that another program started: progress as lines of JSON, and an end when that program is gone."""

from __future__ import annotations

import _thread
import json
import multiprocessing
import os
import sys
import threading
import time
from typing import Any

GRACE = 2.0
"""Seconds in which an interrupted command may tidy up."""
_OFTEN = 0.1
_servants: list[threading.Thread] = []


class Lines:
    """Write progress to standard error, ``{"stage": "epoch 2 of 10", "done": 25, "total": 120}`` a line.

    At most ten lines a second are written, but the first and the last of a stage always are.
    """

    def __init__(self) -> None:
        self._stage, self._last = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of how far a stage is."""
        now = time.monotonic()
        if stage != self._stage or done == total or now - self._last >= _OFTEN:
            self._stage, self._last = stage, now
            line: dict[str, Any] = {"stage": stage, "done": done, "total": total}
            print(json.dumps(line), file=sys.stderr, flush=True)


def serve_program() -> None:
    """Write progress for a program from now on, and end with it.

    This process is interrupted once its standard input closes, and ended if that does not help in time. The other end
    of the pipe closes when the program that holds it wants the end, quits or is killed, on every system alike; signals
    do less.
    """
    _servants.append(threading.Thread(target=_wait_for_end, daemon=True))
    _servants[0].start()


def is_piped() -> bool:
    """Whether a program reads the progress."""
    return bool(_servants)


def _wait_for_end() -> None:
    # The descriptor itself: a lock of sys.stdin would be held in processes that are forked meanwhile.
    while os.read(0, 1):
        pass
    _thread.interrupt_main()
    time.sleep(GRACE)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(130)

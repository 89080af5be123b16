"""Numbers that do not depend on how many processors a machine has."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager

_lock = threading.Lock()
_inside: list[int] = []


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """Let torch work with one thread inside.

    It shares its sums out among threads: another number of them changes the last digits of a probability, and so a
    table. The same digits are wanted everywhere: a laptop, a cluster and the dock give the same file. Processors are
    kept busy by several batches at a time instead.
    """
    import torch

    with _lock:
        before = _inside[0] if _inside else torch.get_num_threads()
        _inside.append(before)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:  # the last one out: the number is one for all threads
                torch.set_num_threads(before)


def processors() -> int:
    """Return how many threads this process shall work with.

    Where several processes share a machine, each is told so in OMP_NUM_THREADS.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(told) if told.isdecimal() else os.cpu_count() or 1)

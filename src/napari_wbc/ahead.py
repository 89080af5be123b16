"""Work ahead in threads, with results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def ahead(job: Callable[[In], Out], items: Iterable[In]) -> Generator[tuple[In, Out], None, None]:
    """Do a job on each item, while the one who asks is busy with earlier results.

    Parameters
    ----------
    job : callable
        Threads call it.
    items : iterable
        Taken as there is room for them: few are under way at once.

    Yields
    ------
    (item, result) : in the order of the items. Closing the generator stops the threads.
    """
    # Where several processes share a machine, each is told so in this variable.
    told = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, int(told) if told.isdecimal() else os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, "ahead")
    waiting: deque[tuple[In, Future[Out]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(job, item)))
            if len(waiting) > 2 * threads + 2:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

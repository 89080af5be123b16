"""Threads work ahead; results come in order."""

import threading
import time

import pytest

from napari_wbc.ahead import ahead


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def test_results_come_in_the_order_of_the_items():
    def slower_first(k: int) -> int:
        time.sleep(0.02 * (k % 3 == 0))
        return k * k

    assert list(ahead(slower_first, range(20))) == [(k, k * k) for k in range(20)]


def test_few_items_are_taken_before_their_results_are_wanted():
    taken = []

    def items():
        for k in range(100):
            taken.append(k)
            yield k

    results = ahead(lambda k: k, items())
    next(results)
    assert len(taken) < 10
    results.close()
    assert len(taken) < 10


def test_closing_drops_what_has_not_begun():
    done, go = [], threading.Event()

    def job(k: int) -> int:
        if k:
            go.wait(10)
        done.append(k)
        return k

    results = ahead(job, range(100))
    assert next(results) == (0, 0)
    results.close()
    go.set()
    time.sleep(0.2)
    assert len(done) <= 3  # the first, and what two threads had in hand


def test_an_error_of_a_job_comes_where_its_result_would():
    def job(k: int) -> float:
        return 1 / (3 - k)

    results = ahead(job, range(10))
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)

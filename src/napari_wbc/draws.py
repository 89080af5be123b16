"""Random numbers of the disturbances, which several threads draw at once and yet repeatably."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_drawn = threading.local()


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Let the disturbances of this thread draw from a generator of their own, as threads that share one must not."""
    _drawn.generator = torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        del _drawn.generator


def generator() -> torch.Generator:
    """What this thread draws from: torch's own unless `drawing`."""
    return getattr(_drawn, "generator", torch.default_generator)


def rand(*shape: int) -> Tensor:
    """Numbers from 0 to 1."""
    return torch.rand(*shape, generator=generator())


def randn(*shape: int) -> Tensor:
    """Numbers of mean 0 and deviation 1."""
    return torch.randn(*shape, generator=generator())


def between(shape: Sequence[int], low: float, high: float) -> Tensor:
    """Numbers from `low` to `high`."""
    return torch.empty(*shape).uniform_(low, high, generator=generator())


def uniform(n: int, low: float, high: float) -> Tensor:
    """(n, 1, 1, 1)."""
    return between([n, 1, 1, 1], low, high)

"""Numbers that do not depend on how many processors a machine has."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """Let torch work with one thread inside.

    It shares its sums out among threads: another number of them changes the last digits of a probability, and so a
    table. The same digits are wanted everywhere: a laptop, a cluster and the dock give the same file. Little is
    lost: the other processors read and segment the next windows meanwhile.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Numbers of things in words, and words as sentences."""

from __future__ import annotations

import math


def plural(n: int, noun: str) -> str:
    """Return a number with what it counts, as in ``1 cell`` and ``2 cells``; for nouns whose plural ends in s."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def sentence(words: str) -> str:
    """Return words with a capital and a full stop."""
    return f"{words[0].upper()}{words[1:]}."


def tenths(value: float) -> str:
    """Return a number with one decimal, the same of a value and of it in hundredths, as cards keep it."""
    # A half goes up: 92.55 is a little less in binary, and would be 92.5 where 92.552 is 92.6.
    return f"{round(value, 2) + math.copysign(1e-9, value):.1f}"

"""Numbers of things in words."""

from __future__ import annotations


def plural(n: int, noun: str) -> str:
    """Return a number with what it counts, as in ``1 cell`` and ``2 cells``; for nouns whose plural ends in s."""
    return f"{n} {noun}{'' if n == 1 else 's'}"

"""Numbers of things in words, and words as sentences."""

from __future__ import annotations


def plural(n: int, noun: str) -> str:
    """Return a number with what it counts, as in ``1 cell`` and ``2 cells``; for nouns whose plural ends in s."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def sentence(words: str) -> str:
    """Return words with a capital and a full stop."""
    return f"{words[0].upper()}{words[1:]}."

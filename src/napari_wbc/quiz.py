"""A quiz for students over cells that somebody reviewed: which class is it?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from .cells import Cells
from .class_names import UNIDENTIFIED

QUESTIONS = 20


class Quiz:
    """Questions, answers and their score.

    Parameters
    ----------
    cells : Cells
        Those that a reviewer decided on are asked for; unidentified ones have no right answer and are not.
    n : int
        How many at most.
    seed : int
        Of their choice.

    Raises
    ------
    ValueError
        If no cell was reviewed.
    """

    def __init__(self, cells: Cells, n: int = QUESTIONS, seed: int | None = None) -> None:
        table = cells.table
        known = table[(table["class_reviewed"] != "") & (table["class_reviewed"] != UNIDENTIFIED)]
        if known.empty:
            raise ValueError("no cell has been reviewed; review some cells before a quiz about them")
        asked = known.sample(min(n, len(known)), random_state=np.random.default_rng(seed))
        self._right = dict(zip(asked["label"].astype(int), asked["class_reviewed"], strict=True))
        self._answers: dict[int, str] = {}

    @property
    def open(self) -> list[int]:
        """Labels of the cells that wait for an answer, in the order in which they are asked."""
        return [label for label in self._right if label not in self._answers]

    @property
    def score(self) -> tuple[int, int]:
        """Right answers, and all."""
        return sum(self._right[label] == name for label, name in self._answers.items()), len(self._answers)

    @property
    def matrix(self) -> pd.DataFrame:
        """Answers: a row a class of the reviewer, a column a class that was answered."""
        right = [self._right[label] for label in self._answers]
        names = sorted({*right, *self._answers.values()})
        found = pd.crosstab(pd.Series(right, dtype=object), pd.Series([*self._answers.values()], dtype=object))
        return found.reindex(index=names, columns=names, fill_value=0)

    def answer(self, label: int, name: str) -> bool:
        """Answer for a cell; returns whether it is right."""
        self._answers[label] = name
        return bool(self._right[label] == name)

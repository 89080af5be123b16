import numpy as np
import pytest

from napari_wbc.cells import Cells, measure
from napari_wbc.quiz import Quiz


def test_only_reviewed_cells_are_asked_and_answers_are_scored():
    labels = np.zeros((1, 21), int)
    labels[0, 1::2] = np.arange(1, 11)
    cells = measure(labels).with_predictions(np.tile([0.9, 0.1], (10, 1)), ["x", "y"], 0.5)
    with pytest.raises(ValueError, match="no cell has been reviewed"):
        Quiz(cells)
    reviewed = ["x", "y", "unidentified", "y", *[""] * 6]
    quiz = Quiz(Cells(cells.table.assign(**{"class": [name or "x" for name in reviewed], "class_reviewed": reviewed})))
    assert set(quiz.open) == {1, 2, 4}
    assert quiz.answer(1, "y") is False
    assert quiz.answer(2, "y") is True
    assert quiz.open == [4]
    assert quiz.score == (1, 2)
    assert quiz.matrix.loc["x", "y"] == 1
    assert quiz.matrix.loc["y"].tolist() == [0, 1]

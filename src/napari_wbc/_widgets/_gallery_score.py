"""The score of a quiz."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QDialog, QLabel, QVBoxLayout, QWidget

from ._results import fill_table, plain_table

if TYPE_CHECKING:
    from napari_wbc.quiz import Quiz


class Score(QDialog):
    """A window with the score and the confusion matrix of a quiz."""

    def __init__(self, quiz: Quiz, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Quiz")
        score, asked = quiz.score
        column = QVBoxLayout(self)
        column.addWidget(QLabel(f"{score} of {asked} right. Rows: the reviewer's classes; columns: your answers."))
        self.table, matrix = plain_table(), quiz.matrix
        named = zip(matrix.index, matrix.to_numpy(), strict=True)
        rows = [[name, *(str(n) if n else "" for n in row)] for name, row in named]
        fill_table(self.table, ["", *matrix.columns], rows)
        column.addWidget(self.table)
        self.resize(560, 320)

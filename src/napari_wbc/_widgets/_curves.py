"""Loss, accuracy and macro-F1 of a run over its epochs, drawn while it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from qtpy.QtCore import QSize
from qtpy.QtWidgets import QSizePolicy, QVBoxLayout, QWidget

# Okabe and Ito's orange and a blue between theirs: told apart by everyone, on dark and on light.
TRAINING, VALIDATION = "#e69f00", "#3a9bdc"
LOWEST, HIGHEST = 190, 320
# Column of the history, legend, colour, line.
LOSS = (("loss", "training", TRAINING, "-"), ("val_loss", "validation", VALIDATION, "-"))
RIGHT = (
    ("accuracy", "training", TRAINING, "-"),
    ("val_accuracy", "validation", VALIDATION, "-"),
    ("val_macro_f1", "macro-F1, validation", VALIDATION, "--"),
)


class Curves(QWidget):
    """The curves of one run.

    Parameters
    ----------
    theme : str
        Name of napari's theme.
    """

    def __init__(self, theme: str) -> None:
        super().__init__()
        self.theme = theme
        self.history = pd.DataFrame()
        self.epochs = 1
        self.canvas: Any = None
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self.setMinimumHeight(LOWEST)
        self.setMaximumHeight(HIGHEST)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self.hide()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Be as low as can be read, else a scroll area gives the figure's own height, whatever room there is."""
        return QSize(super().sizeHint().width(), LOWEST)

    def show_history(self, file: Path, epochs: int) -> None:
        """Draw a ``history.csv`` of a run that has so many epochs; nothing is shown before the first is finished."""
        self.epochs = epochs
        self.history = pd.read_csv(file) if file.is_file() else pd.DataFrame()
        self.setVisible(len(self.history) > 0)
        if len(self.history):
            self._draw()

    def set_theme(self, theme: str) -> None:
        """Draw again in another of napari's themes."""
        self.theme = theme
        if len(self.history):
            self._draw()

    def _draw(self) -> None:
        if self.canvas is None:
            from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
            from matplotlib.figure import Figure

            self.canvas = FigureCanvasQTAgg(Figure(layout="constrained"))
            self.layout().addWidget(self.canvas)
        draw_history(self.canvas.figure, self.history, self.epochs, self.theme)
        self.canvas.draw_idle()


def draw_history(figure: Any, history: pd.DataFrame, epochs: int, theme: str) -> None:
    """Draw the loss, and beside it the share of right answers.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Cleared first.
    history : pandas.DataFrame
        A row an epoch (`napari_wbc.train.HISTORY`).
    epochs : int
        Length of the whole run, for the axis.
    theme : str
        Name of napari's theme.
    """
    from matplotlib.ticker import MaxNLocator
    from napari.utils.theme import get_theme

    colours = get_theme(theme)
    paper, ink = (colour.as_hex() for colour in (colours.background, colours.text))
    figure.clear()
    figure.set_facecolor(paper)
    left, right = figure.subplots(1, 2)
    for axes, lines, unit, title in ((left, LOSS, 1.0, "loss"), (right, RIGHT, 100.0, "% right")):
        axes.set_facecolor(paper)
        for column, label, colour, style in lines:
            marker = "o" if len(history) < 40 and style == "-" else None
            axes.plot(
                history["epoch"], unit * history[column], style, color=colour, label=label, marker=marker, markersize=3,
                linewidth=1.5,
            )  # fmt: skip
        axes.grid(axis="y", color=ink, alpha=0.15)
        axes.tick_params(colors=ink, labelsize=8, length=0)
        axes.set_title(title, color=ink, fontsize=9)
        axes.set_xlabel("epoch", color=ink, fontsize=8)
        # The whole run from the start, so that the curves grow into it; one epoch has no width.
        margin = 0.5 if epochs == 1 else 0.03 * epochs
        axes.set_xlim(1 - margin, epochs + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(ink)
            spine.set_alpha(0.5)
    left.set_ylim(bottom=0)
    right.set_ylim(0, 102)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8, labelcolor=ink,
        handlelength=2.0, columnspacing=1.2,
    )  # fmt: skip

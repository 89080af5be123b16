"""Two readers: the classes of the review beside the model's, or those of other results of the picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QComboBox, QFileDialog, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from napari_wbc.agreement import Agreement, by_model, compare

from ._dock import EXPECTED
from ._models import BROWSE
from ._results import fill_table, plain_table

if TYPE_CHECKING:
    from ._review import Review

THE_MODEL = "the model"


class ReadersTab(QWidget):
    """Agreement of the review with another reader."""

    chosen = Signal()
    """Another reader shall be compared with."""
    warned = Signal(str)
    """The results of another reader cannot be used: why."""

    def __init__(self) -> None:
        super().__init__()
        self.agreement: Agreement | None = None
        self.other = QComboBox()
        self.other.addItem(THE_MODEL, None)
        self.other.addItem(BROWSE, BROWSE)
        self.other.setToolTip("The other reader: the model, or the results of another review or run of this picture")
        self.other.activated.connect(self._on_other)
        self.kappa = QLabel()
        self.kappa.setWordWrap(True)
        self.shares, self.matrix = plain_table(), plain_table()
        row = QHBoxLayout()
        row.addWidget(QLabel("Compare with"))
        row.addWidget(self.other, 1)
        column = QVBoxLayout(self)
        column.addLayout(row)
        column.addWidget(self.kappa)
        column.addWidget(self.shares)
        column.addWidget(QLabel("Cells by class: rows as here, columns as the other reader says"))
        column.addWidget(self.matrix, 1)

    def choose(self, folder: str | Path | None) -> None:
        """Compare with the results in a folder; None for the model."""
        if folder is not None and self.other.findData(str(folder)) < 0:
            self.other.insertItem(1, Path(folder).name, str(folder))
        self.other.setCurrentIndex(0 if folder is None else self.other.findData(str(folder)))
        self.chosen.emit()

    def _on_other(self, index: int) -> None:
        if self.other.itemData(index) == BROWSE:
            self.choose(QFileDialog.getExistingDirectory(self, "Results of the other reader") or None)
        else:
            self.chosen.emit()

    def show_review(self, review: Review) -> None:
        """Compare a review with the chosen reader."""
        folder = self.other.currentData()
        try:
            if folder is None:
                other, name = by_model(review.session.before), THE_MODEL
            else:
                from napari_wbc.export import read_results

                other, name = read_results(folder).cells, Path(folder).name
        except (*EXPECTED, OSError) as error:
            self.other.setCurrentIndex(0)
            self.warned.emit(str(error))
            return
        self.agreement = compare(review.session.cells, other, (review.reviewer or "this review", name))
        self._show(self.agreement)

    def _show(self, found: Agreement) -> None:
        kappa = f"Cohen's κ = {found.kappa:.2f}" if np.isfinite(found.kappa) else "κ is not defined"
        share = f" ({100 * found.same / found.common:.1f} %)" if found.common else ""
        left = f" Left unidentified by one or both: {found.unidentified:,}." if found.unidentified else ""
        self.kappa.setText(
            f"{found.same:,} of {found.common:,} cells that both gave a class have the same{share}; {kappa}.{left}"
        )
        shares = [
            (row["class"], f"{row['share_1']:.1f} %", f"{row['share_2']:.1f} %", f"{row['difference']:+.1f}",
             f"{row['low']:.1f} … {row['high']:+.1f}", "yes" if row["within"] else "no")
            for row in found.shares.to_dict("records") if row["n_1"] or row["n_2"]
        ]  # fmt: skip
        fill_table(self.shares, ["Class", "here", "other", "difference", "by chance", "within"], shares)
        kept = found.matrix.to_numpy().sum(axis=0) + found.matrix.to_numpy().sum(axis=1) > 0
        matrix = found.matrix.loc[kept, kept]
        short = [name if len(name) <= 12 else name[:10] + "…" for name in matrix.columns]
        named = zip(matrix.index, matrix.to_numpy(), strict=True)
        fill_table(self.matrix, ["", *short], [[name, *(str(n) if n else "" for n in row)] for name, row in named])
        for k in range(len(matrix)):
            item = self.matrix.item(k, k + 1)
            if item is not None:
                item.setBackground(QColor(0, 158, 115, 70))

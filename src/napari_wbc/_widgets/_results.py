"""The differential as a table and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from napari.utils.theme import get_theme
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QLabel,
    QScrollArea,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.palette import colour
from napari_wbc.reference import flag_sign

from ._chart import Chart

if TYPE_CHECKING:
    from napari_wbc.cells import Cells

# Sections of the table with their groups (`napari_wbc.count`).
SECTIONS = (
    ("White cells", ("white",)),
    ("Not in the 100 %", ("erythroblast", "smudge", "platelet", "unidentified", "other")),
)
SHORT_UNITS = {"% of white cells": "%", "% of white cells and unidentified": "%", "per 100 white cells": "/ 100"}
OUTSIDE = {
    "▲": "above the reference range, and so are its limits",
    "△": "above the reference range; its limits reach into it",
    "▼": "below the reference range, and so are its limits",
    "▽": "below the reference range; its limits reach into it",
}
FLAG_COLOUR = ("#ffa94d", "#b34700")  # on dark, on light paper
LIMITS_NOTE = "Exact 95 % limits (Clopper–Pearson)."


class Results(QWidget):
    """Table of the counts, chart with error bars, and the notes of an analysis.

    Parameters
    ----------
    theme : str
        Name of napari's theme, for the chart.
    """

    def __init__(self, theme: str) -> None:
        super().__init__()
        self.theme = theme
        self.counts: pd.DataFrame | None = None
        self.table = QTableWidget(0, 4)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.table.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.table.setShowGrid(False)
        self.table.verticalHeader().hide()
        self.table.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.notes = QLabel()
        self.notes.setWordWrap(True)
        self.notes.setTextFormat(Qt.TextFormat.PlainText)
        # Above the table, where it is seen in a small window too: the scale is the first thing to check.
        self.head = QLabel()
        self.head.setWordWrap(True)
        self.head.setTextFormat(Qt.TextFormat.PlainText)
        self.chart = Chart(theme)
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.head)
        column.addWidget(self.table)
        column.addWidget(self.chart)
        column.addWidget(self.notes)
        column.addStretch()
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QScrollArea.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(inside)
        outside = QVBoxLayout(self)
        outside.setContentsMargins(0, 0, 0, 0)
        outside.addWidget(area)

    def show_counts(self, counts: pd.DataFrame, head: str, notes: Sequence[str]) -> None:
        """Show a differential (`napari_wbc.count.differential`), a line above and lines of notes below it.

        Reference ranges and absolute counts (`napari_wbc.reference.with_ranges`) have columns where they are given.
        """
        self.counts = counts
        self._fill_table(counts)
        self.chart.show_shares(counts[counts["group"] == "white"])
        self.head.setText(head)
        self.notes.setText("\n".join(notes))

    def set_theme(self, theme: str) -> None:
        """Take the colours of another of napari's themes."""
        self.theme = theme
        self.chart.set_theme(theme)
        if self.counts is not None:
            self._fill_table(self.counts)

    def _fill_table(self, counts: pd.DataFrame) -> None:
        self.table.setRowCount(0)
        titles = ["Class", "n", "Share", "95 % limits"]
        if "reference_low" in counts:
            titles.append("Range, %")
            if counts["per_ul"].notna().any():
                titles.append("per µL")
        self.table.setColumnCount(len(titles))
        self.table.setHorizontalHeaderLabels(titles)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for title, groups in SECTIONS:
            rows = counts[counts["group"].isin(groups)]
            if rows.empty:
                continue
            self._add_section(f"{title}: {rows['n'].sum()}")
            for _, row in rows.iterrows():
                self._add_row(row)
        self.table.resizeRowsToContents()
        height = self.table.horizontalHeader().sizeHint().height() + self.table.verticalHeader().length() + 4
        self.table.setFixedHeight(height)

    def _add_section(self, title: str) -> None:
        row = self.table.rowCount()
        self.table.insertRow(row)
        item = QTableWidgetItem(title)
        font = item.font()
        font.setBold(True)
        item.setFont(font)
        self.table.setItem(row, 0, item)
        self.table.setSpan(row, 0, 1, self.table.columnCount())

    def _add_row(self, entry: pd.Series) -> None:
        row = self.table.rowCount()
        self.table.insertRow(row)
        swatch = QPixmap(12, 12)
        swatch.fill(QColor(colour(entry["class"])))
        self.table.setItem(row, 0, QTableWidgetItem(QIcon(swatch), entry["class"]))
        texts = [str(entry["n"]), *row_texts(entry), *_range_texts(entry)][: self.table.columnCount() - 1]
        for column, text in enumerate(texts, start=1):
            item = QTableWidgetItem(text)
            item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            item.setToolTip(entry["unit"])
            if text[-1:] in OUTSIDE:
                paper = QColor(get_theme(self.theme).background.as_hex())
                item.setForeground(QColor(FLAG_COLOUR[paper.lightness() > 127]))
                font = item.font()
                font.setBold(True)
                item.setFont(font)
                item.setToolTip(OUTSIDE[text[-1]])
            self.table.setItem(row, column, item)


def cells_line(cells: Cells) -> str:
    """Say how many cells there are, and how many have a class: ``20 cells: 15 with a class, 5 unidentified``."""
    n, names = len(cells), cells.table["class"]
    unsure, none = int((names == UNIDENTIFIED).sum()), int((names == "").sum())
    parts = [f"{n - unsure - none:,} with a class", f"{unsure:,} unidentified" if unsure else "none unidentified"]
    if none:
        parts.append(f"{none:,} without a class")
    return f"{n:,} cell{'' if n == 1 else 's'}: {', '.join(parts)}"


def row_texts(entry: pd.Series) -> tuple[str, str]:
    """Return share and limits of a row of the differential as they are shown; empty where there are none."""
    if not np.isfinite(entry["value"]) or entry["unit"] == "n":
        return "", ""
    unit = SHORT_UNITS.get(entry["unit"], entry["unit"])
    return f"{entry['value']:.1f} {unit}{_sign(entry, '')}", f"{entry['low']:.1f} – {entry['high']:.1f}"


def _sign(entry: pd.Series, of: str) -> str:
    """Return the sign of a share, or ``per_ul_`` of an absolute count, outside its range; empty for one inside."""
    limits = ("per_ul_low", "per_ul_high") if of else ("low", "high")
    numbers = [entry.get(name, np.nan) for name in (*limits, f"{of}reference_low", f"{of}reference_high")]
    sign = flag_sign(entry.get(f"{of}flag", ""), *numbers)
    return f" {sign}" if sign else ""


def _range_texts(entry: pd.Series) -> tuple[str, str]:
    """Return the reference range and the absolute count of a row; empty where there are none."""
    low, high, per_ul = (entry.get(name, np.nan) for name in ("reference_low", "reference_high", "per_ul"))
    absolute = f"{per_ul:,.0f}{_sign(entry, 'per_ul_')}" if np.isfinite(per_ul) else ""
    return (f"{low:g} – {high:g}" if np.isfinite(low) else ""), absolute


def plain_table() -> QTableWidget:
    """Return a table to be read only."""
    table = QTableWidget(0, 0)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
    table.verticalHeader().hide()
    table.setShowGrid(False)
    return table


def fill_table(table: QTableWidget, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Fill a table with text; the first column is aligned left."""
    table.setRowCount(len(rows))
    table.setColumnCount(len(titles))
    table.setHorizontalHeaderLabels(titles)
    table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
    for k, row in enumerate(rows):
        for column, text in enumerate(row):
            item = QTableWidgetItem(text)
            side = Qt.AlignmentFlag.AlignLeft if column == 0 else Qt.AlignmentFlag.AlignRight
            item.setTextAlignment(side | Qt.AlignmentFlag.AlignVCenter)
            table.setItem(k, column, item)
    table.resizeRowsToContents()

"""All pictures of a run beside the one under review: their counts together, how far each is, and a way to the next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari.qt.threading import create_worker
from qtpy.compat import isalive
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.count import differential
from napari_wbc.reference import Ranges, with_ranges

from ._dock import EXPECTED
from ._results import LIMITS_NOTE, Results, cells_line, fill_table, plain_table

if TYPE_CHECKING:
    from napari_wbc.case import Case


def run_folder(folder: Path | None) -> Path | None:
    """Return the folder of the run that results of a picture belong to; None if they stand alone."""
    return folder.parent if folder is not None and (folder.parent / "run.json").is_file() else None


class RunTab(QWidget):
    """Counts of all pictures of a run, and a table of them.

    Parameters
    ----------
    theme : str
        Name of napari's theme.
    """

    chosen = Signal(str)
    """The folder of a picture to go on with."""

    def __init__(self, theme: str) -> None:
        super().__init__()
        self.case: Case | None = None
        self._folder: Path | None = None
        self.results = Results(theme)
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.pictures = plain_table()
        self.pictures.setToolTip("Double click: review this picture")
        self.pictures.cellDoubleClicked.connect(self._on_picture)
        column = QVBoxLayout(self)
        column.addWidget(self.status)
        column.addWidget(self.results, 2)
        column.addWidget(self.pictures, 1)

    def show_run(self, folder: Path, ranges: Ranges) -> None:
        """Read the results of a run with the decisions on them, in a thread, and show them."""
        self._folder = folder

        def tell(case: Case | str) -> None:
            if isalive(self) and self._folder == folder:
                self._show(case, ranges)

        worker = create_worker(_read, folder)
        worker.returned.connect(tell)
        worker.start()

    def _show(self, case: Case | str, ranges: Ranges) -> None:
        if isinstance(case, str):
            self.status.setText(case)
            return
        self.case = case
        cells, rows = case.cells, []
        for picture in case.pictures:
            table = picture.cells.table
            done, unsure = (table["class_reviewed"] != "").sum(), table["class"].isin(["", UNIDENTIFIED]).sum()
            signed = "yes" if picture.session is not None and picture.session.signed else ""
            rows.append((picture.folder.name, f"{len(table):,}", f"{done:,}", f"{unsure:,}", signed))
        fill_table(self.pictures, ["Picture", "cells", "reviewed", "unidentified", "signed"], rows)
        done = int((cells.table["class_reviewed"] != "").sum())
        self.status.setText(f"{len(case.pictures):,} pictures, {done:,} of {len(cells):,} cells reviewed.")
        notes = [LIMITS_NOTE, f"Ranges: {ranges.source}.", "Research use only."]
        self.results.show_counts(
            with_ranges(differential(cells), ranges), f"{cells_line(cells)}, of all pictures of the run.", notes
        )

    def _on_picture(self, row: int, _: int) -> None:
        if self.case is not None:
            self.chosen.emit(str(self.case.pictures[row].folder))


def _read(folder: Path) -> Case | str:
    """Return the case of a run, or what is wrong with it."""
    from napari_wbc.case import read_case

    try:
        return read_case(folder)
    except (*EXPECTED, OSError) as error:
        return str(error)

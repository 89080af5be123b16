"""The button *Report…*: asks for ids, WBC and a file, and writes the report in a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info
from qtpy.compat import isalive
from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QCheckBox, QDialog, QDialogButtonBox, QFileDialog, QFormLayout, QLineEdit, QWidget

from ._dock import EXPECTED
from ._toast import toast

if TYPE_CHECKING:
    from napari_wbc.case import Case
    from napari_wbc.report import Asked

    from ._review import Review

_log = logging.getLogger(__name__)
FILES = "Report (*.html);;JSON (*.json);;Table (*.csv)"


class ReportDialog(QDialog):
    """Asks what a report shall say besides the results.

    Parameters
    ----------
    parent : QWidget
    slide_id, patient_id, wbc : str
        What stands in the fields at first.
    """

    def __init__(self, parent: QWidget, slide_id: str = "", patient_id: str = "", wbc: str = "") -> None:
        super().__init__(parent)
        self.setWindowTitle("Report")
        form = QFormLayout(self)
        self.slide_id, self.patient_id, self.wbc = QLineEdit(slide_id), QLineEdit(patient_id), QLineEdit(wbc)
        self.wbc.setPlaceholderText("for absolute counts")
        self.open = QCheckBox("Open it in the browser")
        self.open.setChecked(True)
        form.addRow("Slide", self.slide_id)
        form.addRow("Patient", self.patient_id)
        form.addRow("WBC per µL", self.wbc)
        form.addRow("", self.open)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Save | QDialogButtonBox.StandardButton.Cancel)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        form.addRow(buttons)

    def asked(self) -> Asked:
        """Return what was entered; raises ValueError if that is no WBC per µL."""
        from napari_wbc.reference import parse_wbc
        from napari_wbc.report import Asked

        return Asked(self.slide_id.text().strip(), self.patient_id.text().strip(), parse_wbc(self.wbc.text()))


def report(
    dock: Any, name: str, make_case: Callable[[], Case], file: str | Path | None = None, asked: Asked | None = None
) -> None:
    """Write a report in a worker; the dock's line tells how it went.

    Parameters
    ----------
    dock : QWidget
        With a label ``status``.
    name : str
        Of the picture.
    make_case : callable
        Returns the results (`napari_wbc.case.case_of`); called in the worker.
    file, asked
        As for `napari_wbc.report.write_report`; a dialog asks for what `asked` leaves open if no file is given.
    """
    from dataclasses import replace

    from napari_wbc.atomic import safe_name
    from napari_wbc.report import Asked

    given, show = asked or Asked(), False
    if file is None:
        wbc = "" if given.wbc is None else f"{given.wbc:g}"
        dialog = ReportDialog(dock, given.slide_id or name, given.patient_id, wbc)
        if not dialog.exec():
            return
        try:
            entered, show = dialog.asked(), dialog.open.isChecked()
        except ValueError as error:
            _fail(dock, error)
            return
        given = replace(given, slide_id=entered.slide_id, patient_id=entered.patient_id, wbc=entered.wbc)
        suggested = f"{safe_name(Path(name).stem)}_report.html"
        file, _ = QFileDialog.getSaveFileName(dock, "Save the report", suggested, FILES)
        if not file:
            return
    file = Path(file)

    def work() -> tuple[str, Exception | None]:
        from napari_wbc.report import write_report

        try:
            reasons = write_report(make_case(), file, given).content["preliminary"]
        # What a worker raises or returns as an error napari shows with its traceback; the dock's line says it better.
        except Exception as error:  # noqa: BLE001
            return "", error
        return f"Preliminary report in {file}: {'; '.join(reasons)}." if reasons else f"Report in {file}.", None

    def tell(answer: tuple[str, Exception | None]) -> None:
        said, error = answer
        if not isalive(dock):
            return
        if error is not None:
            _fail(dock, error)
            return
        dock.status.setText(said)
        toast(said, show_info)
        if show:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(file)))

    dock.status.setText("Writing the report …")
    worker = create_worker(work)
    worker.returned.connect(tell)
    worker.start()


def report_review(dock: Any, review: Review, file: str | Path | None = None, asked: Asked | None = None) -> None:
    """Write the report of a review that is open; parameters as for `report`."""
    from napari_wbc.case import case_of, read_case

    session = review.session
    try:
        slide = review.slide
    except (ValueError, OSError) as error:
        _fail(dock, error)
        return

    def make_case() -> Case:
        if slide is None:  # the report says where the picture was sought
            return read_case(session.folder or "")
        return case_of(slide, session.cells, session.labels, analysis=session.analysis, session=session)

    report(dock, slide.name if slide is not None else (session.folder or Path("smear")).name, make_case, file, asked)


def _fail(dock: Any, error: Exception) -> None:
    message = str(error) or type(error).__name__
    if not isinstance(error, EXPECTED):
        _log.error("the report failed", exc_info=error)
        message = f"{type(error).__name__}: {error} (the log has the details)"
    dock.status.setText(message)
    toast(message, show_error)

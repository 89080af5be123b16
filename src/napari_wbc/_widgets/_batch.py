"""The dock that annotates many slides into a folder, in a process of its own."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_documents_path
from qtpy.QtCore import Qt, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_wbc.slide import IMAGE_SUFFIXES, SLIDE_SUFFIXES

from ._child import Child, arguments_of
from ._dock import READY, ButtonDock
from ._labelled import shown
from ._models import ModelChoice
from ._train import time_left

if TYPE_CHECKING:
    from napari.viewer import Viewer

RESULTS = user_documents_path() / "napari-wbc" / "batch"
NEEDS_SLIDES = "Name slides first, one a line: files, folders, patterns such as slides/*.svs, or a CSV list."
# What messages of the command call its options, and what they are called here.
HERE = {
    "the same command goes on from there": "click Batch annotate to go on from there",
    "then run the same command: it goes on": "then click Batch annotate: it goes on",
    "choose another folder": "choose another Results folder",
}
COLUMNS = ("slide", "state", "cells")


class BatchWidget(ButtonDock):
    """Annotate many pictures and whole slides into one folder; what was stopped goes on.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    verb = "Batch annotate"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.setMinimumWidth(390)
        self.output = Path()
        self._rows: dict[str, int] = {}
        self._states: dict[str, str] = {}
        self._folders: dict[str, str] = {}
        self._cells: dict[str, int] = {}
        self._began, self._before = 0.0, 0
        self.child = Child(self)
        self.child.progressed.connect(self._on_progress)
        self.child.reported.connect(self._on_report)
        self.child.ended.connect(self._on_ended)
        self._add_controls()
        self._add_advanced()
        self._add_table()
        self._say_next()

    @property
    def is_running(self) -> bool:
        """Whether slides are being worked on."""
        return self.child.is_running

    def start(self) -> None:
        """Annotate, or go on with a run that was stopped."""
        if self.is_running:
            return
        if not self._named():
            self._say_next()
            return
        self.output = Path(self.folder.text().strip() or self.folder.placeholderText()).expanduser().absolute()
        self._rows, self._states, self._folders, self._cells = {}, {}, {}, {}
        self.table.setRowCount(0)
        self._began, self._before = time.monotonic(), 0
        self._show_running(True)
        self.progress.setFormat("")
        self.open_button.setEnabled(False)
        self.status.setText("Starting …")
        self.child.start(*self._arguments())

    def cancel(self) -> None:
        """Stop within two seconds; what is finished stays."""
        self.child.stop()
        self.cancel_button.setEnabled(False)
        self.status.setText("Stopping …")

    def leave(self) -> None:
        """Leave no process behind."""
        self.child.stop()

    def open_slide(self, row: int) -> None:
        """Open the results of a slide in the viewer, with the slide below them."""
        name = self.table.item(row, 0).text()
        if self._states.get(name) not in ("done", "skipped"):
            return
        try:
            self.viewer.open(str(self.output / self._folders[name]), plugin="napari-wbc")
            self.viewer.reset_view()
        # An exception that leaves a slot ends the whole program.
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def _named(self) -> list[str]:
        return [line.strip() for line in self.slides.toPlainText().splitlines() if line.strip()]

    def _arguments(self) -> list[str]:
        """Return the command that the controls mean."""
        named = [str(Path(name).expanduser()) for name in self._named()]
        options = arguments_of(
            output=self.output, model=self.model.currentData(), mpp=_number(self.mpp),
            threshold=_number(self.threshold), device=self.device.currentData(),
            workers=self.workers.value() or None, scheduler=self.scheduler.text().strip(),
        )  # fmt: skip
        flags = [
            flag for box, flag in ((self.everywhere, "--everywhere"), (self.labels, "--ome-labels")) if box.isChecked()
        ]
        # After --, so that a file may be called like an option.
        return ["batch", *options, *flags, "--", *named]

    def _on_progress(self, _: str, done: int, total: int) -> None:
        self.progress.setRange(0, total)
        self.progress.setValue(done)
        seconds, fresh = time.monotonic() - self._began, done - self._before
        left = time_left(seconds, fresh, total - done)
        cells = sum(self._cells.values())
        speed = f", {cells / seconds:.1f} cells/s" if seconds > 1 and cells else ""
        self.progress.setFormat(f"{done} of {total}{speed}{left and f', {left}'}")
        counts = Counter(self._states.values())
        said = [f"{counts[state]} {state}" for state in ("running", "done", "skipped", "failed") if counts[state]]
        self.status.setText(f"{', '.join(said).capitalize()} …" if said else "Looking at the list …")

    def _on_report(self, slide: str, report: dict[str, Any]) -> None:
        """Show how a slide fares."""
        if slide not in self._rows:
            row = self._rows[slide] = self.table.rowCount()
            self.table.insertRow(row)
            for column in range(len(COLUMNS)):
                self.table.setItem(row, column, QTableWidgetItem())
            self.table.item(row, 0).setText(slide)
            self.table.item(row, 2).setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        row, state = self._rows[slide], str(report["state"])
        self._states[slide], self._folders[slide] = state, str(report["folder"])
        if state in ("running", "done"):
            self._cells[slide] = int(report["cells"])
        self._before += state in ("skipped",)
        share = f" {report['done']} of {report['total']}" if report["total"] else ""
        text = {"running": f"{report['stage']}{share}", "failed": f"failed: {report['reason']}",
                "skipped": "skipped: done before"}.get(state, state)  # fmt: skip
        self.table.item(row, 1).setText(text)
        self.table.item(row, 1).setToolTip(text)
        self.table.item(row, 0).setToolTip(slide)
        self.table.item(row, 2).setText(str(report["cells"]) if state != "waiting" and report["cells"] else "")
        if state == "running":
            self.table.scrollToItem(self.table.item(row, 0))

    def _on_ended(self, output: str, why: str) -> None:
        self._show_running(False)
        self.open_button.setEnabled((self.output / "summary.csv").is_file())
        for name, state in self._states.items():
            if state == "running":
                self._states[name] = "waiting"
                self.table.item(self._rows[name], 1).setText("waiting")
        if why:
            for there, here in HERE.items():
                why = why.replace(there, here)
            self._fail(ValueError(why))
        elif output:
            self.status.setText("\n".join([*_told(output), f"Results in {shown(self.output)}", "Research use only."]))
        else:
            self.status.setText("Stopped. What is finished is kept; Batch annotate, with the same settings, goes on.")

    def _say_next(self) -> None:
        if not self.is_running:
            self.status.setText(READY if self._named() else NEEDS_SLIDES)

    def _add_controls(self) -> None:
        self.slides = QPlainTextEdit()
        self.slides.setPlaceholderText("files, folders, patterns or CSV lists, one a line")
        self.slides.setToolTip(
            "Pictures and whole slides, one a line: files, folders (with all in them), patterns such as slides/*.svs, "
            "or a CSV file with the columns slide, patient and group"
        )
        self.slides.setMaximumHeight(90)
        # napari's themes leave it without a frame.
        self.slides.setStyleSheet("QPlainTextEdit { border: 1px solid rgba(128, 128, 128, 150); border-radius: 2px; }")
        self.slides.textChanged.connect(self._say_next)
        files, folder, browse = QPushButton("Files…"), QPushButton("Folder…"), QPushButton("…")
        files.clicked.connect(self._add_files)
        folder.clicked.connect(self._add_folder)
        row = QHBoxLayout()
        row.addWidget(files)
        row.addWidget(folder)
        self.folder = QLineEdit()
        self.folder.setPlaceholderText(shown(RESULTS))
        self.folder.setToolTip("Folder of the results. One that holds a stopped run goes on with it.")
        browse.setMaximumWidth(32)
        browse.clicked.connect(self._browse_output)
        out = QHBoxLayout()
        out.addWidget(self.folder, 1)
        out.addWidget(browse)
        self.form.addRow("Slides", self.slides)
        self.form.addRow("", row)
        self.form.addRow("Results", out)

    def _add_advanced(self) -> None:
        self.model, self.device = ModelChoice(), QComboBox()
        self.device.addItem("fastest", None)
        self.device.addItem("cpu", "cpu")
        self.threshold, self.mpp, self.scheduler = QLineEdit(), QLineEdit(), QLineEdit()
        self.threshold.setPlaceholderText("the model's")
        self.mpp.setPlaceholderText("each slide's own, or measured")
        self.scheduler.setPlaceholderText("none, or tcp://host:8786")
        self.workers = QSpinBox()
        self.workers.setRange(0, 256)
        self.workers.setSpecialValueText("one process, without Dask")
        self.workers.setToolTip("Processes on this machine that share the slides; it needs napari-wbc[batch]")
        self.everywhere, self.labels = (
            QCheckBox("outside the monolayer too"),
            QCheckBox("cells as OME-NGFF labels, too"),
        )
        inside = QWidget()
        form = QFormLayout(inside)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        rows = (
            ("Model", self.model), ("Threshold", self.threshold), ("Scale, µm/px", self.mpp), ("Device", self.device),
            ("Whole slides", self.everywhere), ("Also write", self.labels), ("Workers", self.workers),
            ("Scheduler", self.scheduler),
        )  # fmt: skip
        for name, widget in rows:
            form.addRow(name, widget)
        self.advanced = QCollapsible("Advanced", expandedIcon="▾", collapsedIcon="▸")
        self.advanced.addWidget(inside)
        self.body.insertWidget(1, self.advanced)

    def _add_table(self) -> None:
        self.table = QTableWidget(0, len(COLUMNS))
        self.table.setHorizontalHeaderLabels(COLUMNS)
        self.table.verticalHeader().hide()
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setWordWrap(False)
        self.table.setToolTip("Double-click a finished slide to open it with its cells")
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Interactive)
        header.resizeSection(0, 130)
        header.setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(2, QHeaderView.ResizeMode.ResizeToContents)
        self.table.cellDoubleClicked.connect(lambda row, _: self.open_slide(row))
        self.open_button = QPushButton("Open results folder")
        self.open_button.setEnabled(False)
        self.open_button.clicked.connect(lambda: QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.output))))
        inside = QWidget()
        # napari leaves the rest of the height to what wants it.
        inside.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        column = QVBoxLayout(inside)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.table, 1)
        column.addWidget(self.open_button)
        self.body.addWidget(inside, 1)

    def _add_files(self) -> None:
        suffixes = " ".join(f"*{suffix}" for suffix in dict.fromkeys((*SLIDE_SUFFIXES, *IMAGE_SUFFIXES, ".csv")))
        paths, _ = QFileDialog.getOpenFileNames(self, "Slides", "", f"Slides and lists ({suffixes});;All files (*)")
        for path in paths:
            self.slides.appendPlainText(path)

    def _add_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "A folder of slides")
        if path:
            self.slides.appendPlainText(path)

    def _browse_output(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "A folder for the results")
        if path:
            self.folder.setText(path)


def _told(output: str) -> list[str]:
    """Return what the command printed, its table of white cells as one line."""
    lines, shares = [], []
    for line in map(str.strip, output.splitlines()):
        if row := re.match(r"[│|] *(.+?) *[│|] *(\d+) *[│|] *([\d.]+) *[│|]", line):
            name, n, share = row.groups()
            shares += [f"{name} {n} ({share} %)"] * (n != "0")
        elif line.startswith("% of white cells"):
            lines.append(", ".join(shares))
        elif re.search(r"\bcells? in |^Scale |^Note: |^[a-z ]+: \d", line):
            lines.append(line)
    return lines


def _number(edit: QLineEdit) -> str:
    return str(edit.text().strip().replace(",", "."))

"""The dock of the differential: what to count to, limits, reference ranges, absolute counts, two readers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_info
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QTabWidget,
)

from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.count import differential
from napari_wbc.counted import TARGETS, sampling_line
from napari_wbc.reference import check_wbc, load_ranges, parse_wbc, with_ranges
from napari_wbc.review import unseen
from napari_wbc.words import sentence

from ._differential_readers import ReadersTab
from ._differential_run import RunTab, run_folder
from ._dock import EXPECTED
from ._layers import CELLS
from ._looking import Looking
from ._models import BROWSE
from ._results import LIMITS_NOTE, Results, cells_line
from ._review_dock import NEEDS_CELLS, ReviewDock
from ._source import KEY
from ._toast import toast

if TYPE_CHECKING:
    import pandas as pd
    from napari.layers import Layer
    from napari.viewer import Viewer

    from napari_wbc.cells import Cells
    from napari_wbc.platelets import Film

_SOON_MS = 30
_PRELIMINARY = "Preliminary: "
SHIPPED = "of adults (shipped)"


class DifferentialWidget(ReviewDock):
    """The differential of a review.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        # So that names of classes stand beside all columns.
        self.setMinimumWidth(480)
        self.ranges = load_ranges()
        self.counts: pd.DataFrame | None = None
        self._counted: Cells | None = None
        self.film: Film | None = None
        self._looking: Looking | None = None
        self._stale = False
        # A burst of decisions is counted once.
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(_SOON_MS)
        self._soon.timeout.connect(self._recount_again)
        self._add_settings()
        self.progress = QProgressBar()
        self.progress.setFormat("%v of %m reviewed")
        self.body.addWidget(self.progress)
        self.tabs = QTabWidget()
        self.results = Results(napari_viewer.theme)
        self.tabs.addTab(self.results, "Count")
        self.readers = ReadersTab()
        self.readers.chosen.connect(self.recount)
        self.readers.warned.connect(self.warn)
        self.tabs.addTab(self.readers, "Two readers")
        self.run = RunTab(napari_viewer.theme)
        self.run.chosen.connect(self.go_to)
        self.tabs.addTab(self.run, "All pictures")
        self.tabs.currentChanged.connect(lambda _: self.recount())
        self.body.addWidget(self.tabs, 1)
        self.sign_button = QPushButton("Sign")
        self.sign_button.setToolTip("Sign the count as it is now, with your name; a later decision voids the signature")
        self.sign_button.clicked.connect(self.sign)
        self.report_button = QPushButton("Report…")
        self.report_button.setToolTip("A page with this count, who reviewed what, and the cells themselves")
        self.report_button.clicked.connect(lambda: self.report())
        row = QHBoxLayout()
        row.addWidget(self.sign_button)
        row.addWidget(self.report_button)
        self.body.addLayout(row)
        # A line of its own, so that no message takes the place of what is signed.
        self.state = QLabel()
        self.state.setWordWrap(True)
        self.body.addWidget(self.state)
        self.body.addWidget(self.status)
        self.choice.chosen.connect(self.adopt)
        self.adopt()

    def _add_settings(self) -> None:
        self.target = QComboBox()
        for n in TARGETS:
            self.target.addItem(f"{n} white cells", n)
        self.target.addItem("all cells", None)
        self.target.setToolTip("How many white cells are counted; they are taken evenly over the smear")
        self.seed = QSpinBox()
        self.seed.setRange(0, 9999)
        self.seed.setPrefix("seed ")
        self.seed.setToolTip("Another seed takes other cells")
        self.wbc = QLineEdit()
        self.wbc.setPlaceholderText("WBC per µL, for absolute counts")
        self.wbc.setToolTip("White cells per µL, as an analyser counted them: 6.4 × 10⁹/L is 6400")
        self.range_box = QComboBox()
        self.range_box.addItem(SHIPPED, None)
        self.range_box.addItem(BROWSE, BROWSE)
        self.range_box.setToolTip(self.ranges.source)
        row = QHBoxLayout()
        row.addWidget(self.target, 1)
        row.addWidget(self.seed)
        self.form.addRow("Count to", row)
        self.form.addRow("WBC", self.wbc)
        self.form.addRow("Ranges", self.range_box)
        self.target.activated.connect(lambda _: self._set(target=self.target.currentData()))
        self.seed.editingFinished.connect(lambda: self._set(seed=self.seed.value()))
        self.wbc.editingFinished.connect(self._on_wbc)
        self.range_box.activated.connect(self._on_ranges)

    # ---- what is shown

    def show_review(self) -> None:
        """Show another review, or none."""
        there = self.review is not None
        for part in (self.target, self.seed, self.wbc, self.sign_button, self.report_button, self.tabs):
            part.setEnabled(there)
        self.film = None
        self._look_for_platelets()
        self.tabs.setTabVisible(2, self.review is not None and run_folder(self.review.session.folder) is not None)
        self.recount()

    def _look_for_platelets(self) -> None:
        """Look for them in a thread: the estimate comes in when it is there."""
        self.leave()
        review = self.review
        try:
            slide = review.slide if review is not None else None
        except (*EXPECTED, OSError):
            return  # the gallery says what is wrong with the picture
        if review is None or slide is None:
            return

        self._looking = Looking(slide, review.session.before)
        self._looking.seen.connect(self._on_seen)

    def _on_seen(self, film: Film) -> None:
        self.film = film
        self._soon.start()
        self._stale = True

    def leave(self) -> None:
        """Stop looking for platelets."""
        if self._looking is not None:
            self._looking.close()
            self._looking = None

    def show_change(self, _: Any) -> None:
        """Count again: at once, or after a burst of decisions."""
        if not self._soon.isActive():
            self.recount()
        self._soon.start()

    def show_theme(self) -> None:
        """Take the colours of napari's theme."""
        self.results.set_theme(self.viewer.theme)
        self.run.results.set_theme(self.viewer.theme)

    def _recount_again(self) -> None:
        """Count again where anything changed since."""
        if self.review is None or self._counted is not self.review.session.cells or (self._stale and self._is_seen()):
            self.recount()

    def _is_seen(self) -> bool:
        """Whether the dock is not behind another tab; in a window that is not shown nothing is behind another."""
        return not self.window().isVisible() or not self.visibleRegion().isEmpty()

    def recount(self) -> None:
        """Count the cells of the target, and show everything that depends on it."""
        if self.review is None:
            self.progress.setRange(0, 1)
            self.progress.reset()
            self.results.hide()
            self.state.clear()
            self.show_state()
            return
        session = self.review.session
        settings = session.settings
        counted = session.counted
        done = int((session.reviewed & counted).sum())
        cells = session.cells.where(counted)
        self._counted, self._stale = session.cells, False
        wbc, doubt = settings["wbc"], ""
        try:
            check_wbc(wbc)
        except ValueError as error:  # a review of an earlier version took any number
            wbc, doubt = None, f"\n{error}"
        self.counts = with_ranges(differential(cells), self.ranges, wbc)
        if not self._is_seen():
            self._stale = True
            return  # behind another tab: drawn when it comes to the front
        self._show_settings(settings)
        # Else the bar paints itself at once, and the whole window with it.
        self.progress.setUpdatesEnabled(False)
        self.progress.setRange(0, max(1, int(counted.sum())))
        self.progress.setValue(done)
        self.progress.setUpdatesEnabled(True)
        line = f"{cells_line(cells)}. {sampling_line(settings['target'], settings['seed'])}{doubt}"
        if self.tabs.currentIndex() == 0:  # else it would lie over the page in front
            self.results.show()
        notes = [LIMITS_NOTE, f"Ranges: {self.ranges.source}.", "Research use only."]
        if self.film is not None:
            platelets = self.film.count(session.cells)
            notes.insert(0, platelets.line)
            line += f"\nPlatelets: about {round(platelets.per_ul, -3):,.0f} per µL, an estimate (see below)."
        self.results.show_counts(self.counts, line, notes)
        self._say_state(cells, done)
        if self.tabs.currentIndex() == 1:
            self.readers.show_review(self.review)
        if self.tabs.currentIndex() == 2 and (folder := run_folder(session.folder)) is not None:
            self.run.show_run(folder, self.ranges)

    def paintEvent(self, event: Any) -> None:  # noqa: N802
        """Show what changed behind other tabs."""
        super().paintEvent(event)
        if self._stale:
            self._soon.start()

    def _show_settings(self, settings: dict[str, Any]) -> None:
        self.target.setCurrentIndex(self.target.findData(settings["target"]))
        self.seed.blockSignals(True)
        self.seed.setValue(int(settings["seed"]))
        self.seed.blockSignals(False)
        if not self.wbc.hasFocus():
            self.wbc.setText("" if settings["wbc"] is None else f"{settings['wbc']:g}")

    def show_state(self) -> None:
        """Take away what was said of what is over; how far the count is stands in a line of its own."""
        self.status.setText(NEEDS_CELLS if self.review is None else "")

    def _say_state(self, cells: Any, done: int) -> None:
        assert self.review is not None  # noqa: S101
        session = self.review.session
        unsure = int(cells.table["class"].isin(["", UNIDENTIFIED]).sum())
        signed = "not signed"
        if session.signed is not None:
            signed = f"signed by {session.signed['reviewer']}, {session.signed['at'][:16].replace('T', ' ')} UTC"
            if left := unseen(cells):
                signed += f", with {left}"
        if session.is_final:
            text = sentence(signed)
        elif unsure:
            text = (
                f"{_PRELIMINARY}{unsure} of the counted cells {'is' if unsure == 1 else 'are'} unidentified; {signed}."
            )
        elif done < len(cells):
            text = f"{_PRELIMINARY}{len(cells) - done} of the counted cells are not reviewed; {signed}."
        else:
            text = f"{_PRELIMINARY}{signed}."
        target = session.settings["target"]
        if target is not None and (white := int(self.counts["of"].max()) if self.counts is not None else 0) < target:
            text += f" The smear has {white} identified white cells, fewer than {target}." if not unsure else ""
        if self.review.unsaved:
            text += f" {sentence(self.review.unsaved)}"
        if text != self.state.text():  # platelets that are counted late must not wipe out what a report said
            self.state.setText(text)
            self.show_state()
        self.sign_button.setEnabled(not session.read_only)

    # ---- what the user does

    def report(self, file: str | Path | None = None) -> None:
        """Write the report of this count; asks for file and ids if no file is given."""
        from napari_wbc.report import Asked

        from ._report import report_review

        if self.review is not None:
            wbc = self.review.session.settings["wbc"]
            report_review(self, self.review, file, Asked(wbc=wbc, ranges=self.ranges))

    def _set(self, **values: Any) -> None:
        if self.review is None:
            return
        before = self.review.session.settings
        if any(before[name] != value for name, value in values.items()):
            self.review.act(lambda: self.review.session.set(**values) if self.review else None)
        self.recount()

    def _on_wbc(self) -> None:
        try:
            value = parse_wbc(self.wbc.text())
        except ValueError as error:
            self.warn(str(error))
            value = None
            self.wbc.clear()
        self._set(wbc=value)

    def _on_ranges(self, index: int) -> None:
        choice = self.range_box.itemData(index)
        if choice == BROWSE:
            choice, _ = QFileDialog.getOpenFileName(self, "Reference ranges", "", "Ranges (*.toml)")
        self.use_ranges(choice or None)

    def use_ranges(self, path: str | Path | None) -> None:
        """Take reference ranges from a TOML file; None for those that are shipped."""
        try:
            self.ranges = load_ranges(path)
        except EXPECTED as error:
            self.warn(str(error))
            path, self.ranges = None, load_ranges()
        if path is not None and self.range_box.findData(str(path)) < 0:
            self.range_box.insertItem(1, Path(path).name, str(path))
        self.range_box.setCurrentIndex(0 if path is None else self.range_box.findData(str(path)))
        self.range_box.setToolTip(self.ranges.source)
        self.recount()

    def sign(self) -> None:
        """Sign the count with the reviewer's name."""
        if self.review is not None and self.review.sign():
            self.recount()
            session = self.review.session
            if left := unseen(session.cells.where(session.counted)):
                toast(f"Signed with {left}.", show_info)
            elif not session.is_final:
                toast("Signed, but cells are unidentified.", show_info)

    def go_to(self, folder: str) -> None:
        """Review another picture of the run in all docks; it is opened unless it is open already, and lies on top."""

        def own() -> list[Layer]:
            return [layer for layer in self.viewer.layers if layer.metadata.get(KEY, {}).get("folder") == folder]

        if not own():
            self.open_results(folder)
        cells = [layer for layer in own() if layer.metadata[KEY].get("role") == CELLS]
        if cells:
            self.viewer.layers.selection.active = cells[0]
            self.choice.uncover()
            image = self.review.image if self.review is not None else None
            layers = [*([] if image is None else [image]), *own()]
            self.viewer.layers.move_multiple([self.viewer.layers.index(layer) for layer in layers], -1)
            self.tabs.setCurrentIndex(0)

    def compare_with(self, folder: str | Path | None) -> None:
        """Compare with the results in a folder; None for the model."""
        self.readers.choose(folder)
        self.tabs.setCurrentIndex(1)

"""The dock that finds, classifies and counts the white cells of a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels, Points, Shapes
from napari.utils.colormaps.standardize_color import transform_color
from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtGui import QDoubleValidator
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_wbc.models import find_model

from ._dock import EXPECTED, Dock, LayerChoice
from ._models import ModelChoice
from ._preferences import preference
from ._source import KEY, drawn_regions, labels_array, layer_mpp, scale_line, seen_region, slide_of
from ._toast import toast

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

    from napari_wbc.cells import Cells
    from napari_wbc.classifier import Classifier
    from napari_wbc.pipeline import Analysis, Progress
    from napari_wbc.report import Asked
    from napari_wbc.slide import Slide

    from ._results import Results

FIND_THEM = "find them (default)"
FASTEST = "fastest"
SEEN, DRAWN = "seen", "drawn"


class ClassifyWidget(Dock):
    """Find, classify and count the white cells of a picture.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    verb = "Classify white cells"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        # Wide enough for the table to come, so that the canvas stays as it is.
        self.setMinimumWidth(390)
        # None of layers that were read from results.
        self.analysis: Analysis | None = None
        self._shown: dict[str, Layer] = {}
        self._pictured: Image | None = None
        self.labels = LayerChoice(napari_viewer, Labels, FIND_THEM)
        self.labels.setToolTip("Classify regions of your own, from Cellpose or drawn by hand, in place of found ones")
        self.form.addRow("Regions", self.labels)
        # Of a whole slide.
        self.area = QComboBox()
        for text, data in (("whole slide", None), ("what is seen", SEEN), ("inside drawn shapes", DRAWN)):
            self.area.addItem(text, data)
        self.area.setToolTip("Which part of a whole slide; shapes are those of the chosen shapes layer")
        self.form.addRow("Part", self.area)
        self._live: Points | None = None
        self._add_advanced()
        self.results: Results | None = None
        self.save_button = QPushButton("Save results…")
        self.save_button.setToolTip("The files that `napari-wbc annotate` writes, into a folder")
        self.save_button.clicked.connect(lambda: self.save())
        self.report_button = QPushButton("Report…")
        self.report_button.setToolTip("A page with the counts, who reviewed them, and the cells themselves")
        self.report_button.clicked.connect(lambda: self.report())
        self.recount_button = QPushButton("Recount")
        self.recount_button.setToolTip("Count again after you corrected classes in the features of the layer «cells»")
        self.recount_button.clicked.connect(lambda: self.recount())
        self._buttons = QWidget()
        row = QHBoxLayout(self._buttons)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.recount_button)
        row.addWidget(self.report_button)
        row.addWidget(self.save_button)
        self._buttons.hide()
        # From the start, or napari lets empty space take half of the height.
        self._place = QVBoxLayout()
        place = QWidget()
        place.setLayout(self._place)
        place.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self._place.setContentsMargins(0, 0, 0, 0)
        self.body.addWidget(place, 1)
        self.body.addWidget(self._buttons)
        self.image.chosen.connect(self._show_defaults)
        self.image.chosen.connect(self._adopt)
        napari_viewer.events.theme.connect(self._on_theme)
        self._show_defaults()
        self._adopt()

    def prepare(self, image: Image) -> Callable[[], Generator[Progress, None, Analysis]]:
        """Read the controls; return what the worker runs."""
        model, labels = self.model.currentData(), self.labels.layer
        device = self.device.currentData()
        within, everywhere = self._within(image), self.everywhere.isChecked()
        mpp = _number(self.mpp, "the scale")
        threshold = _number(self.threshold, "the threshold")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"the threshold is {threshold:g}, but must be between 0 and 1")

        def work() -> Generator[Progress, None, Analysis]:
            # An import that takes a second belongs here, not on the GUI thread.
            from napari_wbc.pipeline import Progress, analyse

            yield Progress("reading the picture")
            slide = slide_of(image, mpp)
            yield Progress("loading the model")
            classifier = load_model(find_model(model), device)
            return (
                yield from analyse(
                    slide, classifier, labels=labels_array(labels), threshold=threshold, within=within,
                    everywhere=everywhere,
                )
            )  # fmt: skip

        return work

    def done(self, result: Analysis, image: Image) -> str:
        """Show cells, labels, names and counts."""
        from ._layers import find_layer, update_layers
        from ._panel import COUNTS

        first = find_layer(self.viewer, image, COUNTS) is None
        shown = update_layers(self.viewer, result, image)
        self._take(shown, image, result)
        if first and COUNTS in shown:
            # Later the view is the user's.
            self.viewer.reset_view()
        self._show_counts(result.cells)
        if not len(result.cells):
            return "No white cell was found."
        return f"{result.slide.name} is classified: correct it in Gallery of cells, and click Save results…"

    def _within(self, image: Image) -> list[Any] | None:
        """Return the part of a slide that the user chose, or None for all of it."""
        if not image.multiscale or self.area.currentData() is None:
            return None
        if self.area.currentData() == SEEN:
            return seen_region(image)
        drawn = [layer for layer in self.viewer.layers if isinstance(layer, Shapes) and KEY not in layer.metadata]
        if not drawn:
            raise ValueError("nothing is drawn; add a shapes layer and draw rectangles or polygons on the slide")
        active = self.viewer.layers.selection.active
        return drawn_regions(active if active in drawn else drawn[-1], image)

    def _on_progress(self, progress: Progress) -> None:
        """Show the progress, and the cells of a whole slide as they are found."""
        super()._on_progress(progress)
        image = self.image.layer
        if progress.cells is None or not isinstance(image, Image):
            return
        from napari_wbc.palette import colour

        if self._live is None or self._live not in self.viewer.layers:
            selected = set(self.viewer.layers.selection)
            place = {name: getattr(image, name)[-2:] for name in ("scale", "translate", "units")}
            self._live = self.viewer.add_points(
                ndim=2, name="cells so far", size=40, canvas_size_limits=(7, 16), border_color="white", **place
            )
            self.viewer.layers.selection = selected
        self._live.current_face_color = "white"
        before = len(self._live.data)
        self._live.add(progress.cells.centroids)
        colours = [colour(name) for name in progress.cells.table["class"]]
        self._live.selected_data = set()
        faces = self._live.face_color
        faces[before:] = transform_color(colours)
        self._live.face_color = faces

    def _on_finished(self) -> None:
        if self._live is not None and self._live in self.viewer.layers:
            self.viewer.layers.remove(self._live)
        self._live = None
        super()._on_finished()
        self._show_own()

    def recount(self) -> None:
        """Count again from the layer of cells, with what the user changed in it."""
        from ._layers import CELLS, LABELS, show_corrections
        from ._review import review_of

        cells, layer = self._corrected(), self._shown.get(CELLS)
        if cells is None:
            return
        if layer is not None and review_of(layer) is not None:
            # The review keeps the layers alike.
            self._show_counts(cells)
            return
        if layer is not None:
            with layer.events.features.blocker(self._on_features):
                layer.features = layer.features  # napari's table changes features without telling the layer
        self._show_counts(cells)
        there = {role: layer for role, layer in self._shown.items() if layer in self.viewer.layers}
        if self._pictured is not None:
            labels = labels_array(self._shown.get(LABELS)) if self.analysis is None else self.analysis.labels
            finest = self._pictured.data[0] if self._pictured.multiscale else self._pictured.data
            show_corrections(there, cells, finest.shape[:2] if labels is None else labels.shape)

    def save(self, folder: str | Path | None = None) -> Path | None:
        """Write the files of the command line into a folder; asks where to put it if none is given."""
        cells = self._corrected()
        if cells is None or self._pictured is None:
            return None
        from napari_wbc.export import safe_name

        try:
            slide = self.analysis.slide if self.analysis is not None else slide_of(self._pictured)
            if folder is None:
                parent = QFileDialog.getExistingDirectory(self, "Save a folder of results in")
                if not parent:
                    return None
                # A folder of its own, as the command line makes for each picture.
                folder = Path(parent) / safe_name(Path(slide.name).stem)
            written = self._keep_review(Path(folder)) or self._write(cells, slide, Path(folder))
        except (*EXPECTED, OSError) as error:
            self._fail(error)
            return None
        self.status.setText(f"Saved in {written}")
        toast(f"Saved in {written}", show_info)
        return written

    def report(self, file: str | Path | None = None, asked: Asked | None = None) -> None:
        """Write a report in a worker; asks for file and ids if no file is given."""
        from napari_wbc.case import case_of

        from ._layers import CELLS, LABELS
        from ._report import report, report_review
        from ._review import review_of

        cells, image = self._corrected(), self._pictured
        if cells is None or image is None:
            return
        layer = self._shown.get(CELLS)
        if layer is not None and (review := review_of(layer)) is not None:
            report_review(self, review, file, asked)
            return
        analysis = self.analysis
        labels = labels_array(self._shown.get(LABELS)) if analysis is None else analysis.labels
        try:
            slide = analysis.slide if analysis is not None else slide_of(image)
        except (*EXPECTED, OSError) as error:
            self._fail(error)
            return
        report(self, slide.name, partial(case_of, slide, cells, labels, analysis=analysis), file, asked)

    def _keep_review(self, folder: Path) -> Path | None:
        """Write the decisions of a review with its results; None if there is no review that belongs there."""
        from ._layers import CELLS
        from ._review import review_of

        layer = self._shown.get(CELLS)
        review = review_of(layer) if layer is not None else None
        if review is None:
            return None
        if review.waits:
            raise ValueError(review.waits)
        session = review.session
        if session.folder is None and session.analysis is not None:
            return session.keep(folder)
        if session.folder == folder.absolute():
            session.save()
            return folder
        return None

    def _write(self, cells: Cells, slide: Slide, folder: Path) -> Path:
        import numpy as np

        from napari_wbc.export import RESULT_FILES, slide_note, write_folder, write_results

        from ._layers import LABELS

        files = (*RESULT_FILES, "differential.csv")
        if self.analysis is not None and cells == self.analysis.cells:
            return write_results(self.analysis, folder, files=files)
        layer, analysis = self._shown.get(LABELS), self.analysis
        labels = labels_array(layer) if analysis is None else analysis.labels
        if labels is not None:
            # A cell that the user deleted is gone from the labels too.
            labels = np.where(np.isin(labels, cells.table["label"].to_numpy()), labels, 0)
        if analysis is not None and (labels is not None or analysis.whole is not None):
            corrected = replace(analysis, cells=cells, labels=labels)
            return write_results(corrected, folder, files=files, corrected=True)
        # What somebody saves again is a reviewer's.
        if slide.is_whole:
            note = slide_note(slide)
            return write_folder(folder, cells, None, picture=slide.path, files=files, corrected=True, more=note)
        return write_folder(folder, cells, labels, image=slide.image, picture=slide.path, files=files, corrected=True)

    def _take(self, shown: dict[str, Layer], image: Image, analysis: Analysis | None) -> None:
        """Make these layers those that are recounted and saved."""
        from ._layers import CELLS

        if CELLS in self._shown:
            self._shown[CELLS].events.features.disconnect(self._on_features)
        self._shown, self._pictured, self.analysis = shown, image, analysis
        shown[CELLS].events.features.connect(self._on_features)

    def _adopt(self) -> None:
        """Take the layers of the chosen picture, of its run or read from a folder; hide what is of another one."""
        image = self.image.layer
        if self.is_running:
            return
        if image is not None and any(KEY in layer.metadata for layer in self.viewer.layers):
            self._adopt_layers(image)
        self._show_own()

    def _adopt_layers(self, image: Image) -> None:
        from ._layers import CELLS, LABELS, find_layer
        from ._panel import COUNTS, NAMES

        found = {role: find_layer(self.viewer, image, role) for role in (CELLS, LABELS, NAMES, COUNTS)}
        shown = {role: layer for role, layer in found.items() if layer is not None}
        cells = shown.get(CELLS)
        if cells is None:
            return
        run = cells.metadata[KEY].get("analysis")
        if run is not None and not run.value.cells.classes:
            return  # only segmented
        if cells is not self._shown.get(CELLS):
            self._take(shown, image, None if run is None else run.value)
            if (corrected := self._corrected()) is not None:
                self._show_counts(corrected)
        self._shown = shown
        if run is None:
            self.status.setText(f"Results of {image.name} are open: correct, recount and save them, or classify anew.")

    def _show_own(self) -> None:
        """Show counts and buttons only beside the picture that they are of."""
        image = self.image.layer
        own = image is not None and image == self._pictured
        self._buttons.setVisible(own)
        if self.results is not None:
            self.results.setVisible(own)

    def _corrected(self) -> Cells | None:
        """Return the cells with the user's corrections in their layer, or None."""
        from ._layers import CELLS, cells_of

        layer = self._shown.get(CELLS)
        if layer is None or layer not in self.viewer.layers:
            return None if self.analysis is None else self.analysis.cells
        try:
            return cells_of(layer.features, layer.data)
        except EXPECTED as error:
            self._fail(error)
            return None

    def _show_counts(self, cells: Cells) -> None:
        from napari_wbc.count import differential

        from ._results import LIMITS_NOTE, Results, cells_line

        if self.results is None:
            self.results = Results(self.viewer.theme)
            self._place.addWidget(self.results)
        head, notes = "Read from saved results.", []
        if self.analysis is not None:
            name = self.analysis.card.name if self.analysis.card else "none"
            head = scale_line(self.analysis.appearance)
            notes = [*self.analysis.notes, f"Model {name}, threshold {self.analysis.threshold:g}."]
        head = f"{head}\n{cells_line(cells)}."
        self.results.show_counts(differential(cells), head, [*notes, LIMITS_NOTE, "Research use only."])

    def _on_features(self) -> None:
        if isalive(self):
            self.recount()

    def _on_theme(self) -> None:
        if isalive(self) and self.results is not None:
            self.results.set_theme(self.viewer.theme)

    def _add_advanced(self) -> None:
        self.model = ModelChoice()
        self.model.chosen.connect(self._show_defaults)
        # Which there are only torch knows, and it is not imported to open a dock.
        self.device = QComboBox()
        self.device.addItem(FASTEST, None)
        self.device.addItem("cpu", "cpu")
        self.device.setToolTip("Where the network runs; fastest: the graphics processor if torch can use it")
        self.threshold, self.mpp = QLineEdit(), QLineEdit()
        self.threshold.setToolTip("A cell whose likeliest class is less probable stays unidentified")
        self.mpp.setToolTip("µm per pixel of the picture; blank: measured from the red cells (7.2 µm)")
        for edit, most in ((self.threshold, 1.0), (self.mpp, 5.0)):
            edit.setValidator(QDoubleValidator(0.0, most, 6))
        self.threshold.setText(f"{preference('threshold'):g}" if preference("threshold") else "")
        inside = QWidget()
        form = QFormLayout(inside)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Model", self.model)
        form.addRow("Threshold", self.threshold)
        form.addRow("Scale, µm/px", self.mpp)
        form.addRow("Device", self.device)
        self.everywhere = QCheckBox("outside the monolayer too")
        self.everywhere.setToolTip("Of a whole slide: look in the thick part, the feathered edge and blurred parts too")
        form.addRow("Whole slides", self.everywhere)
        self.advanced = QCollapsible("Advanced", expandedIcon="▾", collapsedIcon="▸")
        self.advanced.addWidget(inside)
        self.body.insertWidget(1, self.advanced)

    def _show_defaults(self) -> None:
        """Say in the empty fields what is used while they are empty, and offer parts where there is a whole slide."""
        image = self.image.layer
        for part in (self.area, self.form.labelForField(self.area)):
            part.setVisible(image is not None and bool(image.multiscale))
        try:
            mpp = layer_mpp(image) if image is not None else None
            card = json.loads(find_model(self.model.currentData()).read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            self.status.setText(str(error))
            return
        self.mpp.setPlaceholderText("measured from the red cells" if mpp is None else f"{mpp:g}, from the layer")
        self.threshold.setPlaceholderText(f"{card.get('threshold', 0.5):g}, the model's")


def _number(edit: QLineEdit, what: str) -> float | None:
    text = edit.text().strip().replace(",", ".")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{what} is {text!r}, but must be a number or blank") from None


def _version(card: Path) -> tuple[Path, float]:
    return card, card.stat().st_mtime


def load_model(card: Path, device: str | None = None) -> Classifier:
    """Return the network of a card; the last one is kept."""
    return _load(*_version(card), device)


@lru_cache(maxsize=1)
def _load(card: Path, _changed: float, device: str | None) -> Classifier:
    """Keep the last model: loading takes longer than a field."""
    from napari_wbc.classifier import Classifier

    return Classifier.load(card, device=device)

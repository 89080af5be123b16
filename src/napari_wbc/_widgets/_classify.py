"""The dock that finds, classifies and counts the white cells of a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from napari.layers import Image, Labels
from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtGui import QDoubleValidator
from qtpy.QtWidgets import (
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
from ._source import KEY, labels_array, layer_mpp, scale_line, slide_of

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

    from napari_wbc.cells import Cells
    from napari_wbc.classifier import Classifier
    from napari_wbc.pipeline import Analysis, Progress
    from napari_wbc.slide import Slide

    from ._results import Results

FIND_THEM = "find them (default)"
FASTEST = "fastest"


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
        self._add_advanced()
        self.results: Results | None = None
        self.save_button = QPushButton("Save results…")
        self.save_button.setToolTip("The files that `napari-wbc annotate` writes, into a folder")
        self.save_button.clicked.connect(lambda: self.save())
        self.recount_button = QPushButton("Recount")
        self.recount_button.setToolTip("Count again after you corrected classes in the features of the layer «cells»")
        self.recount_button.clicked.connect(lambda: self.recount())
        self._buttons = QWidget()
        row = QHBoxLayout(self._buttons)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.recount_button)
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
        mpp = _number(self.mpp, "the scale")
        threshold = _number(self.threshold, "the threshold")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"the threshold is {threshold:g}, but must be between 0 and 1")

        def work() -> Generator[Progress, None, Analysis]:
            # Imports that take a second belong here, not on the GUI thread.
            import matplotlib.backends.backend_qtagg
            import matplotlib.figure  # noqa: F401

            from napari_wbc.pipeline import Progress, analyse

            yield Progress("reading the picture")
            slide = slide_of(image, mpp)
            yield Progress("loading the model")
            classifier = _load(*_version(find_model(model)), device)
            return (yield from analyse(slide, classifier, labels=labels_array(labels), threshold=threshold))

        return work

    def done(self, result: Analysis, image: Image) -> str:
        """Show cells, labels, names and counts."""
        from napari_wbc.cells import UNIDENTIFIED

        from ._layers import find_layer, update_layers
        from ._panel import COUNTS

        first = find_layer(self.viewer, image, COUNTS) is None
        shown = update_layers(self.viewer, result, image)
        self._take(shown, image, result)
        if first and COUNTS in shown:
            # Later the view is the user's.
            self.viewer.reset_view()
        self._show_counts(result.cells)
        n, unsure = len(result.cells), int((result.cells.table["class"] == UNIDENTIFIED).sum())
        if not n:
            return "No white cell was found."
        return f"{n} cell{'' if n == 1 else 's'} in {result.slide.name}, {unsure or 'none'} unidentified."

    def recount(self) -> None:
        """Count again from the layer of cells, with what the user changed in it."""
        from ._layers import CELLS, LABELS, show_corrections

        cells, layer = self._corrected(), self._shown.get(CELLS)
        if cells is None:
            return
        if layer is not None:
            with layer.events.features.blocker(self._on_features):
                layer.features = layer.features  # napari's table changes features without telling the layer
        self._show_counts(cells)
        there = {role: layer for role, layer in self._shown.items() if layer in self.viewer.layers}
        if self._pictured is not None:
            labels = labels_array(self._shown.get(LABELS)) if self.analysis is None else self.analysis.labels
            show_corrections(there, cells, self._pictured.data.shape[:2] if labels is None else labels.shape)

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
            written = self._write(cells, slide, Path(folder))
        except (*EXPECTED, OSError) as error:
            self._fail(error)
            return None
        self.status.setText(f"Saved in {written}")
        show_info(f"Saved in {written}")
        return written

    def _write(self, cells: Cells, slide: Slide, folder: Path) -> Path:
        import numpy as np

        from napari_wbc.export import RESULT_FILES, write_folder, write_results

        from ._layers import LABELS

        files = (*RESULT_FILES, "differential.csv")
        if self.analysis is not None and cells == self.analysis.cells:
            return write_results(self.analysis, folder, files=files)
        layer, analysis = self._shown.get(LABELS), self.analysis
        labels = labels_array(layer) if analysis is None else analysis.labels
        if labels is not None:
            # A cell that the user deleted is gone from the labels too.
            labels = np.where(np.isin(labels, cells.table["label"].to_numpy()), labels, 0)
        if analysis is not None and labels is not None:
            corrected = replace(analysis, cells=cells, labels=labels)
            return write_results(corrected, folder, files=files, corrected=True)
        # What somebody saves again is a reviewer's.
        return write_folder(folder, cells, labels, image=slide.image, picture=slide.path, files=files, corrected=True)

    def _take(self, shown: dict[str, Layer], image: Image, analysis: Analysis | None) -> None:
        """Make these layers those that are recounted and saved."""
        from ._layers import CELLS

        if CELLS in self._shown:
            self._shown[CELLS].events.features.disconnect(self._on_features)
        self._shown, self._pictured, self.analysis = shown, image, analysis
        shown[CELLS].events.features.connect(self._on_features)
        self._buttons.show()

    def _adopt(self) -> None:
        """Take layers that were read from a folder of results of the chosen picture."""
        image = self.image.layer
        if image is None or self.is_running or not any(KEY in layer.metadata for layer in self.viewer.layers):
            return
        from ._layers import CELLS, LABELS, find_layer
        from ._panel import COUNTS, NAMES

        found = {role: find_layer(self.viewer, image, role) for role in (CELLS, LABELS, NAMES, COUNTS)}
        shown = {role: layer for role, layer in found.items() if layer is not None}
        cells = shown.get(CELLS)
        # Layers of a run of this session stay those of their dock.
        if cells is None or "cells" in cells.metadata[KEY]:
            return
        if cells is not self._shown.get(CELLS):
            self._take(shown, image, None)
            if self.results is not None:
                # The counts of another picture.
                self.results.hide()
        self._shown = shown
        self.status.setText(f"Results of {image.name} are open: correct, recount and save them, or classify anew.")

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

        from ._results import LIMITS_NOTE, Results

        if self.results is None:
            self.results = Results(self.viewer.theme)
            self._place.addWidget(self.results)
        self.results.show()
        head, notes = "Read from saved results.", []
        if self.analysis is not None:
            name = self.analysis.card.name if self.analysis.card else "none"
            head = scale_line(self.analysis.appearance)
            notes = [*self.analysis.notes, f"Model {name}, threshold {self.analysis.threshold:g}."]
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
        inside = QWidget()
        form = QFormLayout(inside)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Model", self.model)
        form.addRow("Threshold", self.threshold)
        form.addRow("Scale, µm/px", self.mpp)
        form.addRow("Device", self.device)
        self.advanced = QCollapsible("Advanced", expandedIcon="▾", collapsedIcon="▸")
        self.advanced.addWidget(inside)
        self.body.insertWidget(1, self.advanced)

    def _show_defaults(self) -> None:
        """Say in the empty fields what is used while they are empty."""
        image = self.image.layer
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


@lru_cache(maxsize=1)
def _load(card: Path, _changed: float, device: str | None) -> Classifier:
    """Keep the last model: loading takes longer than a field."""
    from napari_wbc.classifier import Classifier

    return Classifier.load(card, device=device)

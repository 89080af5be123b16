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

from napari_wbc.models import DEFAULT_MODEL, available_models, find_model

from ._dock import EXPECTED, Dock, LayerChoice
from ._source import labels_array, layer_mpp, slide_of

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

    from napari_wbc.classifier import Classifier
    from napari_wbc.pipeline import Analysis, Progress

    from ._results import Results

FIND_THEM = "find them (default)"
BROWSE = "Browse…"


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
        self.analysis: Analysis | None = None
        self._shown: dict[str, Layer] = {}
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
        napari_viewer.events.theme.connect(self._on_theme)
        self._show_defaults()

    def prepare(self, image: Image) -> Callable[[], Generator[Progress, None, Analysis]]:
        """Read the controls; return what the worker runs."""
        model, labels = self.model.currentData(), self.labels.layer
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
            classifier = _load(*_version(find_model(model)))
            return (yield from analyse(slide, classifier, labels=labels_array(labels), threshold=threshold))

        return work

    def done(self, result: Analysis, image: Image) -> str:
        """Show cells, labels and counts."""
        from ._layers import CELLS, update_layers

        self.analysis = result
        if CELLS in self._shown:
            self._shown[CELLS].events.features.disconnect(self._on_features)
        self._shown = update_layers(self.viewer, result, image)
        self._shown[CELLS].events.features.connect(self._on_features)
        self._show_counts(result)
        self._buttons.show()
        n = len(result.cells)
        return f"{n} cell{'' if n == 1 else 's'} in {result.slide.name}." if n else "No white cell was found."

    def recount(self) -> None:
        """Count again from the layer of cells, with what the user changed in it."""
        from ._layers import CELLS, COUNTS, show_counts

        analysis = self._corrected()
        layer = self._shown.get(CELLS)
        if analysis is None or layer is None:
            return
        with layer.events.features.blocker(self._on_features):
            layer.features = layer.features  # napari's table changes features without telling the layer
        self._show_counts(analysis)
        counts = self._shown.get(COUNTS)
        if counts in self.viewer.layers:
            show_counts(counts, analysis.cells, analysis.labels.shape)

    def save(self, folder: str | Path | None = None) -> Path | None:
        """Write the files of the command line into a folder; asks where to put it if none is given."""
        analysis = self._corrected()
        if analysis is None:
            return None
        from napari_wbc.export import RESULT_FILES, safe_name, write_results

        if folder is None:
            parent = QFileDialog.getExistingDirectory(self, "Save a folder of results in")
            if not parent:
                return None
            # A folder of its own, as the command line makes for each picture.
            folder = Path(parent) / safe_name(Path(analysis.slide.name).stem)
        try:
            written = write_results(analysis, folder, files=(*RESULT_FILES, "differential.csv"))
        except (*EXPECTED, OSError) as error:
            self._fail(error)
            return None
        self.status.setText(f"Saved in {written}")
        show_info(f"Saved in {written}")
        return written

    def _corrected(self) -> Analysis | None:
        """Return the analysis with the user's corrections of the layer of cells, or None."""
        import numpy as np

        from ._layers import CELLS, cells_of

        layer = self._shown.get(CELLS)
        if self.analysis is None or layer is None or layer not in self.viewer.layers:
            return self.analysis
        try:
            cells = cells_of(layer.features, layer.data)
        except EXPECTED as error:
            self._fail(error)
            return None
        if cells == self.analysis.cells:
            return self.analysis
        # A cell that the user deleted is gone from the labels too.
        kept = np.isin(self.analysis.labels, cells.table["label"].to_numpy())
        return replace(self.analysis, cells=cells, labels=np.where(kept, self.analysis.labels, 0))

    def _show_counts(self, analysis: Analysis) -> None:
        if self.results is None:
            from ._results import Results

            self.results = Results(self.viewer.theme)
            self._place.addWidget(self.results)
        name = analysis.card.name if analysis.card else "none"
        notes = [*analysis.notes, f"Model {name}, threshold {analysis.threshold:g}.", "Research use only."]
        self.results.show_counts(analysis.differential, notes)

    def _on_features(self) -> None:
        if isalive(self):
            self.recount()

    def _on_theme(self) -> None:
        if isalive(self) and self.results is not None:
            self.results.set_theme(self.viewer.theme)

    def _add_advanced(self) -> None:
        self.model = QComboBox()
        for name, card in available_models().items():
            self.model.addItem(name, str(card))
        self.model.setCurrentText(DEFAULT_MODEL)
        self.model.addItem(BROWSE, None)
        self.model.activated.connect(self._on_model)
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
        self.advanced = QCollapsible("Advanced", expandedIcon="▾", collapsedIcon="▸")
        self.advanced.addWidget(inside)
        self.body.insertWidget(1, self.advanced)

    def _on_model(self, index: int) -> None:
        if self.model.itemData(index) is None:
            path, _ = QFileDialog.getOpenFileName(self, "Model card", "", "Model card (*.json)")
            if path:
                self.model.insertItem(0, Path(path).stem, path)
            self.model.setCurrentIndex(0)
        self._show_defaults()

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
def _load(card: Path, _changed: float) -> Classifier:
    """Keep the last model: loading takes longer than a field."""
    from napari_wbc.classifier import Classifier

    return Classifier.load(card)

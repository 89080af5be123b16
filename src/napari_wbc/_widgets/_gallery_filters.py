"""The controls of the gallery that say which cells are shown, and how they are sorted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from napari.layers import Shapes
from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QHBoxLayout, QToolButton
from superqt import QLabeledDoubleRangeSlider

from ._gallery_order import SHOWS, SORTS, Shown
from ._source import KEY, drawn_regions

if TYPE_CHECKING:
    from napari.layers import Image
    from napari.viewer import Viewer


class Filters(QObject):
    """Rows of a form: what is shown, in which order, of which probability.

    Parameters
    ----------
    form : QFormLayout
        Where the rows go.
    """

    changed = Signal()

    def __init__(self, form: QFormLayout) -> None:
        super().__init__()
        self.show_box, self.sort_box = QComboBox(), QComboBox()
        self.show_box.setToolTip("Which cells are shown")
        self.sort_box.addItems(SORTS)
        self.sort_box.setToolTip("How the cells of a class are sorted")
        self.direction = QToolButton()
        self.direction.setCheckable(True)
        self.direction.setText("↑")
        self.direction.setToolTip("Smallest first (↑) or largest first (↓)")
        self.range = QLabeledDoubleRangeSlider(Qt.Orientation.Horizontal)
        self.range.setRange(0, 1)
        self.range.setValue((0.0, 1.0))
        self.range.setDecimals(2)
        self.range.setToolTip("Only cells whose likeliest class is as probable as this")
        self.inside = QCheckBox("in drawn shapes")
        self.inside.setToolTip("Only cells inside the shapes of the chosen shapes layer")
        for title, first, second in (
            ("Show", self.show_box, self.inside), ("Sort by", self.sort_box, self.direction),
        ):  # fmt: skip
            row = QHBoxLayout()
            row.addWidget(first, 1)
            row.addWidget(second)
            form.addRow(title, row)
        form.addRow("Probability", self.range)
        self.direction.toggled.connect(lambda down: self.direction.setText("↓" if down else "↑"))
        for signal in (
            self.show_box.currentIndexChanged, self.sort_box.currentIndexChanged, self.range.valueChanged,
            self.inside.toggled, self.direction.toggled,
        ):  # fmt: skip
            signal.connect(lambda *_: self.changed.emit())

    @property
    def show(self) -> str:
        """Which cells are shown: one of `SHOWS`, or a class."""
        return str(self.show_box.currentText())

    def offer(self, classes: Sequence[str]) -> None:
        """Offer classes to show; tells nobody."""
        wanted = [*SHOWS, *(name for name in classes if name not in SHOWS)]
        if wanted == [self.show_box.itemText(k) for k in range(self.show_box.count())]:
            return
        before = self.show
        self.show_box.blockSignals(True)
        self.show_box.clear()
        self.show_box.addItems(wanted)
        self.show_box.setCurrentText(before if before in wanted else wanted[0])
        self.show_box.blockSignals(False)

    def shown(self, viewer: Viewer, image: Image | None) -> Shown:
        """Return what the controls say of the cells of a picture; raises ValueError where nothing is drawn."""
        low, high = (round(value, 2) for value in self.range.value())
        within = self._within(viewer, image) if self.inside.isChecked() and image is not None else None
        return Shown(self.show, low, high, within, self.sort_box.currentText(), self.direction.isChecked())

    def _within(self, viewer: Viewer, image: Image) -> list[Any] | None:
        drawn = [layer for layer in viewer.layers if isinstance(layer, Shapes) and KEY not in layer.metadata]
        if not drawn:
            raise ValueError("nothing is drawn; add a shapes layer and draw on the picture")
        active = viewer.layers.selection.active
        return drawn_regions(active if active in drawn else drawn[-1], image)

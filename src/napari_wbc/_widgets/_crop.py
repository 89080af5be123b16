"""The dock that cuts white cells out, all at one scale."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels, Points
from qtpy.QtWidgets import QDoubleSpinBox, QFileDialog, QHBoxLayout, QLineEdit, QPushButton, QSpinBox

from napari_wbc.models import find_model

from ._dock import Dock, LayerChoice
from ._source import CROPS, KEY, labels_array, points_in, slide_of

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_wbc.cells import Cells
    from napari_wbc.pipeline import Progress


@dataclass(frozen=True)
class Crops:
    """Crops of a field, (n, S, S, 3), with their cells and the folder they were written to."""

    crops: np.ndarray
    cells: Cells
    folder: Path | None


class CropWidget(Dock):
    """Cut the white cells of a picture out.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    verb = "Crop cells"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.cells = LayerChoice(napari_viewer, (Labels, Points), "find them (default)")
        self.cells.setToolTip("Cells of an earlier run, labels, or points of your own: one in the middle of each cell")
        self.side = QDoubleSpinBox()
        self.side.setRange(1.0, 999.0)
        self.side.setToolTip("Side of the square, µm")
        self.pixels = QSpinBox()
        self.pixels.setRange(8, 4096)
        self.pixels.setToolTip("Side of the square, pixels")
        # What the shipped model takes, as on the command line.
        size = json.loads(find_model().read_text(encoding="utf-8"))["crop"]
        self.side.setValue(size["side_um"])
        self.pixels.setValue(size["pixels"])
        self.folder = QLineEdit()
        self.folder.setPlaceholderText("none: only show them")
        browse = QPushButton("…")
        browse.setMaximumWidth(32)
        browse.clicked.connect(self._browse)
        row = QHBoxLayout()
        row.addWidget(self.folder, 1)
        row.addWidget(browse)
        self.form.addRow("Cells", self.cells)
        self.form.addRow("Side, µm", self.side)
        self.form.addRow("Side, pixels", self.pixels)
        self.form.addRow("Save in", row)
        self.body.addStretch()

    def prepare(self, image: Image) -> Callable[[], Generator[Progress, None, Crops]]:
        """Read the controls; return what the worker runs."""
        layer, folder = self.cells.layer, self.folder.text().strip()
        side, pixels = self.side.value(), self.pixels.value()
        table, points = None, None
        if isinstance(layer, Points) and "bbox-0" in layer.features:
            table = (layer.features.copy(), np.array(layer.data))
        elif isinstance(layer, Points):
            points = points_in(layer, image)
            rows, columns = image.data[0].shape[:2] if image.multiscale else image.data.shape[:2]
            if not ((points > -0.5) & (points < [rows - 0.5, columns - 0.5])).all(axis=1).any():
                raise ValueError(
                    f"no point of {layer.name!r} lies in {image.name!r}; choose points set on this picture"
                )
        labels = labels_array(layer) if isinstance(layer, Labels) else None

        def work() -> Generator[Progress, None, Crops]:
            from napari_wbc.crop import CropSize
            from napari_wbc.export import write_crops
            from napari_wbc.pipeline import Progress, analyse, crop_scale
            from napari_wbc.whole import crop_slide

            from ._layers import cells_at, cells_of

            yield Progress("reading the picture")
            analysis = yield from analyse(slide_of(image), labels=labels)
            cells = analysis.cells if table is None else cells_of(*table)
            size = CropSize(side, pixels)
            # Points have no size: where the scale is unknown, the cells of the picture are the ruler.
            mpp = crop_scale(analysis.appearance, cells)
            if points is not None:
                cells = cells_at(points, analysis.slide.name, analysis.appearance.mpp)
            if len(cells) and not np.isfinite(mpp):
                raise ValueError("the scale is unknown; set the layer's scale and units (µm), or use another picture")
            yield Progress("cutting", 0, len(cells))
            crops = crop_slide(analysis.slide, cells.centroids, mpp, size)
            written = write_crops(crops, cells, folder, mpp=side / pixels) if folder else None
            return Crops(crops, cells, written)

        return work

    def done(self, result: Crops, image: Image) -> str:
        """Show the crops as a stack."""
        from ._layers import find_layer

        n = len(result.cells)
        if not n:
            return "No white cell was found."
        metadata: dict[str, Any] = {KEY: {"role": CROPS, "image": image.unique_id, "cells": result.cells}}
        layer = find_layer(self.viewer, image, CROPS)
        if layer is None:
            selected = set(self.viewer.layers.selection)
            layer = self.viewer.add_image(
                result.crops, name=CROPS, rgb=True, metadata=metadata,
                units=("pixel", *image.units[-2:]), axis_labels=("crop", "y", "x"),
            )  # fmt: skip
            self.viewer.layers.selection = selected
        layer.data = result.crops
        layer.metadata.update(metadata)
        # Beside the picture, a third of its height.
        (top, left), (bottom, right) = image.extent.world[:, -2:]
        step = (bottom - top) / 3 / result.crops.shape[1]
        layer.scale, layer.translate = (1, step, step), (0, top, right + 0.03 * (right - left))
        where = f" and saved in {result.folder}" if result.folder else ""
        return f"{n} crop{'' if n == 1 else 's'} beside the picture{where}. The slider shows one after another."

    def _browse(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Save crops in")
        if folder:
            self.folder.setText(folder)

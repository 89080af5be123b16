"""The dock that finds and outlines white cells without classifying them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import fields
from typing import TYPE_CHECKING

from napari.layers import Image
from qtpy.QtWidgets import QDoubleSpinBox

from ._dock import Dock
from ._source import scale_line, slide_of

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_wbc.pipeline import Analysis, Progress


class SegmentWidget(Dock):
    """Find and outline the white cells of a picture.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    verb = "Segment cells"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.analysis: Analysis | None = None
        self.parameters = _form()
        for name, box in self.parameters.items():
            self.form.addRow(_LABELS.get(name, name.replace("_", " ").capitalize()), box)
        self.body.addStretch()

    def prepare(self, image: Image) -> Callable[[], Generator[Progress, None, Analysis]]:
        """Read the controls; return what the worker runs."""
        from napari_wbc.segment import SegmentParameters

        values = {name: box.value() for name, box in self.parameters.items()}
        mpp = values.pop("mpp") or None
        parameters = SegmentParameters(mpp=mpp, **values)

        def work() -> Generator[Progress, None, Analysis]:
            from napari_wbc.pipeline import Progress, analyse

            yield Progress("reading the picture")
            return (yield from analyse(slide_of(image, mpp), parameters=parameters))

        return work

    def done(self, result: Analysis, image: Image) -> str:
        """Show the cells' outlines and measurements."""
        from ._layers import update_layers

        self.analysis = result
        update_layers(self.viewer, result, image)
        n = len(result.cells)
        lines = [f"{n} cell{'' if n == 1 else 's'}.", scale_line(result.appearance), *result.notes]
        return "\n".join(lines)


_LABELS = {
    "mpp": "Scale, µm/px",
    "working_mpp": "Working scale, µm/px",
    "min_nucleus_area": "Smallest nucleus, µm²",
    "max_lobe_gap": "Widest lobe gap, µm",
    "max_cytoplasm": "Widest cytoplasm, µm",
}


def _form() -> dict[str, QDoubleSpinBox]:
    """One box a field of `SegmentParameters`, with its line of the docstring as tooltip."""
    from napari_wbc.segment import SegmentParameters

    lines = (SegmentParameters.__doc__ or "").splitlines()
    said = dict(line.strip().split(" : ", 1) for line in lines if " : " in line)
    boxes = {}
    for entry in fields(SegmentParameters):
        box = QDoubleSpinBox()
        # At 0 these divide by it.
        box.setRange(
            0.05 if entry.name in ("working_mpp", "sensitivity") else 0.0, 5.0 if "mpp" in entry.name else 100.0
        )
        box.setDecimals(4 if entry.name == "mpp" else 2)
        box.setSingleStep(0.05 if "mpp" in entry.name else 0.5)
        if isinstance(entry.default, float):
            box.setValue(entry.default)
        else:
            box.setSpecialValueText("measured")
        box.setToolTip(said.get(entry.name, ""))
        boxes[entry.name] = box
    return boxes

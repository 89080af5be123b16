"""Maps of a whole slide as napari layers: what its regions are, and how many cells lie where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_wbc.coarse import REASONS
from napari_wbc.density import density
from napari_wbc.palette import REGIONS as COLOURS

from ._source import DENSITY, KEY, REGIONS

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

    from napari_wbc.pipeline import Analysis


HEAT = {"name": "heat", "colors": [(1, 0.8, 0.1, 0), (1, 0.6, 0.1, 0.7), (0.8, 0.1, 0.2, 1), (0.35, 0, 0.3, 1)]}
"""Where there are no cells the slide is seen as it is."""


def show_maps(viewer: Viewer, analysis: Analysis, image_layer: Layer, transform: dict[str, Any]) -> None:
    """Lay the regions and, hidden at first, the density of cells over a slide; maps of an earlier run give way.

    Parameters
    ----------
    viewer : napari.Viewer
    analysis : Analysis
        Of a whole slide.
    image_layer : napari.layers.Image
        The slide.
    transform : dict
        Scale, translation and units of the slide's layer.
    """
    if analysis.whole is None:
        return
    film = analysis.whole.film
    found = [layer for layer in viewer.layers if layer.metadata.get(KEY, {}).get("image") == image_layer.unique_id]
    shown = {layer.metadata[KEY]["role"]: layer.visible for layer in found}
    for layer in found:
        if layer.metadata[KEY]["role"] in (REGIONS, DENSITY):
            viewer.layers.remove(layer)
    table = analysis.whole.regions
    features = table.assign(index=np.arange(1, len(table) + 1))
    # Where cells were looked for the slide is seen as it is.
    paint: dict[int | None, str] = {None: "transparent", 0: "transparent"}
    for k, (name, used) in enumerate(zip(REASONS, table["used"], strict=True), start=1):
        paint[k] = "transparent" if used else COLOURS[name]
    regions = viewer.add_labels(
        film.kinds + 1, name=REGIONS, features=features, colormap=paint,
        opacity=0.35, visible=shown.get(REGIONS, True), **_placed(transform, film.step),
    )  # fmt: skip
    per_mm2, steps = density(analysis.cells, analysis.slide.shape, analysis.appearance.mpp)
    map_ = viewer.add_image(
        per_mm2, name=f"{DENSITY}, cells per mm²", colormap=HEAT, blending="translucent_no_depth",
        opacity=0.7, visible=shown.get(DENSITY, False), interpolation2d="linear", **_placed(transform, steps),
    )  # fmt: skip
    for layer, role in ((regions, REGIONS), (map_, DENSITY)):
        layer.metadata[KEY] = {"role": role, "image": image_layer.unique_id}
        # Below the cells, above the slide.
        viewer.layers.move(viewer.layers.index(layer), viewer.layers.index(image_layer) + 1)


def _placed(transform: dict[str, Any], step: float | npt.NDArray[np.float64]) -> dict[str, Any]:
    """Place a map whose pixels are so many of the slide's high and wide."""
    scale = np.asarray(transform["scale"], float)
    shift = np.asarray(transform["translate"], float) + scale * (step - 1) / 2
    return transform | {"scale": scale * step, "translate": shift}

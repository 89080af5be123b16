"""From a layer to a slide. No Qt; napari for its types only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_wbc.slide import IMAGE_SUFFIXES, MAX_MEGAPIXELS, ImageError, Slide

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Layer, Points

    from napari_wbc.appearance import Appearance

# Under this key our layers' metadata say what they show and of which picture.
KEY = "napari-wbc"
CROPS = "crops"


def layer_mpp(layer: Image) -> float | None:
    """Return the µm per pixel of a layer in physical units, or None where its units are pixels."""
    steps = zip(layer.scale[-2:], layer.units[-2:], strict=True)
    try:
        sizes = [float((step * unit).to("micrometer").magnitude) for step, unit in steps]
    # A unit without length, such as a pixel, is how napari says that it knows no scale.
    except Exception:  # noqa: BLE001
        return None
    if not np.isclose(sizes[0], sizes[1], rtol=0.01):
        raise ImageError(f"the pixels of {layer.name!r} are not square ({sizes[0]:g} × {sizes[1]:g} µm)")
    return sizes[0]


def file_of(layer: Layer) -> Path | None:
    """Return the picture's file; the source of a layer that was read from a folder of results is that folder."""
    for path in (layer.source.path, layer.metadata.get("path")):
        if path and Path(path).suffix.lower() in IMAGE_SUFFIXES and Path(path).is_file():
            return Path(path)
    return None


def slide_of(layer: Image, mpp: float | None = None) -> Slide:
    """Return the picture of a layer.

    Parameters
    ----------
    layer : napari.layers.Image
        RGB; of a multiscale layer the finest level is taken.
    mpp : float, optional
        Micrometres per pixel; those of the layer where it has physical units.

    Returns
    -------
    Slide
        With the path of its file if the layer shows the file unchanged, so
        that results name it as the command line does.

    Raises
    ------
    ImageError
        If it is no RGB picture or too large.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    if data.ndim - bool(layer.rgb) > 2 and not (data.ndim == 3 and data.shape[0] in (3, 4)):
        raise ImageError(
            f"{layer.name}: a stack of shape {tuple(data.shape)}; make one RGB plane of it the picture "
            "(right-click the layer, Split Stack)"
        )
    if np.prod(data.shape[:2]) > MAX_MEGAPIXELS * 1e6:
        raise ImageError(f"{layer.name}: larger than {MAX_MEGAPIXELS:g} megapixels; crop it to fields")
    mpp = layer_mpp(layer) if mpp is None else mpp
    try:
        slide = Slide.from_array(np.asarray(data), layer.name, mpp=mpp)
    except ImageError as error:
        raise ImageError(f"{layer.name}: {error}") from error
    path = file_of(layer)
    if path is None:
        return slide
    try:
        file = Slide.open(path)
    except ImageError:
        return slide
    return replace(file, mpp=mpp) if np.array_equal(file.image, slide.image) else slide


def labels_array(layer: Labels | None) -> npt.NDArray[Any] | None:
    """Return the pixels of a labels layer, of a multiscale one the finest level."""
    if layer is None:
        return None
    return np.asarray(layer.data[0] if layer.multiscale else layer.data)


def scale_line(look: Appearance) -> str:
    """Say what the scale is and where it is from: the first thing to check."""
    if not np.isfinite(look.mpp):
        return "Scale: unknown."
    n = look.n_red_cells
    source = {
        "given": "given",
        "red cells": f"measured from {n} red cell{'' if n == 1 else 's'}",
        "white cells": "assumed from the white cells",
    }.get(look.mpp_source, look.mpp_source)
    return f"Scale: {look.mpp:.3f} µm per pixel, {source}."


def points_in(layer: Points, image: Image) -> npt.NDArray[np.float64]:
    """Return where points lie in a picture, (n, 2) rows and columns in its pixels, whatever the layers' scales."""
    places = [image.world_to_data(layer.data_to_world(point)[-2:])[-2:] for point in np.asarray(layer.data)]
    return np.array(places, dtype=np.float64).reshape(-1, 2)

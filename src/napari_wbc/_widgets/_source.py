"""From a layer to a slide. No Qt; napari for its types only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from napari_wbc.slide import IMAGE_SUFFIXES, MAX_MEGAPIXELS, SLIDE_SUFFIXES, ImageError, Slide
from napari_wbc.slide_formats import is_zarr

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Layer, Points, Shapes

    from napari_wbc.appearance import Appearance

# Under this key our layers' metadata say what they show and of which picture.
KEY = "napari-wbc"
CROPS, REGIONS, DENSITY, FRAMES = "crops", "regions", "density", "frames"


@dataclass(frozen=True)
class OfRun:
    """Of which picture of a run a layer is, in its metadata, where a run was opened as a whole."""

    KEY: ClassVar = "napari-wbc run"
    folder: Path
    """The picture's results, in the run's folder."""
    shown: bool = True
    """Whether the layer is shown with its picture."""


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
        suffix = Path(path).suffix.lower() if path else ""
        if (suffix in (*IMAGE_SUFFIXES, *SLIDE_SUFFIXES) and Path(path).is_file()) or (suffix and is_zarr(Path(path))):
            return Path(path)
    return None


def slide_of(layer: Image, mpp: float | None = None) -> Slide:
    """Return the picture of a layer.

    Parameters
    ----------
    layer : napari.layers.Image
        RGB; a multiscale layer is a whole slide, of which nothing is read yet.
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
    if layer.multiscale and layer.rgb and layer.ndim == 2:
        return _whole_of(layer, layer_mpp(layer) if mpp is None else mpp)
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


def _whole_of(layer: Image, mpp: float | None) -> Slide:
    """Return the slide of a multiscale layer: its file if our reader opened it, else its levels."""
    path, shape = file_of(layer), tuple(layer.data[0].shape[:2])
    if path is not None:
        slide = Slide.open(path)
        if slide.is_whole and slide.shape == shape:
            return replace(slide, mpp=slide.mpp if mpp is None else mpp)
    return Slide.from_levels(list(layer.data), layer.name, mpp=mpp)


def seen_region(layer: Image) -> list[npt.NDArray[np.float64]]:
    """Return what of a slide is on the screen, as a rectangle in pixels of level 0."""
    factors = layer.downsample_factors[layer.data_level][-2:] if layer.multiscale else np.ones(2)
    (top, left), (bottom, right) = np.asarray(layer.corner_pixels, float)[:, -2:] * factors
    return [np.array([(top, left), (top, right), (bottom, right), (bottom, left)])]


def drawn_regions(shapes: Shapes, layer: Image) -> list[npt.NDArray[np.float64]]:
    """Return what was drawn as polygons in pixels of level 0 of a picture; an ellipse gets 64 corners."""
    regions = []
    for corners, kind in zip(shapes.data, shapes.shape_type, strict=True):
        if kind in ("line", "path"):
            raise ImageError(f"{shapes.name}: a {kind} encloses nothing; draw rectangles, ellipses or polygons")
        outline = np.asarray(corners, float)[:, -2:]
        if kind == "ellipse":
            turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)[:, None]
            middle = outline.mean(axis=0)
            sides = (outline[1] - outline[0]) / 2, (outline[2] - outline[1]) / 2
            outline = middle + np.cos(turn) * sides[0] + np.sin(turn) * sides[1]
        places = [layer.world_to_data(shapes.data_to_world(corner)[-2:])[-2:] for corner in outline]
        regions.append(np.array(places, dtype=float))
    if not regions:
        raise ImageError(f"{shapes.name}: nothing is drawn; draw a region on the slide")
    return regions


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

"""A cell that was missed: segmented, measured and classified at one point, by the stages of the pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .appearance import Appearance, SegmentParameters, appearance, shrunk
from .cells import Cells, measure
from .geojson import Rings, outlines
from .pipeline import ASSUMED_CELL_UM
from .plan import WORKING_UM
from .scale import even_density
from .segment import outlined, segment
from .whole import crop_slide

if TYPE_CHECKING:
    from .classifier import Classifier
    from .slide import Slide

_WINDOW_UM, _NEAR_UM = 120.0, 6.0
# A cell that was missed is often paler than the others.
_SENSITIVITIES = (1.0, 1.6)


def cell_at(
    slide: Slide,
    point: npt.ArrayLike,
    mpp: float,
    classifier: Classifier | None = None,
    threshold: float | None = None,
    look: Appearance | None = None,
) -> tuple[Cells, Rings]:
    """Make a row of the table of what lies at a point.

    Parameters
    ----------
    slide : Slide
        A field or a whole slide.
    point : (2,) floats
        Row and column in level-0 pixels.
    mpp : float
        Micrometres per pixel.
    classifier : Classifier, optional
        Without one the cell has no class.
    threshold : float, optional
        As in `napari_wbc.pipeline.analyse`.
    look : Appearance, optional
        Of the picture; measured around the point if not given.

    Returns
    -------
    cells : Cells
        One row. Where nothing is found within 6 µm of the point, it is a circle of 14.8 µm around it.
    outline : list of (m, 2) arrays
        As `napari_wbc.geojson.outlines` gives it.

    Raises
    ------
    ValueError
        If the point lies outside the picture, or the scale is unknown.
    """
    place = np.asarray(point, float)
    if not ((place >= 0) & (place < slide.shape)).all():
        raise ValueError("this point lies outside the picture; click on a cell")
    if not np.isfinite(mpp):
        raise ValueError("the scale is unknown; give µm per pixel and classify again before cells are added")
    half = round(_WINDOW_UM / 2 / mpp)
    first = np.maximum(np.floor(place).astype(int) - half, 0)
    last = np.minimum(np.ceil(place).astype(int) + half, slide.shape)
    image = slide.read((int(first[0]), int(first[1]), int(last[0]), int(last[1])))
    mask = _mask_at(image, place - first, mpp, look, slide.is_whole)
    table = measure(mask.astype(np.int32), slide=slide.name, mpp=mpp).table
    for axis in (0, 1):
        table[f"centroid-{axis}"] += first[axis]
        table[f"bbox-{axis}"] += first[axis]
        table[f"bbox-{axis + 2}"] += first[axis]
    box = table[[f"bbox-{k}" for k in range(4)]].to_numpy()[0]
    table["at_border"] = bool((box[:2] <= 0).any() or (box[2:] >= slide.shape).any())
    cells = Cells(table)
    if classifier is not None:
        card = classifier.card
        scale = card.crop.scale_for(mpp, np.array([float((box[2:] - box[:2]).max())]))
        probabilities, unlikeness = classifier.judge(crop_slide(slide, cells.centroids, scale, card.crop))
        limit = card.threshold if threshold is None else threshold
        cells = cells.with_predictions(probabilities, card.classes, limit, unlikeness, card.unlike_above)
    rings = [ring + first[::-1] for ring in outlines(mask.astype(np.int32))[1]]
    return cells, rings


def _mask_at(
    image: npt.NDArray[np.uint8],
    place: npt.NDArray[np.float64],
    mpp: float,
    look: Appearance | None,
    on_slide: bool,
) -> npt.NDArray[np.bool_]:
    """Pixels of the cell at a place of a window, or of a circle where none is found."""
    parameters = SegmentParameters(mpp=mpp)
    look = look or appearance(image, parameters)
    if on_slide:  # as its other cells are outlined
        parameters = replace(parameters, working_mpp=max(parameters.working_mpp, WORKING_UM))
        density = even_density(shrunk(image, min(1.0, mpp / parameters.working_mpp)), look.background)
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    away = np.hypot(rows - place[0], columns - place[1])
    for sensitivity in _SENSITIVITIES:
        more = replace(look, nuclear=look.nuclear / sensitivity)
        given = replace(parameters, sensitivity=sensitivity)
        found = outlined(density, more, given, image.shape[:2]) if on_slide else segment(image, given, more)
        labels = found.labels
        near = np.where(labels > 0, away, np.inf)
        if near.min() <= _NEAR_UM / mpp:
            return np.asarray(labels == labels[np.unravel_index(near.argmin(), near.shape)])
    return np.asarray(away <= max(ASSUMED_CELL_UM / 2 / mpp, 1.0))

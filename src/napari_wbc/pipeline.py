"""The one way from a picture to a classified, counted table of cells.

The dock, the command line and the Python API all drain `analyse`; the
number on the screen is the number in the file because it is the same code.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .cells import UNLIKE, UNLIKE_NOTE, Cells, measure
from .crop import crop_cells
from .plan import Polygons, Step
from .record import now
from .segment import Appearance, SegmentParameters, appearance, segment
from .slide import ImageError, Slide
from .whole import Found, Whole, find
from .words import plural

if TYPE_CHECKING:
    import pandas as pd

    from .classifier import Classifier, ModelCard

BATCH = 64


@dataclass(frozen=True)
class Progress:
    """How far an analysis is.

    Parameters
    ----------
    stage : str
        What is being done, to be shown.
    done, total : int
        Cells done and cells to do; 0 of 0 until they are counted. Of a whole slide, parts of the stage.
    cells : Cells or None
        Of a whole slide, the cells that were classified since the last step.
    """

    stage: str
    done: int = 0
    total: int = 0
    cells: Cells | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Analysis:
    """A field with its cells.

    Parameters
    ----------
    slide : Slide
        What was analysed.
    cells : Cells
        A row a cell.
    labels : (H, W) integer array or None
        The cells' ids, 0 for background; None for a whole slide, whose outlines are in `whole`.
    appearance : Appearance
        What was measured of light, stain and scale.
    card : ModelCard or None
        The model that gave the classes; None if cells were only segmented.
    threshold : float
        Cells less probable are unidentified; 0 if cells were only segmented.
    notes : tuple of str
        What the user should know: conversions, a scale that was assumed.
    whole : Whole or None
        Of a whole slide, the outlines of its cells and what its regions are.
    at : str
        When it was finished, with the zone (ISO 8601).
    """

    slide: Slide
    cells: Cells
    labels: npt.NDArray[np.integer[Any]] | None = field(repr=False)
    appearance: Appearance
    card: ModelCard | None
    threshold: float
    notes: tuple[str, ...]
    whole: Whole | None = field(default=None, repr=False)
    at: str = field(default_factory=lambda: now().isoformat(timespec="seconds"), compare=False)

    @property
    def differential(self) -> pd.DataFrame:
        """The field's counts (`napari_wbc.count.differential`)."""
        from .count import differential

        return differential(self.cells, self.slide.name)


def analyse(
    slide: Slide,
    classifier: Classifier | None = None,
    *,
    parameters: SegmentParameters | None = None,
    labels: npt.NDArray[np.integer[Any]] | None = None,
    threshold: float | None = None,
    within: Polygons | None = None,
    everywhere: bool = False,
    tile: int = 512,
) -> Generator[Progress, None, Analysis]:
    """Segment, measure, crop and classify the white cells of a field or a whole slide.

    Parameters
    ----------
    slide : Slide
        The field or slide. The `mpp` of the parameters, or else its own, overrides
        the scale that is measured from the red cells.
    classifier : Classifier, optional
        Without one, cells are segmented and measured only.
    parameters : SegmentParameters, optional
        How to segment.
    labels : (H, W) integer array, optional
        Regions to classify in place of a segmentation of our own; their
        nuclei are then not measured.
    threshold : float, optional
        Cells whose likeliest class is less probable are *unidentified*; the
        card's threshold if not given.
    within : sequence of (n, 2) arrays, optional
        Of a whole slide, only cells inside these polygons (rows and columns of level 0).
    everywhere : bool
        Of a whole slide, look outside the monolayer too.
    tile : int
        Of a whole slide, side of the tiles of the coarse look in its pixels; no result depends on it.

    Yields
    ------
    Progress
        Closing the generator cancels.

    Returns
    -------
    Analysis

    Raises
    ------
    ImageError
        If `labels` do not fit the picture.
    ValueError
        If a given scale is not above 0 and at most 5 µm per pixel.
    """
    parameters = scaled(parameters or SegmentParameters(), slide)
    if slide.is_whole:
        if labels is not None:
            raise ImageError("regions of your own need a field; crop the slide first, or let them be found")
        limit = (classifier.card.threshold if classifier else 0.0) if threshold is None else threshold
        steps = find(slide, classifier, parameters, limit, within=within, everywhere=everywhere, tile=tile)
        return (yield from _whole(slide, classifier, limit, steps))
    yield Progress("measuring light and scale")
    look = appearance(slide.image, parameters)
    nuclei = None
    if labels is None:
        yield Progress("finding white cells")
        found = segment(slide.image, parameters, look)
        labels, nuclei, look = found.labels, found.nuclei, found.appearance
    else:
        labels = check_labels(labels, slide.image.shape[:2])
    cells = measure(labels, nuclei, slide=slide.name, mpp=look.mpp)
    yield Progress("finding white cells", 0, len(cells))
    notes = [*slide.notes, *_scale_notes(look, len(cells))]
    if classifier is None:
        return Analysis(slide, cells, labels, look, None, 0.0, tuple(notes))
    card = classifier.card
    threshold = card.threshold if threshold is None else threshold
    probabilities = np.empty((len(cells), len(card.classes)), np.float32)
    unlikeness = np.empty(len(cells), np.float32)
    box = cells.table[[f"bbox-{k}" for k in range(4)]].to_numpy(np.float64)
    scales = card.crop.scale_for(crop_scale(look, cells), (box[:, 2:] - box[:, :2]).max(axis=1, initial=0))
    for start in range(0, len(cells), BATCH):
        part = slice(start, start + BATCH)
        crops = crop_cells(slide.image, cells.centroids[part], scales[part], card.crop)
        probabilities[part], unlikeness[part] = classifier.judge(crops)
        yield Progress("classifying", min(start + BATCH, len(cells)), len(cells))
    cells = cells.with_predictions(probabilities, card.classes, threshold, unlikeness, card.unlike_above)
    return Analysis(slide, cells, labels, look, card, threshold, (*notes, *_unlike_notes(card, cells)))


def scaled(parameters: SegmentParameters, slide: Slide) -> SegmentParameters:
    """Return the parameters with the slide's own scale where none was given."""
    return replace(parameters, mpp=slide.mpp) if parameters.mpp is None else parameters


def _whole(
    slide: Slide, classifier: Classifier | None, threshold: float, steps: Generator[Step, None, Found]
) -> Generator[Progress, None, Analysis]:
    """Turn the steps of a whole slide into progress and an analysis."""
    while True:
        try:
            yield Progress(*next(steps))
        except StopIteration as stop:
            return of_slide(slide, stop.value, classifier.card if classifier else None, threshold)


def of_slide(slide: Slide, found: Found, card: ModelCard | None, threshold: float) -> Analysis:
    """Return the analysis of a whole slide whose cells are found."""
    notes = (*slide.notes, *found.notes, *_unlike_notes(card, found.cells))
    return Analysis(slide, found.cells, None, found.look, card, threshold if card else 0.0, notes, found.whole)


def run(progress: Generator[Progress, None, Analysis]) -> Analysis:
    """Drain an analysis and return its result."""
    while True:
        try:
            next(progress)
        except StopIteration as stop:
            result: Analysis = stop.value
            return result


def annotate(
    image: str | Path | Slide | npt.ArrayLike,
    *,
    model: str | Path | Classifier | None = None,
    mpp: float | None = None,
    threshold: float | None = None,
    labels: npt.NDArray[np.integer[Any]] | None = None,
) -> Cells:
    """Find and classify the white cells of a picture.

    Parameters
    ----------
    image : path, Slide or (H, W, 3) array
        The field.
    model : str, pathlib.Path or Classifier, optional
        The default model if not given.
    mpp : float, optional
        Micrometres per pixel; measured from the red cells if not given.
    threshold : float, optional
        Below it a cell is *unidentified*; the model's own if not given.
    labels : (H, W) integer array, optional
        Regions to classify in place of a segmentation.

    Returns
    -------
    Cells
        A row a cell.

    Raises
    ------
    ImageError
        If the picture cannot be used, or `labels` do not fit it.
    ModelError, FileNotFoundError
        If the model cannot be used, or there is none of that name.
    ValueError
        If `mpp` is not above 0 and at most 5.

    Examples
    --------
    >>> import napari_wbc
    >>> cells = napari_wbc.annotate(napari_wbc.samples()[0].path)
    >>> len(cells)
    18
    """
    from .classifier import Classifier

    if isinstance(image, str | Path):
        image = Slide.open(image)
    elif not isinstance(image, Slide):
        image = Slide.from_array(image)
    classifier = model if isinstance(model, Classifier) else Classifier.load(model)
    parameters = SegmentParameters(mpp=mpp)
    return run(analyse(image, classifier, parameters=parameters, labels=labels, threshold=threshold)).cells


def check_labels(labels: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.integer[Any]]:
    """Return labels that fit a picture of this shape, or raise ImageError."""
    labels = np.asarray(labels)
    if labels.shape != tuple(shape):
        raise ImageError(
            f"the labels have shape {labels.shape} and the picture {tuple(shape)}; choose the labels that were "
            "drawn on this picture"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ImageError(f"labels must be whole numbers, not {labels.dtype}")
    if labels.size and labels.min() < 0:
        raise ImageError("labels must not be negative")
    return labels


def crop_scale(look: Appearance, cells: Cells) -> float:
    """Return the µm per pixel to crop with; where it is unknown the cells themselves are the ruler.

    The median cell is then taken to be 14.8 µm wide. NaN where no cell has an area.
    """
    if np.isfinite(look.mpp):
        return float(look.mpp)
    diameter = 2 * np.sqrt(cells.table["area"].median() / np.pi)
    return float(ASSUMED_CELL_UM / max(diameter, 1.0))


ASSUMED_CELL_UM = 14.8
"""Width of a white cell: the mean over five classes of the medians of pbc/val, as this package outlines them."""


def _unlike_notes(card: ModelCard | None, cells: Cells) -> list[str]:
    if card is not None and not card.unlikeness and len(cells):
        return [
            f"the model {card.name} cannot tell cells unlike those it was trained on: blasts, clumps and dirt get one "
            "of its classes, too, and on other stains or cameras it may be sure and wrong"
        ]
    n = int((cells.table["reason"] == UNLIKE).sum())
    return [f"{plural(n, 'cell')} {UNLIKE_NOTE}"] if n else []


def _scale_notes(look: Appearance, n: int) -> list[str]:
    if look.mpp_source in ("given", "red cells"):
        return []
    if look.mpp_source == "white cells":
        return ["too few red cells to measure the scale: it was taken from the white cells; give µm per pixel"]
    if n:
        return ["the scale is unknown: cells were taken to be 14.8 µm wide; give µm per pixel"]
    return ["no red or white cell was recognised, so the scale is unknown; if there are white cells, give µm per pixel"]

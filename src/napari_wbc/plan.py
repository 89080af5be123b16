"""What one look over a whole slide settles: scale, light, stain, the candidates, and the parts they are shared out in.

Everything that comes after depends on this plan and on the pixels around a candidate, on nothing else.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .ahead import ahead
from .appearance import Appearance, SegmentParameters, appearance
from .cells import Cells
from .coarse import REASONS, Film, View, survey
from .slide import ImageError, Slide

Polygons = Sequence[npt.NDArray[np.floating[Any]]]
Step = tuple[str, int, int, Cells | None]
PART = 48
"""Candidates of a part: a batch of the network ends with it, so no number depends on who works on which part."""

WORKING_UM = 0.5
"""µm per pixel at which the cells of a slide are outlined; their crops are cut from level 0."""

_LOOK_UM, _LOOKS = 90.0, 16
_MOST_PIXELS = 1600


@dataclass(frozen=True)
class Plan:
    """What is known of a slide before anything is looked at in full resolution.

    Parameters
    ----------
    parameters : SegmentParameters
        How to segment, with the scale.
    look : Appearance
        Light, stain and thresholds of the slide.
    film : Film
        The coarse look.
    regions : pandas.DataFrame
        A row for each kind of region: area, share, candidates, whether it is used.
    places : (n, 2) float array
        The candidates that are worth a look, rows and columns of level 0.
    within : sequence of (n, 2) arrays or None
        Only cells inside these polygons are wanted.
    notes : tuple of str
        What the user should know.
    """

    parameters: SegmentParameters
    look: Appearance
    film: Film
    regions: pd.DataFrame
    places: npt.NDArray[np.float64] = field(repr=False)
    within: Polygons | None = None
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> list[range]:
        """The candidates, shared out: indices of `places`."""
        return [range(k, min(k + PART, len(self.places))) for k in range(0, len(self.places), PART)]


def make_plan(
    slide: Slide,
    parameters: SegmentParameters,
    *,
    within: Polygons | None = None,
    everywhere: bool = False,
    tile: int = 512,
) -> Generator[Step, None, Plan]:
    """Look over a whole slide; parameters as for `napari_wbc.pipeline.analyse`.

    Yields
    ------
    (stage, done, total, None)

    Raises
    ------
    ImageError
        If the slide says no scale and none can be measured.
    """
    yield "measuring light and scale", 0, 0, None
    mpp = parameters.mpp
    looks: list[Appearance] = []
    if mpp is None:
        mpp, looks = _measured_scale(slide, parameters)
        if mpp is None:
            return _nothing(slide, parameters)
    view, box = View.of(slide, mpp), _box(within, slide, 60 / mpp)
    film: Film | None = None
    for step in survey(view, tile, box):
        if isinstance(step, Film):
            film = step
        else:
            yield "looking for white cells", *step, None
    assert film is not None  # noqa: S101 - the last step is the film
    known = replace(parameters, mpp=mpp, working_mpp=max(parameters.working_mpp, WORKING_UM))
    look = yield from _appearance(slide, film, known)
    if looks:
        look = replace(look, mpp_source="red cells", n_red_cells=sum(one.n_red_cells for one in looks))
    places, regions = _places(film, look, everywhere), film.table(mpp)
    regions["used"] = [everywhere or name == REASONS[0] for name in REASONS]
    if within is not None:
        places = places[near(places, within, 20 / mpp)]
    return Plan(known, look, film, regions, places, within, _region_notes(regions))


def _nothing(slide: Slide, parameters: SegmentParameters) -> Plan:
    """A slide without any film has no cells; one with something on it needs a scale."""
    image = slide.thumbnail(512)
    bright = np.median(image.reshape(-1, 3), axis=0)
    if (np.abs(image.astype(np.int16) - bright).max(axis=-1) > 24).mean() > 0.01:
        raise ImageError(
            f"{slide.path or slide.name}: the slide says no scale, and no red cells were found to measure it; "
            "give µm per pixel (--mpp, or Scale under Advanced)"
        )
    look = appearance(image, parameters)
    film = Film(np.empty((0, 2)), np.empty(0), np.full((1, 1), 1, np.uint8), float(max(slide.shape)), bright)
    regions = film.table(float("nan")).assign(used=[name == REASONS[0] for name in REASONS])
    notes = ("nothing lies on this slide: it has one colour",)
    return Plan(parameters, look, film, regions, np.empty((0, 2)), None, notes)


def _measured_scale(slide: Slide, parameters: SegmentParameters) -> tuple[float | None, list[Appearance]]:
    """µm per pixel from the red cells in windows all over the slide, and what was measured in these."""
    side = 800
    rows, columns = slide.shape
    looks = []
    for y in np.linspace(0, max(0, rows - side), 7).astype(int)[1:-1] if rows > side else [0]:
        for x in np.linspace(0, max(0, columns - side), 7).astype(int)[1:-1] if columns > side else [0]:
            window = slide.read((y, x, min(y + side, rows), min(x + side, columns)))
            look = appearance(window, parameters)
            if look.mpp_source == "red cells" and look.n_red_cells >= 6:
                looks.append(look)
    if not looks:
        return None, []
    looks.sort(key=lambda look: look.mpp)
    total = np.cumsum([look.n_red_cells for look in looks])
    return looks[int(np.searchsorted(total, total[-1] / 2))].mpp, looks


def _appearance(slide: Slide, film: Film, parameters: SegmentParameters) -> Generator[Step, None, Appearance]:
    """Light, stain and thresholds of the slide: medians over windows around the best candidates of the monolayer."""
    good = film.peaks[film.kind_at(film.peaks) == 0] if len(film.peaks) else film.peaks
    # Evenly from the best down to what has less than half of the dye of good ones: rare or many, they are white cells.
    scores = film.scores[film.kind_at(film.peaks) == 0] if len(film.peaks) else film.scores
    likely = good[scores > 0.4 * scores[min(_LOOKS, len(scores)) - 1]] if len(scores) else good
    chosen = likely[np.unique(np.linspace(0, max(0, len(likely) - 1), _LOOKS).astype(int))] if len(likely) else likely
    if not len(chosen):
        chosen = np.array([[n / 2 for n in slide.shape]])
    mpp = parameters.mpp or 1.0
    level, down = slide.level_for(parameters.working_mpp / mpp)
    half = int(min(_LOOK_UM / 2 / (mpp * down), _MOST_PIXELS / 2))
    rows, columns = slide.pixels.shapes[level]

    def seen(place: npt.NDArray[np.float64]) -> Appearance:
        y, x = (int(v) for v in np.rint(place / down))
        window = (max(0, y - half), max(0, x - half), min(y + half, rows), min(x + half, columns))
        return appearance(slide.read(window, level), replace(parameters, mpp=mpp * down))

    looks = []
    for done, (_, look) in enumerate(ahead(seen, chosen), start=1):
        looks.append(look)
        yield "measuring light and stain", done, len(chosen), None
    nuclear = [look for look in looks if np.isfinite(look.nuclear)]
    reds = [look.red for look in looks if any(look.red)]
    r, g, b = (float(v) for v in np.median([look.background for look in looks], axis=0))
    return Appearance(
        (r, g, b),
        float(np.median([look.foreground for look in looks])),
        float(np.median([look.nuclear for look in nuclear])) if nuclear else float("inf"),
        float(np.median([look.darkest for look in nuclear])) if nuclear else 0.0,
        tuple(float(v) for v in np.median(reds, axis=0)) if reds else (0.0, 0.0, 0.0),
        float(parameters.mpp or np.nan),
        "given",
        int(sum(look.n_red_cells for look in looks)),
    )


def _places(film: Film, look: Appearance, everywhere: bool) -> npt.NDArray[np.float64]:
    """Candidates that are worth a look at full resolution, in the order in which tiles lie on disk."""
    if not len(film.peaks) or not np.isfinite(look.nuclear):
        return np.empty((0, 2))
    # The segmentation accepts no nucleus of less than 13 µm² or 1.3 × this level, and smoothing leaves 0.43 of it. It
    # takes one of less than 26 µm² for a platelet unless it has 0.65 of the dye of the darkest, any other below 0.45:
    # smoothing leaves more than 0.27 of the darkest of either.
    kept = film.scores > max(0.5 * look.nuclear, 0.25 * look.darkest)
    if not everywhere:
        kept &= film.kind_at(film.peaks) == 0
    places = film.peaks[kept]
    block = places // 2048
    return places[np.lexsort((places[:, 1], places[:, 0], block[:, 1], block[:, 0]))]


def _box(within: Polygons | None, slide: Slide, margin: float) -> tuple[int, int, int, int] | None:
    if within is None:
        return None
    corners = np.concatenate([np.asarray(polygon, float).reshape(-1, 2) for polygon in within])
    top, left = np.maximum(corners.min(axis=0) - margin, 0)
    bottom, right = np.minimum(corners.max(axis=0) + margin, slide.shape)
    if bottom <= top or right <= left:
        raise ImageError("what was drawn lies outside the slide; draw on it")
    return int(top), int(left), int(np.ceil(bottom)), int(np.ceil(right))


def near(places: npt.NDArray[np.float64], within: Polygons, margin: float) -> npt.NDArray[np.bool_]:
    """Which places lie in one of the polygons; with a margin, in the boxes around them."""
    from skimage.measure import points_in_poly

    inside = np.zeros(len(places), dtype=bool)
    for polygon in within:
        corners = np.asarray(polygon, float).reshape(-1, 2)
        near = ((places >= corners.min(axis=0) - margin) & (places <= corners.max(axis=0) + margin)).all(axis=1)
        if margin == 0 and near.any():
            near[near] = points_in_poly(places[near], corners)
        inside |= near
    return inside


def _region_notes(regions: pd.DataFrame) -> tuple[str, ...]:
    skipped = regions[~regions["used"] & (regions["share"] > 0) & (regions["region"] != "glass")]
    if not len(skipped):
        return ()
    parts = [f"{row['region']} {100 * row['share']:.1f} %" for row in skipped.to_dict("records")]
    return (f"left out: {', '.join(parts)} of the slide",)

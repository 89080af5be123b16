"""Classes for pictures that each show one cell in their middle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .cells import UNIDENTIFIED
from .crop import crop_cells, crop_masks
from .crop_folder import MPP_TEXT
from .segment import SegmentParameters, segment
from .slide import ImageError, Slide

if TYPE_CHECKING:
    from .appearance import Appearance
    from .classifier import Classifier, ModelCard
    from .crop import CropSize

BATCH = 64
# A cell further from the middle is not the one that the crop shows.
REACH_UM = 2.0
# Outside these no light microscope works; a file that claims so is not believed.
PLAUSIBLE_MPP = (0.005, 5.0)

Pair = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class CropResult:
    """The class of one crop, or why there is none.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    name : str
        The class; *unidentified* below the threshold, empty after a failure.
    probability : float
        Of the likeliest class; NaN after a failure.
    probabilities : (k,) float array
        In the order of the model's classes; empty after a failure.
    mpp : float
        Micrometres per pixel that were used.
    scale : str
        Where they are from: ``given``, ``file``, ``red cells`` or, in words, an assumption.
    error : str
        What is wrong with the file and what to do; empty if all went well.
    """

    path: Path
    name: str = ""
    probability: float = float("nan")
    probabilities: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False)
    mpp: float = float("nan")
    scale: str = ""
    error: str = ""


def classify_crops(
    paths: Iterable[str | Path],
    classifier: Classifier,
    mpp: float | None = None,
    *,
    threshold: float | None = None,
) -> Iterator[CropResult]:
    """Classify pictures of single cells.

    Parameters
    ----------
    paths : iterable of str or pathlib.Path
        RGB pictures of any size with one cell in the middle.
    classifier : Classifier
        The model.
    mpp : float, optional
        Micrometres per pixel of all of them. If not given it is taken from
        the file (crops that this package wrote), else from the red cells in
        it, else the crop is taken to show what the model's crops show.
    threshold : float, optional
        Below it a cell is *unidentified*; the model's own if not given.

    Yields
    ------
    CropResult
        One a file, in order; a file that cannot be read has its `error` set.
    """
    limit = classifier.card.threshold if threshold is None else threshold
    remaining = map(Path, paths)
    while paths_of_batch := list(islice(remaining, BATCH)):
        opened = [_open(path, classifier.card, mpp) for path in paths_of_batch]
        pairs = [pair for _, pair in opened if pair is not None]
        probabilities = None
        if pairs:
            crops, masks = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
            probabilities = np.round(classifier.predict(crops, masks).astype(np.float64), 6)
        k = 0
        for result, pair in opened:
            if pair is None or probabilities is None:
                yield result
                continue
            row = probabilities[k]
            k += 1
            top = float(row.max())
            name = classifier.card.classes[int(row.argmax())] if top >= limit else UNIDENTIFIED
            yield CropResult(result.path, name, top, row, result.mpp, result.scale)


def _open(path: Path, card: ModelCard, given: float | None) -> tuple[CropResult, Pair | None]:
    """Read a crop, find the cell in it and cut both to the model's size."""
    try:
        image = Slide.open(path).image
        known, scale = (given, "given") if given is not None else (_written_mpp(path), "file")
        found = segment(image, SegmentParameters(mpp=known))
        if known is None:
            known, scale = _scale(image, found.appearance, card)
        return CropResult(path, mpp=known, scale=scale), central_crop(image, found.labels, known, card.crop)
    except ImageError as error:
        return CropResult(path, error=str(error).removeprefix(f"{path}: ")), None
    except OSError as error:
        return CropResult(path, error=f"cannot be read: {error.strerror or error}"), None
    # A crop that trips over a bug must not cost the results of the others.
    except Exception as error:  # noqa: BLE001
        return CropResult(path, error=f"unexpected {type(error).__name__}: {error}; please report it"), None


def central_crop(
    image: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]], mpp: float, size: CropSize
) -> Pair:
    """Cut the middle of a picture and the mask of the cell there.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
        A picture with the cell in its middle.
    labels : (H, W) integer array
        The cells in it.
    mpp : float
        Micrometres per pixel.
    size : CropSize
        Of the crop.

    Returns
    -------
    crop : (pixels, pixels, 3) uint8 array
    mask : (pixels, pixels) uint8 array
        Zero where no cell lies within `REACH_UM` of the middle.
    """
    # Pixel centres count from 0, so the middle of two pixels is 0.5.
    middle = (np.array([image.shape[:2]], dtype=float) - 1) / 2
    rows, columns = np.nonzero(labels)
    label = 0
    if len(rows):
        distance = np.hypot(rows - middle[0, 0], columns - middle[0, 1])
        if distance.min() * mpp <= REACH_UM:
            label = labels[rows[distance.argmin()], columns[distance.argmin()]]
    masks = crop_masks(labels, np.array([label]), middle, mpp, size)
    return crop_cells(image, middle, mpp, size)[0], masks[0]


def _scale(image: npt.NDArray[np.uint8], look: Appearance, card: ModelCard) -> tuple[float, str]:
    if PLAUSIBLE_MPP[0] <= look.mpp <= PLAUSIBLE_MPP[1]:
        return look.mpp, look.mpp_source if look.mpp_source == "red cells" else f"assumed from the {look.mpp_source}"
    side = card.crop.side_um
    return side / min(image.shape[:2]), f"assumed: the shorter side is {side:g} µm, as in the model's crops"


def _written_mpp(path: Path) -> float | None:
    """Return the scale that `napari_wbc.crop_folder.write_crops` wrote into a PNG."""
    from PIL import Image

    if path.suffix.lower() != ".png":
        return None
    with Image.open(path) as picture:
        text = picture.info.get(MPP_TEXT, "")
    try:
        mpp = float(text)
    except ValueError:
        return None
    return mpp if PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1] else None

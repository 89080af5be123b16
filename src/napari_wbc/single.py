"""Classes for pictures that each show one cell in their middle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .cells import reasons
from .class_names import UNIDENTIFIED
from .crop import crop_cells
from .crop_folder import MPP_TEXT
from .segment import appearance
from .slide import ImageError, Slide

if TYPE_CHECKING:
    from .classifier import Classifier, ModelCard

BATCH = 64
# Outside these no light microscope works; a file that claims so is not believed.
PLAUSIBLE_MPP = (0.005, 5.0)


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
    unlikeness : float
        How unlike the cell is to those that the model knows; NaN after a failure or if it cannot tell.
    reason : str
        Why the cell is unidentified (`napari_wbc.cells.reasons`); empty if it is not.
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
    unlikeness: float = float("nan")
    reason: str = ""
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
        crops = [crop for _, crop in opened if crop is not None]
        told = [np.round(part.astype(np.float64), 6) for part in classifier.judge(np.stack(crops))] if crops else None
        k = 0
        for result, crop in opened:
            if crop is None or told is None:
                yield result
                continue
            row, unlike = told[0][k], told[1][k : k + 1]
            k += 1
            top = float(row.max())
            reason = str(reasons(row.max(keepdims=True), unlike, limit, classifier.card.unlike_above)[0])
            name = UNIDENTIFIED if reason else classifier.card.classes[int(row.argmax())]
            yield replace(
                result, name=name, probability=top, probabilities=row, unlikeness=float(unlike[0]), reason=reason
            )


def _open(path: Path, card: ModelCard, given: float | None) -> tuple[CropResult, npt.NDArray[np.uint8] | None]:
    """Read a crop and cut it to the model's size."""
    try:
        image = Slide.open(path).image
        if card.crop.cells:
            mpp, scale = (
                card.crop.side_um / max(image.shape[:2]),
                "not used: the model takes the whole picture of a cell",
            )
        else:
            mpp, scale = find_scale(path, image, card.crop.side_um, given)
        # Pixel centres count from 0, so the middle of two pixels is 0.5.
        middle = (np.array([image.shape[:2]], dtype=float) - 1) / 2
        return CropResult(path, mpp=mpp, scale=scale), crop_cells(image, middle, mpp, card.crop)[0]
    except ImageError as error:
        return CropResult(path, error=str(error).removeprefix(f"{path}: ")), None
    except OSError as error:
        return CropResult(path, error=f"cannot be read: {error.strerror or error}"), None
    # A crop that trips over a bug must not cost the results of the others.
    except Exception as error:  # noqa: BLE001
        return CropResult(path, error=f"unexpected {type(error).__name__}: {error}; please report it"), None


def find_scale(
    path: Path, image: npt.NDArray[np.uint8], side_um: float, given: float | None = None
) -> tuple[float, str]:
    """Micrometres per pixel of a picture of one cell, and where they are from.

    Parameters
    ----------
    path : pathlib.Path
        The file, which may say its scale.
    image : (H, W, 3) uint8 array
        What it shows.
    side_um : float
        Side of the model's crops, which the picture is taken to show if nothing else is known.
    given : float, optional
        What the user says.
    """
    if given is not None:
        return given, "given"
    written = _written_mpp(path)
    if written is not None:
        return written, "file"
    look = appearance(image)
    if PLAUSIBLE_MPP[0] <= look.mpp <= PLAUSIBLE_MPP[1]:
        return look.mpp, look.mpp_source if look.mpp_source == "red cells" else f"assumed from the {look.mpp_source}"
    return side_um / min(image.shape[:2]), f"assumed: the shorter side is {side_um:g} µm, as in the model's crops"


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

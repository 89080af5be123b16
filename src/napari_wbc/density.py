"""How many cells lie where on a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .cells import Cells

if TYPE_CHECKING:
    from PIL import Image

SQUARE_UM = 250.0


def density(cells: Cells, shape: tuple[int, int], mpp: float) -> tuple[npt.NDArray[np.float32], float]:
    """Count cells in squares of 250 µm.

    Parameters
    ----------
    cells : Cells
    shape : (int, int)
        Rows and columns of the slide.
    mpp : float
        µm per pixel; where it is NaN the longer side has 50 squares, and nothing can be said per mm².

    Returns
    -------
    (rows, columns) float32 array
        Cells per mm² of each square; NaN without a scale.
    float
        Side of a square, pixels.
    """
    side = SQUARE_UM / mpp if np.isfinite(mpp) else max(shape) / 50
    edges = [np.arange(max(1, int(np.ceil(n / side))) + 1) * side for n in shape]
    counts = np.histogram2d(cells.table["centroid-0"], cells.table["centroid-1"], bins=edges)[0]
    return np.asarray(counts / (side * mpp / 1000) ** 2, np.float32), side


def density_map(image: npt.NDArray[np.uint8], per_mm2: npt.NDArray[np.float32], step: float) -> Image.Image:
    """Lay the density of cells over the thumbnail of a slide.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
        The thumbnail.
    per_mm2 : (rows, columns) float32 array
        As `density` gives it.
    step : float
        Side of a square, pixels of the thumbnail.
    """
    import matplotlib as mpl
    from PIL import Image, ImageDraw

    from .picture import typeface

    highest = float(np.nan_to_num(per_mm2).max(initial=0))
    share = np.nan_to_num(per_mm2) / max(highest, 1e-9)
    rows, columns = (
        np.minimum(np.arange(n) // step, m - 1).astype(int) for n, m in zip(image.shape[:2], per_mm2.shape, strict=True)
    )
    paint = mpl.colormaps["magma"](share[rows][:, columns])[..., :3] * 255
    weight = np.where(share[rows][:, columns] > 0, 0.6, 0.0)[..., None]
    picture = Image.fromarray(((1 - weight) * image + weight * paint).astype(np.uint8))
    font = typeface(max(12.0, picture.height / 40), bold=True)
    text = f"brightest: {highest:.0f} cells per mm²; a square is {SQUARE_UM:g} µm"
    ImageDraw.Draw(picture).text((8, 8), text, fill="#1c2430", font=font, stroke_width=2, stroke_fill="#ffffff")
    return picture

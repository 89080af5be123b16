"""Cells of each class to compare with, all at one scale; from a published set, licence in NOTICE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent / "reference_cells"
SIDE_UM = 24.0
"""Side of the square that each shows."""
SOURCE = "Acevedo et al., Data in Brief 30:105474, 2020, CC BY 4.0"


def reference_cells(name: str) -> npt.NDArray[np.uint8]:
    """Return reference cells of a class.

    Parameters
    ----------
    name : str
        The class.

    Returns
    -------
    (n, side, side, 3) uint8 array
        Squares of `SIDE_UM`; none for a class without.
    """
    path = FOLDER / f"{name.replace(' ', '_')}.jpg"
    # Names of classes come from files of the user: only those of the folder are looked up.
    if path not in FOLDER.glob("*.jpg"):
        return np.empty((0, 1, 1, 3), np.uint8)
    from PIL import Image

    with Image.open(path) as picture:
        strip = np.asarray(picture.convert("RGB"))
    side = strip.shape[0]
    return strip.reshape(side, -1, side, 3).swapaxes(0, 1)

"""Small whole slides in every format, of real fields, written by the benchmark's own writer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
from pictures import FIELDS
from PIL import Image

MPP = 0.0725
FORMATS = ("slide.tif", "slide.svs", "slide.ome.tif", "old.ome.zarr", "new.ome.zarr")


def _writer():
    path = Path(__file__).parents[1] / "benchmarks/make_slide.py"
    spec = importlib.util.spec_from_file_location("make_slide", path)
    sys.modules["make_slide"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Mosaic:
    """Fields side by side; what `benchmarks/make_slide.py` asks of a smear."""

    def __init__(self, image: np.ndarray, mpp: float = MPP, tile: int = 256) -> None:
        self.image, self.mpp, self.tile, self.truth = image, mpp, tile, []
        self.height, self.width = image.shape[:2]

    def strip(self, top: int, bottom: int) -> np.ndarray:
        return self.image[top:bottom]


def mosaic(rows: int = 2, columns: int = 2) -> np.ndarray:
    """The first fields of the tests, row by row; the first four hold seven white cells."""
    fields = [np.asarray(Image.open(FIELDS[k % len(FIELDS)])) for k in range(rows * columns)]
    return np.concatenate([np.concatenate(fields[r * columns : (r + 1) * columns], axis=1) for r in range(rows)])


def write(path: Path, image: np.ndarray, mpp: float = MPP, factor: int = 4) -> Path:
    """Write a slide in the format of its name."""
    ngff = "0.4" if path.name.startswith("old") else "0.5"
    _writer().write_slide(path, Mosaic(image, mpp), factor=factor, quality=92, ngff=ngff)
    return path

"""Show the cells of bccd that the recipe of the shipped model leaves out, because they do not look like their label.

    python benchmarks/doubtful.py --data DATA -o docs/images/doubtful.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from napari_wbc.crop import CropSize, crop_cells
from napari_wbc.pipeline import analyse, crop_scale, run
from napari_wbc.recipe import load_recipe
from napari_wbc.slide import Slide

SIZE = CropSize(19.2, 120)
COLUMNS = 9


def cell_of(path: Path) -> np.ndarray:
    """The largest cell of a field."""
    found = run(analyse(Slide.open(path)))
    largest = found.cells.table["area"].to_numpy().argmax()
    scale = crop_scale(found.appearance, found.cells)
    return crop_cells(found.slide.image, found.cells.centroids[[largest]], scale, SIZE)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    left_out = next(entry["leave_out"] for entry in load_recipe("wbc8").also if entry["name"] == "bccd")
    cells = [cell_of(arguments.data / "bccd/images" / name) for name in left_out]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % COLUMNS)
    rows = [np.concatenate(cells[k : k + COLUMNS], 1) for k in range(0, len(cells), COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(arguments.output, quality=88)


if __name__ == "__main__":
    main()

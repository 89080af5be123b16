"""Write the reference cells of the gallery: a strip of crops a class, from single cells of the PBC set.

Run ``python benchmarks/make_reference_cells.py --data DATA``; DATA holds ``pbc/train/<class>/*.jpg``. Cells are those
that the shipped model is surest of among 60 of each class, at most one a group of copies.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from napari_wbc.classifier import Classifier
from napari_wbc.crop import CropSize, crop_cells
from napari_wbc.reference_cells import FOLDER, SIDE_UM
from napari_wbc.slide import Slide

MPP, PIXELS, A_CLASS = 0.145, 112, 6
NAMES = {"ig": "immature granulocyte"}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    classifier = Classifier.load(device="cpu")
    FOLDER.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for folder in sorted((options.data / "pbc/train").iterdir()):
        name = NAMES.get(folder.name, folder.name)
        files = sorted(folder.iterdir())
        files = [files[k] for k in rng.choice(len(files), 60, replace=False)]
        pictures = [Slide.open(file).image for file in files]
        middles = [np.array([[(n - 1) / 2 for n in picture.shape[:2]]]) for picture in pictures]
        size = classifier.card.crop
        judged = np.concatenate([crop_cells(p, m, MPP, size) for p, m in zip(pictures, middles, strict=True)])
        sure = classifier.judge(judged)[0][:, classifier.card.classes.index(name)]
        best = np.argsort(-sure)[:A_CLASS]
        crops = [crop_cells(pictures[k], middles[k], MPP, CropSize(SIDE_UM, PIXELS))[0] for k in best]
        target = FOLDER / f"{name.replace(' ', '_')}.jpg"
        Image.fromarray(np.concatenate(crops, axis=1)).save(target, quality=82, optimize=True)
        print(f"{name}: {target.stat().st_size} bytes, least sure {sure[best].min():.3f}")

"""Small real pictures for all tests, and one loaded model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from pictures import CROPS, DATA, PBC_MPP

os.environ.setdefault("NAPARI_WBC_OPENVINO", "0")  # torch is the reference; its tests take the other engine

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of full data sets; skip where it is not there."""
    folder = HERE.parents[1] / "shared/data"
    if not folder.is_dir():
        pytest.skip("the full data sets are not here; see docs/quality.md for their sources")
    return folder


@pytest.fixture(scope="session")
def classifier():
    """Return the shipped model on the CPU."""
    from napari_wbc.classifier import Classifier

    return Classifier.load(device="cpu")


@pytest.fixture
def field() -> Path:
    """Return a field with two white cells."""
    return DATA / "fields/BloodImage_00070.jpg"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder with three classes of three real cells."""
    for name in ("eosinophil", "lymphocyte", "neutrophil"):
        shutil.copytree(DATA / "crops" / name, tmp_path / "cells" / name)
    return tmp_path / "cells"


@pytest.fixture(scope="session")
def annotated(classifier, tmp_path_factory) -> Path:
    """Return a folder with a run of the command line: one good picture, and one that failed."""
    from typer.testing import CliRunner

    from napari_wbc._sample_data import samples
    from napari_wbc.cli import app

    folder = tmp_path_factory.mktemp("annotated")
    nine = next(sample.path for sample in samples() if sample.key == "nine_fields")
    shutil.copy(nine, folder / "nine.jpg")
    (folder / "cut.jpg").write_bytes(nine.read_bytes()[:3000])
    pictures = [str(folder / name) for name in ("nine.jpg", "cut.jpg")]
    assert CliRunner().invoke(app, ["annotate", *pictures, "-o", str(folder / "r")]).exit_code == 3
    return folder


@pytest.fixture
def case(annotated, tmp_path: Path) -> Path:
    """Return a copy of it; the results say where the picture was before."""
    shutil.copytree(annotated, tmp_path / "case")
    return tmp_path / "case"


@pytest.fixture(autouse=True)
def _models_of_their_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep models that tests train out of the user's list."""
    monkeypatch.setenv("NAPARI_WBC_MODELS", str(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="session")
def real_crops(classifier):
    """Return the test cells as the shipped model takes them."""
    import numpy as np
    from PIL import Image

    from napari_wbc.crop import crop_cells

    crops = []
    for path in CROPS:
        image = np.asarray(Image.open(path).convert("RGB"))
        crops.append(crop_cells(image, (np.array([image.shape[:2]]) - 1) / 2, PBC_MPP, classifier.card.crop)[0])
    return np.stack(crops)

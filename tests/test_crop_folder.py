"""Crops on disk: replaced only where they are ours and nobody touched them."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from napari_wbc.atomic import ExportError
from napari_wbc.cells import Cells, measure
from napari_wbc.crop_folder import check_crop_folder, holds_crops, write_crops


def test_crops_go_to_a_folder_a_class(tmp_path):
    labels = np.zeros((20, 30), int)
    labels[2:6, 3:9] = 1
    tables = [measure(labels, slide=name).table for name in ("a.png", "a.jpg", "../b.png")]
    table = pd.concat(tables, ignore_index=True)
    table["class"] = ["neutrophil", "neutrophil", ""]
    crops = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    folder = write_crops(crops, Cells(table), tmp_path / "crops", mpp=0.3)
    files = ["neutrophil/a_1.png", "neutrophil/a_1_2.png", "unclassified/_b_1.png"]
    saved = pd.read_csv(folder / "crops.csv", keep_default_na=False)
    assert saved["file"].tolist() == files
    assert saved["class"].tolist() == ["neutrophil", "neutrophil", ""]
    assert saved["slide"].tolist() == ["a.png", "a.jpg", "../b.png"]
    for file, crop in zip(files, crops, strict=True):
        with Image.open(folder / file) as picture:
            np.testing.assert_array_equal(np.asarray(picture), crop)
            assert picture.info["napari-wbc:mpp"] == "0.3"
            assert picture.info["dpi"] == pytest.approx((25400 / 0.3,) * 2, rel=1e-6)
    write_crops(crops[:1], Cells(table[:1]), folder)
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == ["crops.csv", "neutrophil/a_1.png"]
    with pytest.raises(ExportError, match="3 cells need as many crops, not 1"):
        write_crops(crops[:1], Cells(table), folder)


def labelled(folder):
    """Make a data set of somebody's own: a folder a class."""
    for name in ("neutrophil", "monocyte"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / name / "1.png")
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "table", [None, "file,class\n", "file,slide,label,centroid-0,class\nmonocyte/1.png,a,1,2,monocyte\n"]
)
def test_a_labelled_data_set_is_never_replaced(table, tmp_path):
    folder = labelled(tmp_path / "data")
    if table is not None:
        (folder / "crops.csv").write_text(table)
    before = contents(folder)
    with pytest.raises(
        ExportError, match=r"data: holds files that are no results.*(monocyte|neutrophil).*choose another folder"
    ):
        check_crop_folder(folder)
    with pytest.raises(ExportError):
        write_crops([], Cells.empty(), folder)
    assert contents(folder) == before


def cells_and_crops():
    labels = np.zeros((20, 30), int)
    labels[2:6, 3:9], labels[10:15, 10:15] = 1, 2
    table = measure(labels, slide="a.png").table.assign(**{"class": ["neutrophil", ""]})
    return np.zeros((2, 8, 8, 3), np.uint8), Cells(table)


def test_crops_that_nobody_touched_are_replaced(tmp_path):
    crops, cells = cells_and_crops()
    folder = write_crops(crops, cells, tmp_path / "c")
    assert holds_crops(folder)
    (folder / "Thumbs.db").write_text("")
    (folder / "neutrophil" / ".DS_Store").write_text("")
    write_crops([], Cells.empty(), folder)
    assert [path.name for path in folder.iterdir()] == ["crops.csv"]
    write_crops(crops, cells, folder)


def test_crops_that_somebody_sorted_are_kept(tmp_path):
    def move(folder):
        (folder / "monocyte").mkdir()
        (folder / "neutrophil" / "a_1.png").rename(folder / "monocyte" / "a_1.png")

    def edit(folder):
        text = (folder / "crops.csv").read_text("utf-8")
        (folder / "crops.csv").write_text(text.replace(",neutrophil,", ",monocyte,"), "utf-8")

    def remove(folder):
        (folder / "neutrophil" / "a_1.png").unlink()

    def add(folder):
        shutil.copy(folder / "neutrophil" / "a_1.png", folder / "neutrophil" / "mine.png")

    for n, touch in enumerate((move, edit, remove, add)):
        folder = write_crops(*cells_and_crops(), tmp_path / str(n))
        touch(folder)
        with pytest.raises(ExportError, match="or changed ones"):
            check_crop_folder(folder)

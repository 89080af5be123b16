"""Reading labelled cells, finding what is wrong with them, and splitting them without leaks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from napari_wbc.crop import CropSize
from napari_wbc.dataset import Dataset, DatasetError, read_dataset
from napari_wbc.dataset_pictures import check, cut_cells
from napari_wbc.split import find_copies, folds, make_split

CROPS = Path(__file__).parent / "data/crops"


def test_folders_are_classes(tree: Path) -> None:
    data = read_dataset(tree)
    assert data.classes == ("eosinophil", "lymphocyte", "neutrophil")
    assert len(data) == 9
    assert data.summary().loc["lymphocyte", "all"] == 3


@pytest.mark.parametrize(
    ("row", "problem"),
    [("1,2,,4,", "needs the four numbers"), ("1,2,x,4,", "needs the four numbers"), ("5,2,5,9,", "box is empty"),
     (",,,,9", "mpp is 9, but must be from"), (",,,,x", "mpp is x")],
)  # fmt: skip
def test_a_box_or_scale_that_makes_no_sense_is_a_problem_of_its_cell(tree: Path, row: str, problem: str) -> None:
    files = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.jpg"))
    (tree / "labels.csv").write_text(
        f"file,class,x0,y0,x1,y1,mpp\n{files[0]},a,{row}\n{files[1]},b,1,2,30,40,0.1\n{files[2]},,,,,,\n"
    )
    data = read_dataset(tree)
    assert data.table["class"].tolist() == ["b"]
    assert data.table.loc[0, ["x0", "y0", "x1", "y1", "mpp"]].tolist() == [1, 2, 30, 40, 0.1]
    (first, said), (_, none) = data.problems
    assert first == files[0]
    assert problem in said
    assert none == "no class"


def test_folders_of_splits(tmp_path: Path, tree: Path) -> None:
    for split in ("train", "valid"):
        shutil.copytree(tree, tmp_path / "data" / split)
    data = read_dataset(tmp_path / "data")
    assert set(data.table["split"]) == {"train", "val"}


def test_csv_with_groups_and_missing_files(tmp_path: Path, tree: Path) -> None:
    files = [p.relative_to(tree).as_posix() for p in sorted(tree.rglob("*.jpg"))]
    table = pd.DataFrame({"file": [*files, "none.jpg"], "class": [f.split("/")[0] for f in files] + ["neutrophil"]})
    table["group"] = ["a", "a", "b"] * 3 + ["c"]
    table.to_csv(tree / "mine.csv", index=False)
    data = read_dataset(tree / "mine.csv")
    assert len(data) == 9
    assert data.problems == (("none.jpg", "no such file"),)
    assert set(data.table["group"]) == {"a", "b"}


def test_csv_without_the_columns(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("picture,label\na.png,b\n")
    with pytest.raises(DatasetError, match="'file', 'class' is missing; it has 'picture', 'label'"):
        read_dataset(tmp_path / "bad.csv")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no labelled picture"):
        read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="no such file"):
        read_dataset(tmp_path / "gone")


def test_class_names_are_kept_as_they_are(tmp_path: Path) -> None:
    for name in ("=1+1", "Größe µ", "a b"):
        (tmp_path / name).mkdir()
        shutil.copy(CROPS / "lymphocyte/LY_100275.jpg", tmp_path / name)
    (tmp_path / "t.csv").write_text("file,class\n" + "=1+1/LY_100275.jpg,with/slash\n", encoding="utf-8")
    assert set(read_dataset(tmp_path).classes) == {"=1+1", "Größe µ", "a b"}
    assert read_dataset(tmp_path / "t.csv").classes == ("with/slash",)


def test_damaged_pictures_and_copies_are_left_out(tree: Path) -> None:
    (tree / "lymphocyte/empty.png").touch()
    (tree / "lymphocyte/text.png").write_text("not a picture")
    (tree / "lymphocyte/cut.jpg").write_bytes((tree / "lymphocyte/LY_100275.jpg").read_bytes()[:2000])
    Image.new("L", (40, 40), 9).save(tree / "lymphocyte/grey.png")
    shutil.copy(tree / "eosinophil/EO_106437.jpg", tree / "eosinophil/again.jpg")
    shutil.copy(tree / "neutrophil/" / next((tree / "neutrophil").iterdir()).name, tree / "lymphocyte/other.jpg")
    found = check(read_dataset(tree))
    told = {Path(file).name: text for file, text in found.dataset.problems}
    assert "empty" in told["empty.png"]
    assert told["text.png"]
    assert told["cut.jpg"]
    assert told["grey.png"]
    # One of the two equal pictures of one class stays; of two in different classes neither does.
    assert len(found.dataset.table[found.dataset.table["class"] == "eosinophil"]) == 3
    assert len(found.dataset.table[found.dataset.table["class"] == "neutrophil"]) == 2
    assert any("both are left out" in text for text in told.values())


def test_turned_and_mirrored_copies_share_a_unit(tree: Path) -> None:
    original = Image.open(tree / "eosinophil/EO_106437.jpg")
    original.transpose(Image.Transpose.ROTATE_90).save(tree / "eosinophil/turned.jpg", quality=80)
    original.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((200, 200)).save(tree / "eosinophil/mirrored.png")
    found = check(read_dataset(tree))
    unit, copies, groups = find_copies(found)
    names = [Path(f).stem for f in found.dataset.table["file"]]
    same = {unit[names.index(name)] for name in ("EO_106437", "turned", "mirrored")}
    assert len(same) == 1
    assert copies == 3
    assert groups == 0
    assert len(set(unit)) == 9


def many(tmp_path: Path, n: int = 24, groups: int = 6) -> Dataset:
    """Different noisy pictures of two classes, of some slides."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(n):
        file = tmp_path / f"{k}.png"
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(file)
        rows.append({"file": str(file), "class": "ab"[k % 2], "group": f"slide {k % groups}"})
    return Dataset("many", pd.DataFrame(rows))


def test_groups_never_cross_a_split(tmp_path: Path) -> None:
    found = check(many(tmp_path))
    split = make_split(found, val=0.3, test=0.2, seed=3)
    assert split.kind == "grouped"
    assert split.leaks == 0
    assert {"train", "val", "test"} == set(split.part)
    slides = pd.Series(split.part).groupby(split.dataset.table["group"]).nunique()
    assert (slides == 1).all()
    again = make_split(found, val=0.3, test=0.2, seed=3)
    assert (again.part == split.part).all()


def test_a_random_split_says_how_much_it_leaks(tmp_path: Path) -> None:
    split = make_split(check(many(tmp_path)), kind="random", val=0.3)
    assert split.leaks > 0
    assert f"LEAKS: {split.leaks} of {(split.part != 'train').sum()}" in " ".join(split.notes)


def test_a_saved_split_gives_the_same_parts(tmp_path: Path) -> None:
    found = check(many(tmp_path))
    split = make_split(found, seed=1)
    split.table().to_csv(tmp_path / "split.csv", index=False)
    again = make_split(found, file=tmp_path / "split.csv")
    assert (again.part == split.part).all()
    (tmp_path / "split.csv").write_text("file,split\nother.png,train\n")
    with pytest.raises(DatasetError, match="have no part"):
        make_split(found, file=tmp_path / "split.csv")


def test_folds_keep_groups_together_and_need_enough_of_them(tmp_path: Path) -> None:
    split = make_split(check(many(tmp_path, groups=6)), val=0.3)
    parts = folds(split, 3)
    assert len(parts) == 3
    assert all(fold.leaks == 0 for fold in parts)
    held = np.concatenate([fold.rows("val") for fold in parts])
    assert sorted(held) == list(range(24))
    with pytest.raises(DatasetError, match="folds need"):
        folds(split, 7)


def test_one_class_and_a_class_of_one_picture(tmp_path: Path, tree: Path) -> None:
    for name in ("eosinophil", "neutrophil"):
        shutil.rmtree(tree / name)
    with pytest.raises(DatasetError, match="only one class, 'lymphocyte'"):
        make_split(check(read_dataset(tree)))
    (tree / "rare").mkdir()
    shutil.copy(CROPS / "basophil/BA_101381.jpg", tree / "rare")
    with pytest.raises(DatasetError, match="'rare'"):
        make_split(check(read_dataset(tree)))


def test_cells_are_cut_at_the_given_scale(tree: Path, tmp_path: Path) -> None:
    data = read_dataset(tree)
    size, stored = CropSize(20.0, 40), CropSize(30.0, 60)
    small = cut_cells(data, size, mpp=0.145)
    large = cut_cells(data, size, tmp_path / "crops.npy", stored=stored, mpp=0.145)
    assert small.shape == (9, 40, 40, 3)
    assert large.shape == (9, 60, 60, 3)
    # The middle of what is stored is what the network sees.
    assert np.abs(large[:, 10:50, 10:50].astype(float) - small).mean() < 1
    assert (cut_cells(data, size, tmp_path / "crops.npy", stored=stored, mpp=0.145) == large).all()


def test_boxes_and_masks(shared_data: Path) -> None:
    boxes = read_dataset(shared_data / "bccd")
    assert len(boxes) == 341
    assert boxes.table["x0"].notna().all()
    masks = read_dataset(shared_data / "segmentation_wbc/dataset2")
    assert len(masks) == 100
    crops = cut_cells(Dataset("few", masks.table.head(2).copy()), CropSize(20, 48, 1.3))
    assert crops.shape == (2, 48, 48, 3)


def test_boxes_with_entities_are_refused(tmp_path: Path) -> None:
    for name in ("images", "annotations"):
        (tmp_path / name).mkdir()
    shutil.copy(CROPS / "lymphocyte/LY_100275.jpg", tmp_path / "images/a.jpg")
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation><object><name>&b;</name></object></annotation>'
    (tmp_path / "annotations/a.xml").write_text(bomb)
    (tmp_path / "labels.csv").write_text("image,types\na.jpg,lymphocyte\n")
    with pytest.raises(DatasetError, match="entities"):
        read_dataset(tmp_path)

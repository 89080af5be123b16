"""Results for other programs: COCO, QuPath and folders of crops, with the class that counts."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from napari_wbc.cli import app
from napari_wbc.dataset import read_dataset
from napari_wbc.export import read_results
from napari_wbc.review_session import ReviewSession


@pytest.fixture
def reviewed(case) -> Path:
    """Results in which two neutrophils became something else."""
    session = ReviewSession.open(case / "r/nine")
    table = session.cells.table
    first, second = table.loc[table["class"] == "neutrophil", "label"].tolist()[:2]
    session.decide([first], "monocyte", "A. Reader")
    session.decide([second], "smudge", "A. Reader")
    return case / "r/nine"


def call(*arguments, code=0):
    out = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert out.exit_code == code, out.output
    return out.output.replace("\n", " ")


def test_coco_is_what_pycocotools_reads(reviewed, tmp_path):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    call(reviewed, "-o", tmp_path / "x.json")
    data = coco.COCO(tmp_path / "x.json")
    results = read_results(reviewed)
    (image,) = data.loadImgs(data.getImgIds())
    assert (image["file_name"], image["height"], image["width"]) == ("nine.jpg", *results.labels.shape)
    names = {row["id"]: row for row in data.loadCats(data.getCatIds())}
    assert {row["name"]: row["supercategory"] for row in names.values()} | {
        "monocyte": "white cell", "smudge": "smudge", "erythroblast": "erythroblast", "platelet": "platelet",
    } == {row["name"]: row["supercategory"] for row in names.values()}  # fmt: skip
    found = data.loadAnns(data.getAnnIds())
    assert len(found) == len(results.cells)
    for annotation, row in zip(found, results.cells.table.to_dict("records"), strict=True):
        assert names[annotation["category_id"]]["name"] == row["class"]
        assert annotation["iscrowd"] == 0
        assert annotation["area"] == row["area"]
        top, left, bottom, right = (row[f"bbox-{k}"] for k in range(4))
        assert annotation["bbox"] == [left, top, right - left, bottom - top]
        drawn, own = data.annToMask(annotation) > 0, results.labels == row["label"]
        assert (drawn & own).sum() / (drawn | own).sum() > 0.97
    changed = [a["attributes"] for a in found if a["attributes"].get("class_reviewed")]
    assert [a["class_model"] for a in changed] == ["neutrophil", "neutrophil"]


def test_qupath_finds_class_colour_and_measurements(reviewed, tmp_path):
    """The form of qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html and its GeoJSON."""
    call(reviewed, "-o", tmp_path / "x.geojson")
    data = json.loads((tmp_path / "x.geojson").read_text("utf-8"))
    table = read_results(reviewed).cells.table
    assert data["type"] == "FeatureCollection"
    assert len(data["features"]) == len(table)
    for feature, row in zip(data["features"], table.to_dict("records"), strict=True):
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        (ring,) = feature["geometry"]["coordinates"]
        assert feature["geometry"]["type"] == "Polygon"
        assert ring[0] == ring[-1]
        assert len(ring) > 8
        own = feature["properties"]
        assert own["objectType"] == "detection"
        assert own["classification"]["name"] == row["class"]
        assert len(own["classification"]["color"]) == 3
        assert all(isinstance(v, int) and 0 <= v <= 255 for v in own["classification"]["color"])
        assert all(isinstance(v, int | float) for v in own["measurements"].values())
        assert own["measurements"]["area"] == row["area"]
    assert {"monocyte", "smudge"} <= {f["properties"]["classification"]["name"] for f in data["features"]}


def test_corrected_crops_are_what_train_reads(reviewed, tmp_path):
    said = call(reviewed, "-o", tmp_path / "crops")
    table = read_results(reviewed).cells.table
    assert f"{len(table)} cells of 1 picture" in said
    read = read_dataset(tmp_path / "crops")
    expected = table.loc[table["class"] != "unidentified", "class"].value_counts().to_dict()
    assert read.table["class"].value_counts().to_dict() == expected
    assert set(read.table["group"]) == {"nine.jpg"}
    assert Image.open(read.table["file"][0]).size == (128, 128)
    assert pd.read_csv(tmp_path / "crops/crops.csv")["class_model"].tolist() == table["class_model"].tolist()
    call(reviewed, "-o", tmp_path / "some", "--reviewed", "--pixels", 64)
    some = read_dataset(tmp_path / "some")
    assert sorted(some.table["class"]) == ["monocyte", "smudge"]
    assert Image.open(some.table["file"][0]).size == (64, 64)


def test_an_added_point_has_no_place_in_coco(reviewed, tmp_path):
    table = read_results(reviewed).cells.table
    point = table.iloc[[0]].assign(label=999, **{f"bbox-{k}": 5 for k in range(4)}, mpp=np.nan)
    shutil.copytree(
        reviewed, tmp_path / "r", ignore=shutil.ignore_patterns("decisions*", "*before*", ".*", "*.parquet")
    )
    pd.concat([table, point]).to_csv(tmp_path / "r/cells.csv", index=False)
    assert "Note: 1 cells without outline or scale are left out" in call(tmp_path / "r", "-o", tmp_path / "x.json")
    assert "Note: 1 cells" in call(tmp_path / "r", "-o", tmp_path / "crops")


def test_what_cannot_be_exported_is_named(reviewed, tmp_path):
    assert "ends in .geojson (QuPath) or .json (COCO)" in call(reviewed, "-o", tmp_path / "x.xml", code=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x.txt").write_text("x")
    assert "holds files" in call(reviewed, "-o", tmp_path / "mine", code=1)
    assert "no such folder" in call(tmp_path / "none", "-o", tmp_path / "x.json", code=1)

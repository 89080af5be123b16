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


# What QuPath 0.4 and later writes, and reads, of a detection: PathObjectTypeAdapter and ROITypeAdapters in
# qupath-core/src/main/java/qupath/lib/io, after docs/advanced/exporting_annotations of qupath-docs.
FEATURE = {"type", "id", "geometry", "properties"}
PROPERTIES = {"objectType", "name", "color", "classification", "isLocked", "measurements", "metadata", "childObjects"}
OURS = {"cell"}


def ring_is_closed(ring) -> bool:
    """Whether a ring is one after RFC 7946, 3.1.6: four positions or more, the last is the first."""
    return len(ring) >= 4 and ring[0] == ring[-1] and all(len(position) == 2 for position in ring)


def test_geojson_has_the_form_that_qupath_documents(reviewed, tmp_path):
    call(reviewed, "-o", tmp_path / "x.geojson")
    data = json.loads((tmp_path / "x.geojson").read_text("utf-8"), parse_constant=pytest.fail)
    table = read_results(reviewed).cells.table
    assert (data["type"], set(data)) == ("FeatureCollection", {"type", "features", "napari-wbc"})
    assert len(data["features"]) == len(table) == len({feature["id"] for feature in data["features"]})
    for feature, row in zip(data["features"], table.to_dict("records"), strict=True):
        assert (feature["type"], set(feature)) == ("Feature", FEATURE)
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        own, shape = feature["properties"], feature["geometry"]
        assert set(own) - OURS <= PROPERTIES
        # Without it an object becomes an annotation; an older key, ``type``, would be taken for it.
        assert own["objectType"] == "detection"
        assert isinstance(own["name"], str)
        assert set(own["classification"]) == {"name", "color"}
        assert own["classification"]["name"] == row["class"]
        assert len(own["classification"]["color"]) == 3
        assert all(type(value) is int and 0 <= value <= 255 for value in own["classification"]["color"])
        # Gson reads them as a map of text to Double: nothing else, and nothing missing.
        assert all(type(value) in (int, float) and np.isfinite(value) for value in own["measurements"].values())
        assert {"area", "probability", "p_neutrophil"} <= own["measurements"].keys()
        assert own["measurements"]["area"] == row["area"]
        assert set(shape) == {"type", "coordinates"}
        parts = {"Polygon": [shape["coordinates"]], "MultiPolygon": shape["coordinates"]}[shape["type"]]
        assert all(ring_is_closed(ring) for part in parts for ring in part)
        x, y = np.array([position for part in parts for ring in part for position in ring]).T
        # (x, y) from the corner of the first pixel: the box of the outline is that of the cell.
        assert [y.min(), x.min(), y.max(), x.max()] == [row[f"bbox-{k}"] for k in range(4)]
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
    assert "Note: left out, without outline or scale: 1 cell " in call(tmp_path / "r", "-o", tmp_path / "x.json")
    assert "scale: 1 cell " in call(tmp_path / "r", "-o", tmp_path / "crops")


def test_what_cannot_be_exported_is_named(reviewed, tmp_path):
    assert "ends in .geojson (QuPath) or .json (COCO)" in call(reviewed, "-o", tmp_path / "x.xml", code=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x.txt").write_text("x")
    assert "holds files" in call(reviewed, "-o", tmp_path / "mine", code=1)
    assert "no such file" in call(tmp_path / "none", "-o", tmp_path / "x.json", code=2)

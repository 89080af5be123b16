"""Results into napari's layers, corrected there, and back to files: nothing is lost."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from napari_wbc import _reader
from napari_wbc._reader import get_reader
from napari_wbc._sample_data import samples
from napari_wbc._writer import write_layers, write_points
from napari_wbc.atomic import ExportError
from napari_wbc.cells import Cells, CellsError, measure
from napari_wbc.count import differential
from napari_wbc.export import RESULT_FILES, read_cells, read_results, write_cells, write_folder, write_results
from napari_wbc.pipeline import analyse, run
from napari_wbc.slide import Slide

PATH = next(sample.path for sample in samples() if sample.key == "smear_neutrophil_monocyte")


@pytest.fixture(scope="module")
def analysis(classifier):
    return run(analyse(Slide.open(PATH), classifier))


@pytest.fixture
def folder(analysis, tmp_path):
    return write_results(analysis, tmp_path / "field")


def viewer_of(layers):
    """Put what a reader gave into napari's own model of a viewer."""
    from napari.components import ViewerModel
    from napari.layers import Layer

    viewer = ViewerModel()
    for layer in layers:
        viewer.add_layer(layer if isinstance(layer, Layer) else Layer.create(*layer))
    return viewer


def tuples(layers):
    return [layer if isinstance(layer, tuple) else layer.as_layer_data_tuple() for layer in layers]


def by_kind(layers):
    return {kind: (data, attributes) for data, attributes, kind in tuples(layers)}


@pytest.mark.parametrize("name", ["", "cells.csv", "cells.parquet", "cells.geojson", "labels.tif"])
def test_a_folder_and_each_of_its_files_opens_the_field(name, folder, analysis):
    path = str(folder / name)
    layers = by_kind(get_reader(path)(path))
    np.testing.assert_array_equal(layers["image"][0], analysis.slide.image)
    np.testing.assert_array_equal(layers["labels"][0], analysis.labels)
    np.testing.assert_array_equal(layers["points"][0], analysis.cells.centroids)
    features = layers["points"][1]["features"]
    assert list(features) == list(analysis.cells.table)
    opened = viewer_of(get_reader(path)(path))
    assert [layer.contour > 0 for layer in opened.layers if type(layer).__name__ == "Labels"] == [True]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".geojson"])
def test_a_table_by_itself_opens_as_points(suffix, analysis, tmp_path):
    path = str(write_cells(analysis.cells, tmp_path / f"my cells{suffix}"))
    layers = by_kind(get_reader(path)(path))
    assert "labels" not in layers
    np.testing.assert_array_equal(layers["points"][0], analysis.cells.centroids)


def test_everything_else_is_left_to_others(tmp_path):
    tifffile.imwrite(tmp_path / "labels.tif", np.zeros((4, 4), np.uint8))
    (tmp_path / "points.csv").write_text("index,axis-0,axis-1\n0,1,2\n")
    (tmp_path / "cells.csv.txt").write_text("slide,label,centroid-0,centroid-1")
    (tmp_path / "x.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    (tmp_path / "empty").mkdir()
    for path in [*tmp_path.iterdir(), tmp_path, tmp_path / "nosuch", "a\0b", "x" * 5000, "https://a.b/c.csv"]:
        assert get_reader(str(path)) is None, path
    assert get_reader(["a.csv", "b.csv"]) is None


def test_a_picture_that_is_gone_or_another_is_not_shown(analysis, tmp_path):
    picture = tmp_path / "p.jpg"
    shutil.copy(PATH, picture)
    folder = str(write_folder(tmp_path / "f", analysis.cells, analysis.labels, picture=picture))
    assert "image" in by_kind(get_reader(folder)(folder))
    Image.new("RGB", (5, 5)).save(picture)
    assert "image" not in by_kind(get_reader(folder)(folder))
    picture.write_bytes(b"")
    assert "image" not in by_kind(get_reader(folder)(folder))
    picture.unlink()
    assert "image" not in by_kind(get_reader(folder)(folder))


def test_a_run_opens_its_fields_up_to_a_sane_number(analysis, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        write_results(analysis, tmp_path / name, files=("cells.csv", "labels.tif"))
    results = ["a", None, "b", "gone", "../../etc", "c"]
    record = {"format": "napari-wbc run", "inputs": [{"result": result} for result in results]}
    (tmp_path / "run.json").write_text(json.dumps(record))
    for path in (str(tmp_path), str(tmp_path / "run.json")):
        names = [attributes["name"] for _, attributes, kind in tuples(get_reader(path)(path)) if kind == "points"]
        assert names == ["a cells", "b cells", "c cells"]
        seen = {attributes["name"]: attributes["visible"] for _, attributes, _ in tuples(get_reader(path)(path))}
        assert {name for name, visible in seen.items() if visible} == {name for name in seen if name[0] == "a"}
    monkeypatch.setattr(_reader, "MAX_FIELDS", 2)
    with pytest.warns(UserWarning, match="the run has 3 pictures; the first 2 are opened"):
        layers = get_reader(path)(path)
    assert [kind for _, _, kind in tuples(layers)].count("points") == 2
    (tmp_path / "run.json").write_text('{"format": "napari-wbc run", "inputs": 3}')
    with pytest.raises(ExportError, match=r"run\.json"):
        get_reader(path)(path)


def test_damaged_results_say_which_file(folder):
    (folder / "cells.csv").write_text("slide,label,centroid-0,centroid-1\nx")
    with pytest.raises(CellsError, match=r"cells\.csv"):
        get_reader(str(folder))(str(folder))


def test_a_corrected_class_survives_the_round_trip(folder, analysis, tmp_path):
    viewer = viewer_of(get_reader(str(folder))(str(folder)))
    points = next(layer for layer in viewer.layers if type(layer).__name__ == "Points")
    labels = next(layer for layer in viewer.layers if type(layer).__name__ == "Labels")
    features = points.features.copy()
    features["class"] = ["basophil", "monocyte"]
    features["seen by"] = ["é", "é"]
    points.features = features
    selected = [labels.as_layer_data_tuple(), points.as_layer_data_tuple()]
    (folder / "annotated.png").write_bytes(b"stale")
    for target in (folder, tmp_path / "new"):
        written = write_layers(str(target), selected)
        assert sorted(written) == sorted(str(target / name) for name in (*RESULT_FILES, "differential.csv"))
        back = read_results(target)
        expected = analysis.cells.table.assign(**{"class": ["basophil", "monocyte"], "seen by": ["é", "é"]})
        assert back.cells == Cells(expected)
        np.testing.assert_array_equal(back.labels, analysis.labels)
        assert back.image == PATH
        for suffix in (".csv", ".parquet", ".geojson"):
            assert read_cells(target / f"cells{suffix}") == back.cells
        counts = pd.read_csv(target / "differential.csv")
        pd.testing.assert_frame_equal(counts, differential(back.cells, PATH.name), check_dtype=False)
        with Image.open(target / "annotated.png") as picture:
            picture.load()
    features = by_kind(get_reader(str(folder))(str(folder)))["points"][1]["features"]
    assert features["class"].tolist() == ["basophil", "monocyte"]


def test_without_the_picture_no_stale_annotation_is_left(analysis, tmp_path):
    folder = write_results(analysis, tmp_path / "f")
    layers = [layer for layer in tuples(get_reader(str(folder))(str(folder))) if layer[2] in ("labels", "points")]
    for _, attributes, _ in layers:
        attributes["metadata"] = {}
    write_layers(str(folder), layers)
    assert not (folder / "annotated.png").exists()
    assert read_results(folder).cells == analysis.cells


def test_a_cell_that_was_deleted_is_gone_from_every_file(folder, analysis, tmp_path):
    layers = by_kind(get_reader(str(folder))(str(folder)))
    points, attributes = layers["points"]
    fewer = {**attributes, "features": attributes["features"][:1]}
    labels = (*layers["labels"], "labels")
    target = tmp_path / "new"
    write_layers(str(target), [labels, (points[:1], fewer, "points")])
    back = read_results(target)
    assert np.unique(back.labels).tolist() == [0, *back.cells.table["label"]]
    assert len(json.loads((target / "cells.geojson").read_text("utf-8"))["features"]) == len(back.cells) == 1
    with pytest.raises(ExportError, match="corrected"):  # what was saved by hand
        write_results(analysis, target)
    write_layers(str(tmp_path / "other"), [labels, (points[:1], {**fewer, "metadata": {}}, "points")])
    np.testing.assert_array_equal(read_results(tmp_path / "other").labels, analysis.labels)


def test_points_alone_and_cells_of_many_slides(tmp_path):
    labels = np.zeros((9, 9), int)
    labels[2:5, 2:5] = 1
    table = pd.concat([measure(labels, slide=name).table for name in ("a", "b")], ignore_index=True)
    table["class"] = ["neutrophil", "platelet"]
    cells = Cells(table)
    write_layers(str(tmp_path / "f"), [(cells.centroids, {"features": cells.table}, "points")])
    names = sorted(p.name for p in (tmp_path / "f").iterdir())
    assert names == ["cells.csv", "cells.geojson", "cells.parquet", "differential.csv"]
    counts = pd.read_csv(tmp_path / "f" / "differential.csv")
    assert counts[["slide", "class", "n"]].to_numpy().tolist() == [
        ["a", "neutrophil", 1], ["a", "unidentified", 0], ["b", "platelet", 1], ["b", "unidentified", 0],
    ]  # fmt: skip
    for suffix in (".csv", ".parquet", ".GeoJSON"):
        (path,) = write_points(str(tmp_path / f"x{suffix}"), cells.centroids, {"features": cells.table})
        assert read_cells(path) == cells


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="select the points layer"):
        write_layers(str(tmp_path / "f"), [(np.zeros((4, 4), int), {}, "labels")])
    cells = Cells.empty()
    with pytest.raises(CellsError):
        write_points(str(tmp_path / "x.csv"), np.zeros((1, 2)), {"features": pd.DataFrame({"a": [1]})})
    points = (cells.centroids, {"features": cells.table}, "points")
    with pytest.raises(ExportError, match="not one field"):
        write_layers(str(tmp_path / "f"), [points, (np.zeros((2, 4, 4), int), {}, "labels")])

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(ExportError, match="disk is full"):
        write_layers(str(tmp_path / "f"), [points, (np.zeros((4, 4), int), {}, "labels")])
    assert list(tmp_path.iterdir()) == []


def test_napari_finds_reader_and_writer_by_the_manifest(folder, tmp_path):
    from npe2 import PluginManifest

    manifest = PluginManifest.from_file(_reader.__file__.replace("_reader.py", "napari.yaml"))
    names = {command.id: command.python_name for command in manifest.contributions.commands}
    assert names["napari-wbc.read_results"] == "napari_wbc._reader:get_reader"
    assert names["napari-wbc.write_results"] == "napari_wbc._writer:write_layers"
    assert names["napari-wbc.write_cells"] == "napari_wbc._writer:write_points"

"""Results on disk: whole or not at all, and nothing lost on the way out and in."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from napari_wbc import export
from napari_wbc._sample_data import samples
from napari_wbc.atomic import ExportError
from napari_wbc.cells import COLUMNS, Cells, CellsError, measure
from napari_wbc.export import read_cells, read_results, write_cells, write_results
from napari_wbc.geojson import outlines
from napari_wbc.pipeline import analyse, run
from napari_wbc.slide import Slide

SUFFIXES = [".csv", ".parquet", ".geojson"]


@pytest.fixture(scope="module")
def analysis(classifier):
    path = next(sample.path for sample in samples() if sample.key == "smear_neutrophil_monocyte")
    return run(analyse(Slide.open(path), classifier))


def make_cells(**extra) -> Cells:
    """Three cells on two slides; the first one's label is far beyond the others'."""
    labels = np.zeros((20, 30), np.int64)
    labels[2:6, 3:9], labels[10:15, 10:15] = 70_000, 3
    cells = measure(labels, slide="a b.png", mpp=0.1).table
    other = measure(labels[:8], slide='ünï, "q"\nNA.png').table
    table = pd.concat([cells, other], ignore_index=True)
    table["class"] = ["not a white cell", "", "NA"]
    table["probability"] = [1 / 3, np.nan, 0.1 + 0.2]
    table["p_not a white cell"] = [1 / 3, np.nan, 1e-17]
    for name, values in extra.items():
        table[name] = values
    return Cells(table)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cells_come_back_as_they_were(suffix, tmp_path):
    cells = make_cells(
        reviewed=[True, False, True],
        note=["µ é 汉", "", None],
        code=["007", "1e", "a,b;\n"],
        count=[1, -2, 2**40],
        ratio=[0.1, np.nan, 1e300],
        nothing=[np.nan] * 3,
        blank=[""] * 3,
        limit=[np.inf, -np.inf, 1.0],
    )
    path = write_cells(cells, tmp_path / f"x{suffix}")
    back = read_cells(path)
    pd.testing.assert_frame_equal(back.table, cells.table)
    assert back == cells
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_cells_are_a_legal_table(suffix, tmp_path):
    cells = Cells.empty(["neutrophil", "platelet"])
    back = read_cells(write_cells(cells, tmp_path / f"x{suffix}"))
    assert back.table.columns.tolist() == [*COLUMNS, "p_neutrophil", "p_platelet"]
    assert len(back) == 0


def test_a_csv_that_a_spreadsheet_saved_is_read(tmp_path):
    cells = make_cells()
    text = write_cells(cells, tmp_path / "x.csv").read_text("utf-8")
    (tmp_path / "y.csv").write_text("\ufeff" + text.replace("True", "TRUE").replace("False", "FALSE"), "utf-8")
    assert read_cells(tmp_path / "y.csv") == cells


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_table_that_is_cut_short_is_named(suffix, share, tmp_path):
    path = write_cells(make_cells(), tmp_path / f"x{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CellsError, match=f"x{suffix}.*not a table of cells"):
        read_cells(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "a,b\n1,2\n", "lacks the columns slide"),
        ("x.csv", "\0\0\0", "not a table"),
        ("x.csv", "slide;label\n1;2\n", "semicolons"),
        ("x.geojson", "[" * 100_000, "not JSON"),
        ("x.geojson", "nonsense", "not JSON"),
        ("x.geojson", "[]", "not GeoJSON that napari-wbc wrote"),
        ("x.geojson", '{"type": "FeatureCollection", "features": []}', "not GeoJSON that napari-wbc wrote"),
        ("x.geojson", '{"napari-wbc": {"columns": {"a": "O"}}, "features": [3]}', "not GeoJSON that napari-wbc wrote"),
        ("x.parquet", "PAR1 nonsense PAR1", "not Parquet"),
    ],
)
def test_what_is_no_table_of_cells_is_named(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(CellsError, match=message) as caught:
        read_cells(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value"),
    [("label", "9" * 30), ("label", "x"), ("centroid-0", "1e999"), ("at_border", "perhaps"), ("probability", "7")],
)
def test_values_that_make_no_sense_are_refused(column, value, tmp_path):
    path = write_cells(make_cells(), tmp_path / "x.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[0, column] = value
    table.to_csv(path, index=False)
    with pytest.raises(CellsError, match=r"x\.csv"):
        read_cells(path)


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"slide,label\n\xff\xfe,1\n")
    with pytest.raises(CellsError, match=r"x\.csv"):
        read_cells(tmp_path / "x.csv")
    with pytest.raises(ExportError, match=r"y\.csv"):
        read_cells(tmp_path / "y.csv")
    with pytest.raises(ExportError, match=r"z\.xlsx.*\.csv, \.parquet, \.geojson"):
        write_cells(make_cells(), tmp_path / "z.xlsx")


def test_outlines_are_closed_and_enclose_the_pixels():
    labels = np.zeros((9, 12), int)
    labels[1:5, 2:8] = 4  # 6 wide, 4 high
    labels[2:4, 3:5] = 0  # a hole is not outlined
    labels[7, 1] = labels[7, 9] = 2_000_000_000  # two parts
    rings = outlines(labels)
    assert sorted(rings) == [4, 2_000_000_000]
    (ring,) = rings[4]
    # Through the middles of the outermost edges, its corners cut by half a pixel.
    assert ring.min(axis=0).tolist() == [2.0, 1.0]
    assert ring.max(axis=0).tolist() == [8.0, 5.0]
    assert ring[0].tolist() == ring[-1].tolist()
    assert len(ring) == 9
    parts = rings[2_000_000_000]
    assert sorted(part[:, 0].mean() for part in parts) == pytest.approx([1.5, 9.5], abs=0.2)
    assert outlines(np.zeros((4, 4), int)) == {}


def test_geojson_is_what_qupath_opens(tmp_path):
    labels = np.zeros((20, 30), int)
    labels[2:6, 3:9] = 1
    labels[10, 10] = labels[10, 20] = 2
    table = measure(labels, slide="s", mpp=0.5).table
    table["class"], table["probability"] = ["neutrophil", ""], [0.9, np.nan]
    write_cells(Cells(table), tmp_path / "x.geojson", labels)
    collection = json.loads((tmp_path / "x.geojson").read_text("utf-8"))
    first, second = collection["features"]
    assert (collection["type"], first["type"]) == ("FeatureCollection", "Feature")
    assert "type" not in first["properties"]
    assert first["properties"]["objectType"] == "detection"
    assert first["properties"]["classification"] == {"name": "neutrophil", "color": [0, 114, 178]}
    assert first["properties"]["measurements"]["area_um2"] == 6.0
    assert first["geometry"]["type"] == "Polygon"
    x, y = np.array(first["geometry"]["coordinates"][0]).T
    assert (x.min(), x.max(), y.min(), y.max()) == (3, 9, 2, 6)
    assert second["geometry"]["type"] == "MultiPolygon"
    assert "classification" not in second["properties"]
    assert first["id"] != second["id"]
    assert len(first["id"]) == 36
    write_cells(Cells(table), tmp_path / "y.geojson", labels)
    assert (tmp_path / "y.geojson").read_text("utf-8") == (tmp_path / "x.geojson").read_text("utf-8")


def test_results_of_a_field_come_back(analysis, tmp_path):
    folder = write_results(analysis, tmp_path / "deep" / "er" / "field")
    assert sorted(p.name for p in folder.iterdir()) == sorted(export.RESULT_FILES)
    results = read_results(folder)
    assert results.cells == analysis.cells
    assert len(results.cells) == 2
    np.testing.assert_array_equal(results.labels, analysis.labels)
    assert results.labels.dtype == np.uint16
    assert results.image == analysis.slide.path
    for suffix in SUFFIXES:
        assert read_cells(folder / f"cells{suffix}") == analysis.cells
    with tifffile.TiffFile(folder / "labels.tif") as tiff:
        assert tiff.pages[0].compression.name == "ADOBE_DEFLATE"
    if sys.platform != "win32":
        assert folder.stat().st_mode == tmp_path.joinpath("deep").stat().st_mode


def test_the_annotated_picture_shows_the_field_and_the_counts(analysis, tmp_path):
    folder = write_results(analysis, tmp_path / "field")
    with Image.open(folder / "annotated.png") as picture:
        array = np.asarray(picture)
    height, width = analysis.labels.shape
    assert array.shape[0] >= 720  # a small field is enlarged until its type is legible
    field_width = round(width * array.shape[0] / height)
    assert array.shape[1] > 1.2 * field_width
    assert (array[:, field_width + 5 :] == 255).mean() > 0.8  # the counts stand on white beside it


@pytest.mark.parametrize(("highest", "dtype"), [(65_535, np.uint16), (65_536, np.uint32), (2**33, np.uint64)])
def test_labels_keep_their_numbers(highest, dtype, tmp_path):
    labels = np.zeros((4, 5), np.int64)
    labels[1, 1] = highest
    export.write_folder(tmp_path / "f", measure(labels), labels)
    back = read_results(tmp_path / "f").labels
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, labels)


def test_earlier_results_are_replaced_as_a_whole(analysis, tmp_path):
    folder = write_results(analysis, tmp_path / "field")
    export.write_folder(folder, analysis.cells, analysis.labels)
    assert not (folder / "annotated.png").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["field"]


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wedding.jpg").write_text("dear")
    with pytest.raises(ExportError, match=r"photos.*wedding\.jpg.*move them or choose another folder"):
        export.write_folder(tmp_path / "photos", make_cells(), None)
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["wedding.jpg"]
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "field"):
        with pytest.raises(ExportError, match=r"file.*choose another folder"):
            export.write_folder(folder, make_cells(), None)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ExportError, match="is a folder"):
        write_cells(make_cells(), make_folder(tmp_path / "x.csv"))


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_full_disk_leaves_what_was_there(analysis, tmp_path, monkeypatch):
    folder = write_results(analysis, tmp_path / "field")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(ExportError, match=r"field.*the disk is full; free some space"):
        write_results(analysis, folder)
    with pytest.raises(ExportError, match="the disk is full"):
        write_results(analysis, tmp_path / "new" / "other")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["field"]


def test_a_folder_that_cannot_be_swapped_is_put_back(analysis, tmp_path, monkeypatch):
    folder = write_results(analysis, tmp_path / "field")
    rename = Path.rename

    def fail(self, target):
        if self.suffix == ".partial" and Path(target).name == "field" and (self / "labels.tif").exists() and fail.first:
            fail.first = False
            raise PermissionError(errno.EACCES, "in use")
        return rename(self, target)

    fail.first = True
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ExportError, match="not writable"):
        write_results(analysis, folder)
    assert read_results(folder).cells == analysis.cells
    assert [p.name for p in tmp_path.iterdir()] == ["field"]


def test_what_is_no_folder_of_results_is_named(analysis, tmp_path):
    with pytest.raises(ExportError, match=r"cells\.csv"):
        read_results(tmp_path)
    folder = write_results(analysis, tmp_path / "field", files=("cells.csv", "labels.tif"))
    data = (folder / "labels.tif").read_bytes()
    for broken in (data[:200], b"II*\0", b""):
        (folder / "labels.tif").write_bytes(broken)
        with pytest.raises(ExportError, match=r"labels\.tif"):
            read_results(folder)
    tifffile.imwrite(folder / "labels.tif", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ExportError, match="not a label image"):
        read_results(folder)


def test_names_stay_inside_their_folder():
    assert [export.safe_name(name) for name in ("..", "a/b\\c", " . ", "x\n", "é [red]")] == [
        "_", "a_b_c", "_", "x_", "é [red]",
    ]  # fmt: skip

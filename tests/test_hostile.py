"""Damaged, hostile and merely strange input: only errors of this package, with file and remedy, and nothing written.

A short version; `NAPARI_WBC_FUZZ=1000` damages each file so often, and `benchmarks/reliability.py` does more.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import hostile
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from napari_wbc.cells import Cells, measure
from napari_wbc.crop_folder import write_crops
from napari_wbc.recipe import Recipe, load_recipe
from napari_wbc.slide import ImageError, Slide, to_rgb
from napari_wbc.tables import read_cells, write_cells

TIMES = int(os.environ.get("NAPARI_WBC_FUZZ", "6"))
SEED = int(os.environ.get("NAPARI_WBC_SEED", "0"))
quick = settings(
    max_examples=max(25, TIMES),
    deadline=None,
    derandomize="NAPARI_WBC_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = st.text(max_size=20)


@pytest.mark.parametrize("door", hostile.DOORS, ids=lambda door: door.name)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_refused_with_a_remedy_or_read(door, annotated, tmp_path):
    report = hostile.Report()
    hostile.attack(door, tmp_path / "in", annotated / "r", hostile.one_by_one(door, SEED, TIMES), report)
    assert not report.faults
    assert report.tried.total() == 50 + TIMES


def _cells(slides: list[str], classes: list[str], note: list[str]) -> Cells:
    labels = np.zeros((20, 30), int)
    labels[2:6, 3:9], labels[10:15, 10:15] = 7, 3
    table = measure(labels, mpp=0.1).table
    table["slide"], table["class"], table["note"] = slides, classes, note
    return Cells(table)


pair = st.lists(TEXT, min_size=2, max_size=2)


@quick
@given(slides=pair, classes=pair, note=pair)
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".geojson"])
def test_any_text_in_a_table_comes_back_and_stays_in_its_file(suffix, slides, classes, note, tmp_path):
    cells = _cells(slides, classes, note)
    path = write_cells(cells, tmp_path / f"x{suffix}")
    back = read_cells(path)
    names = ["slide", "label", "class", "centroid-0", "bbox-3"]
    pd.testing.assert_frame_equal(back.table[names], cells.table[names])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@quick
@given(slides=pair, classes=pair, note=pair)
def test_crops_of_any_name_lie_in_their_folder(slides, classes, note):
    with TemporaryDirectory() as folder:
        place = Path(folder, "deep", "crops")
        write_crops(np.zeros((2, 4, 4, 3), np.uint8), _cells(slides, classes, note), place)
        written = hostile.listing(Path(folder))
    assert all(Path(name).parts[:2] == ("deep", "crops") for name in written)
    assert sum(name.endswith(".png") for name in written) == 2


any_array = st.one_of(arrays.scalar_dtypes(), st.just(np.dtype(np.uint8))).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)


@quick
@given(any_array)
@pytest.mark.filterwarnings("ignore")
def test_any_array_is_a_picture_or_refused(array):
    try:
        image, _ = to_rgb(array)
    except ImageError as error:
        assert str(error)  # noqa: PT017
    else:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(sorted(Recipe.__dataclass_fields__))


@quick
@given(st.dictionaries(fields, json_values, min_size=1, max_size=3))
def test_any_recipe_is_possible_or_refused(values):
    try:
        recipe = load_recipe(values)
    except ValueError as error:
        assert str(error).startswith("the recipe")  # noqa: PT017
    else:
        assert isinstance(recipe, Recipe)


@pytest.mark.parametrize("kind", ["noise", "one colour", "one pixel", "a line", "stripes"])
def test_a_picture_of_nothing_is_analysed(kind, classifier):
    from napari_wbc.pipeline import analyse, run

    chance = np.random.default_rng(SEED)
    image = {
        "noise": chance.integers(0, 255, (90, 120, 3)),
        "one colour": np.full((64, 64, 3), 180),
        "one pixel": np.full((1, 1, 3), 90),
        "a line": chance.integers(0, 255, (1, 300, 3)),
        "stripes": np.tile([[[250, 240, 235]], [[80, 30, 120]]], (30, 60, 1)),
    }[kind].astype(np.uint8)
    found = run(analyse(Slide.from_array(image, mpp=0.1), classifier))
    assert found.labels.shape == image.shape[:2]
    assert set(found.cells.table["label"]) == set(np.unique(found.labels)) - {0}


def _door(name: str) -> hostile.Door:
    return next(door for door in hostile.DOORS if door.name == name)


CASES = {
    "a name that no file can have": ("list of a batch", b"a.jpg", b"a" * 400),
    "a name with a zero": ("list of a batch", b"a.jpg", b"a\0.jpg"),
    "a name of a cell's picture": ("labels.csv of a data set", b"1.jpg", b"1" * 400),
    "a class of nowhere": ("predictions.csv", b"0.jpg,a", b"0.jpg,z"),
    "a probability of nowhere": ("predictions.csv", b"val,0,0.8", b"val,0,80"),
    "a network that is no name": ("model card", b'"custom_cnn"', b"255"),
    "a range of 400 digits": ("reference ranges", b"[40", b"[" + b"1" * 400),
    "a zarr of 2**31 rows": ("old.ome.zarr, array", b"400", b"2147483648"),
    "a zarr that divides by zero": ("new.ome.zarr, array", b"256", b"0"),
    "a recipe a thousand deep": ("recipe", b"\n", b"\nx = " + b"[" * 2000 + b"\n"),
}


@pytest.mark.parametrize(("name", "old", "new"), CASES.values(), ids=CASES)
@pytest.mark.filterwarnings("ignore")
def test_what_was_found_stays_mended(name, old, new, annotated, tmp_path):
    report = hostile.Report()

    def changed(data: bytes):
        assert old in data
        yield data.replace(old, new, 1)

    hostile.attack(_door(name), tmp_path / "in", annotated / "r", changed, report)
    assert not report.faults


def test_a_carriage_return_in_a_text_survives(tmp_path):
    cells = _cells(["a\rb", "c"], ["x", "y\r\nz"], ["\r", "1"])
    back = read_cells(write_cells(cells, tmp_path / "x.csv"))
    assert back.table[["slide", "class", "note"]].to_dict() == cells.table[["slide", "class", "note"]].to_dict()


def test_broken_chunks_of_a_zarr_name_the_slide(tmp_path):
    import slides

    path = slides.write(tmp_path / "new.ome.zarr", slides.mosaic(1, 1))
    for chunk in (path / "0").rglob("*"):
        if chunk.is_file() and chunk.name != "zarr.json":
            chunk.write_bytes(b"\0" * 50)
    with pytest.raises(ImageError, match=r"new\.ome\.zarr.*damaged.*copy or export"):
        Slide.open(path).read((0, 0, 100, 100))

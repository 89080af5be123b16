"""One smear, end to end."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from pictures import FIELDS

import napari_wbc
from napari_wbc.cells import IMPROBABLE, UNLIKE
from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.classifier import Classifier
from napari_wbc.pipeline import Progress, analyse, annotate, run
from napari_wbc.segment import SegmentParameters
from napari_wbc.slide import ImageError, Slide

# What the annotators of the data set saw in the five fields of tests/data.
TRUTH = {
    "BloodImage_00000": 1,
    "BloodImage_00031": 2,
    "BloodImage_00070": 2,
    "BloodImage_00176": 2,
    "BloodImage_00289": 1,
}


@pytest.mark.parametrize("path", FIELDS, ids=lambda path: path.stem)
def test_the_white_cells_of_a_real_field_are_found(path, classifier):
    result = run(analyse(Slide.open(path), classifier))
    assert len(result.cells) == TRUTH[path.stem]
    assert set(result.cells.table["label"]) == set(np.unique(result.labels)) - {0}
    assert result.appearance.mpp_source == "red cells"
    assert 0.05 < result.appearance.mpp < 0.10
    assert result.differential["n"].sum() == len(result.cells)
    p = result.cells.table[[f"p_{name}" for name in result.cells.classes]].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-4)


def test_progress_counts_every_cell(field, classifier):
    steps = list(analyse(Slide.open(field), classifier))
    assert all(isinstance(step, Progress) for step in steps)
    assert (steps[-1].done, steps[-1].total) == (2, 2)


def test_closing_the_generator_cancels(field, classifier):
    progress = analyse(Slide.open(field), classifier)
    next(progress)
    progress.close()
    with pytest.raises(StopIteration):
        next(progress)


def test_the_threshold_moves_cells_to_unidentified_and_nothing_else(field, classifier):
    slide = Slide.open(field)
    free = run(analyse(slide, classifier, threshold=0.0)).cells.table
    strict = run(analyse(slide, classifier, threshold=1.0)).cells.table
    assert UNIDENTIFIED not in set(free["class"])
    assert set(strict["class"]) == {UNIDENTIFIED}
    assert set(strict["reason"]) <= {IMPROBABLE, UNLIKE}
    said = ["class", "class_model", "reason"]
    assert free.drop(columns=said).equals(strict.drop(columns=said))


def test_a_model_that_cannot_tell_unlike_cells_says_so(field, classifier):
    assert not any("cannot tell" in note for note in run(analyse(Slide.open(field), classifier)).notes)
    plain = Classifier(replace(classifier.card, unlikeness={}), classifier.network)
    notes = run(analyse(Slide.open(field), plain)).notes
    assert sum("cannot tell cells unlike those it was trained on" in note for note in notes) == 1


def test_a_given_scale_overrides(field):
    result = run(analyse(Slide.open(field), parameters=SegmentParameters(mpp=0.08)))
    assert result.appearance.mpp == 0.08
    assert run(analyse(Slide.open(field, mpp=0.07))).appearance.mpp == 0.07
    assert result.card is None
    assert (result.cells.table["class"] == "").all()


@pytest.mark.parametrize(
    "values",
    [{"sensitivity": 0}, {"sensitivity": -1}, {"sensitivity": float("nan")}, {"working_mpp": 0},
     {"min_nucleus_area": -1}, {"max_lobe_gap": float("inf")}, {"max_cytoplasm": -0.1}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} is .*, but must be a number"):
        SegmentParameters(**values)


def test_regions_of_the_users_own_are_classified_as_they_are(field, classifier):
    slide = Slide.open(field)
    found = run(analyse(slide, classifier))
    labels = found.labels.astype(np.int64) * 100_000  # gaps, and ids past 16 bits
    own = run(analyse(slide, classifier, labels=labels))
    assert own.cells.table["label"].tolist() == (found.cells.table["label"] * 100_000).tolist()
    assert own.cells.table["class"].tolist() == found.cells.table["class"].tolist()
    assert own.cells.table["area"].tolist() == found.cells.table["area"].tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((3, 3), int), "labels have shape"),
        (np.zeros((480, 640)), "whole numbers"),
        (np.full((480, 640), -2), "negative"),
    ],
)
def test_labels_that_do_not_fit_are_refused(field, classifier, labels, message):
    with pytest.raises(ImageError, match=message):
        run(analyse(Slide.open(field), classifier, labels=labels))


@pytest.mark.parametrize("value", [0, 127, 255])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 3), (200, 300, 3)])
def test_a_picture_without_a_cell_is_a_valid_empty_result(classifier, value, shape):
    result = run(analyse(Slide.from_array(np.full(shape, value, np.uint8)), classifier))
    assert len(result.cells) == 0
    assert result.cells.classes == classifier.card.classes
    assert result.differential["n"].tolist() == [0] * 9
    assert any("no red or white cell was recognised" in note for note in result.notes)
    given = run(analyse(Slide.from_array(np.full(shape, value, np.uint8), mpp=0.2), classifier))
    assert given.notes == ()


def test_a_single_cell_without_red_cells_says_that_its_scale_was_assumed(classifier):
    image = np.full((300, 300, 3), (250, 235, 215), np.uint8)
    y, x = np.mgrid[:300, :300]
    image[(y - 150) ** 2 + (x - 150) ** 2 < 45**2] = (200, 180, 215)
    image[(y - 150) ** 2 + (x - 150) ** 2 < 32**2] = (70, 40, 120)
    result = run(analyse(Slide.from_array(image), classifier))
    assert len(result.cells) == 1
    assert any("give µm per pixel" in note for note in result.notes)


def test_annotate_takes_paths_arrays_and_slides(field, classifier):
    slide = Slide.open(field)
    cells = annotate(field, model=classifier)
    assert cells == annotate(slide, model=classifier)
    assert cells.table.drop(columns="slide").equals(annotate(slide.image, model=classifier).table.drop(columns="slide"))


def test_samples_are_analysed_with_attribution(classifier):
    assert len(napari_wbc.samples()) >= 8
    for sample in napari_wbc.samples():
        assert sample.source
        assert sample.licence in ("MIT", "Apache-2.0", "CC-BY-4.0")
        assert sample.path.is_file()
    nine = run(analyse(Slide.open(napari_wbc.samples()[0].path), classifier))
    assert len(nine.cells) == 18


def in_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_qt_nor_napari():
    code = (
        "import sys, napari_wbc; "
        "print([m for m in ('torch', 'torchvision', 'qtpy', 'PyQt6', 'PySide6', 'napari', 'magicgui', 'pandas') "
        "if m in sys.modules])"
    )
    assert in_fresh_process(code) == "[]"


def test_core_modules_import_neither_qt_nor_napari():
    code = (
        "import sys, importlib; "
        "names = 'cells classifier count crop export models palette pipeline preprocess scale segment "
        "single slide cli review_session decisions missed counted reference agreement reference_cells quiz'; "
        "[importlib.import_module('napari_wbc.' + name) for name in names.split()]; "
        "from napari_wbc.classifier import Classifier; Classifier.load(); "
        "print([m for m in ('qtpy', 'PyQt6', 'PyQt5', 'PySide6', 'napari', 'magicgui') if m in sys.modules])"
    )
    assert in_fresh_process(code) == "[]"


def test_stages_load_no_torch():
    code = (
        "import sys, napari_wbc.segment, napari_wbc.crop, napari_wbc.count, napari_wbc.export, napari_wbc.pipeline; "
        "print('torch' in sys.modules)"
    )
    assert in_fresh_process(code) == "False"


def test_a_picture_with_an_odd_name(tmp_path, field, classifier):
    path = tmp_path / "a b <script>alert('µ')</script>".replace("/", "_")
    path.mkdir()
    odd = path / "ü ñ & =1+1.jpg"
    shutil.copyfile(field, odd)
    assert set(annotate(odd, model=classifier).table["slide"]) == {odd.name}

"""What runs keep and what they leave alone, through the command line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from napari_wbc import classifier as classifier_module
from napari_wbc import pipeline
from napari_wbc._sample_data import samples
from napari_wbc.cells import measure
from napari_wbc.cli import app
from napari_wbc.crop_folder import write_crops
from napari_wbc.export import write_folder
from napari_wbc.inputs import find_images
from napari_wbc.record import scales
from napari_wbc.review_session import ReviewSession

SAMPLES = {sample.key: sample.path for sample in samples()}
VIEW, FIELD = SAMPLES["yellow_eosinophil"], SAMPLES["smear_neutrophil_monocyte"]
LABELS = np.zeros((20, 30), np.int32)
LABELS[2:6, 3:9] = 1
CELLS = measure(LABELS, slide="x.jpg")


@pytest.fixture(autouse=True)
def _one_model(classifier, monkeypatch):
    monkeypatch.setattr(classifier_module.Classifier, "load", lambda *_, **__: classifier)


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output.replace("\n", " ")


def test_corrected_results_are_kept_before_any_work_and_given_up_on_demand(tmp_path, monkeypatch):
    shutil.copy(VIEW, tmp_path / "x.jpg")
    folder = write_folder(tmp_path / "out" / "x", CELLS, LABELS, corrected=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "analyse", None)  # not even begun
        for command in ("annotate", "segment"):
            output = call(command, tmp_path / "x.jpg", "-o", tmp_path / "out", code=1)
            assert "holds results that were corrected; they are kept" in output
            assert "--overwrite" in output
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    entry = json.loads((tmp_path / "out" / "run.json").read_text())["inputs"][0]
    assert (entry["state"], entry["result"], entry["cells"]) == ("kept", "x", 1)
    output = call("segment", tmp_path / "x.jpg", "-o", tmp_path / "out", "--overwrite")
    assert "Scale 0." in output
    assert sorted(path.name for path in folder.iterdir()) == ["cells.csv", "labels.tif"]
    call("segment", tmp_path / "x.jpg", "-o", tmp_path / "out")  # a model's results need no leave


def test_a_reviewed_picture_stays_in_a_run_that_is_made_again(tmp_path):
    """It is in run.json, in the counts, and in what report and export read."""
    shutil.copy(VIEW, tmp_path / "x.jpg")
    shutil.copy(FIELD, tmp_path / "y.jpg")
    out = tmp_path / "out"
    call("annotate", tmp_path / "x.jpg", tmp_path / "y.jpg", "-o", out)
    first = json.loads((out / "run.json").read_text())
    session = ReviewSession.open(out / "x")
    session.decide(session.cells.table["label"].tolist(), "basophil", "A. Reader")
    session.close()
    for _ in range(2):  # a run that was made again is made again
        output = call("annotate", tmp_path / "x.jpg", tmp_path / "y.jpg", "-o", out, "--threshold", 0.3, code=3)
        assert "holds results that were corrected; they are kept" in output
        assert "white cells in 2 pictures" in output
        record = json.loads((out / "run.json").read_text())
        kept, fresh = record["inputs"]
        assert (kept["state"], kept["result"], kept["cells"]) == ("kept", "x", 1)
        assert kept["sha256"] == first["inputs"][0]["sha256"]
        assert kept["mpp"] == first["inputs"][0]["mpp"]
        assert [note for note in kept["notes"] if first["started"] in note and "are kept" in note] == kept["notes"][-1:]
        assert (fresh["state"], record["threshold"]) == ("ok", 0.3)
        counts = pd.read_csv(out / "differential.csv").set_index(["slide", "class"])["n"]
        assert counts["x.jpg", "basophil"] == counts["all", "basophil"] == 1
    call("report", out, "-o", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(row["name"], row["cells"]) for row in report["pictures"]] == [("x.jpg", 1), ("y.jpg", 2)]
    assert kept["notes"][-1] in report["skipped"]["notes"]
    assert "3 cells of 2 pictures" in call("export", out, "-o", tmp_path / "cells.json")


def test_results_of_another_picture_are_not_those_of_one_that_is_refused_their_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(VIEW, tmp_path / name / "x.jpg")
    write_folder(tmp_path / "out" / "x", CELLS, LABELS, picture=tmp_path / "a" / "x.jpg", corrected=True)
    call("annotate", tmp_path / "b" / "x.jpg", "-o", tmp_path / "out", code=1)
    entry = json.loads((tmp_path / "out" / "run.json").read_text())["inputs"][0]
    assert (entry["state"], entry["result"]) == ("failed", None)


@pytest.mark.parametrize(("corrected", "words"), [(False, "were removed"), (True, "corrected results")])
def test_results_of_an_earlier_run_do_not_pass_for_those_of_a_picture_that_failed(corrected, words, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"")
    folder = write_folder(tmp_path / "out" / "x", CELLS, LABELS, corrected=corrected)
    options = ["--overwrite"] if corrected else []
    assert words in call("annotate", tmp_path / "x.jpg", "-o", tmp_path / "out", *options, code=1)
    assert folder.exists() == corrected
    assert words in json.loads((tmp_path / "out" / "run.json").read_text())["inputs"][0]["error"]


def test_a_folder_of_others_is_found_before_crops_are_cut(tmp_path, monkeypatch):
    (tmp_path / "data" / "neutrophil").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "data" / "neutrophil" / "mine.png")
    monkeypatch.setattr(pipeline, "analyse", None)
    assert "choose another folder" in call("crop", VIEW, "-o", tmp_path / "data", code=1)
    assert (tmp_path / "data" / "neutrophil" / "mine.png").is_file()


def test_a_stopped_run_does_not_replace_earlier_crops(tmp_path, monkeypatch):
    shutil.copy(VIEW, tmp_path / "y.jpg")
    analyse, calls = pipeline.analyse, []

    def once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return analyse(*args, **kwargs)

    monkeypatch.setattr(pipeline, "analyse", once)
    folder = write_crops(np.zeros((1, 8, 8, 3), np.uint8), CELLS, tmp_path / "c")
    before = (folder / "crops.csv").read_bytes()
    assert "crops of an earlier run stay" in call("crop", VIEW, tmp_path / "y.jpg", "-o", folder, code=130)
    assert (folder / "crops.csv").read_bytes() == before
    calls.clear()
    call("crop", VIEW, tmp_path / "y.jpg", "-o", tmp_path / "new", code=130)  # nothing there to lose
    assert (tmp_path / "new" / "crops.csv").is_file()


def test_crops_and_results_within_a_folder_are_no_pictures(tmp_path):
    shutil.copy(VIEW, tmp_path / "x.jpg")
    crops = write_crops(np.zeros((1, 8, 8, 3), np.uint8), CELLS, tmp_path / "sub" / "crops")
    write_folder(tmp_path / "results", CELLS, LABELS, files=("cells.parquet", "labels.tif"))
    (crop,) = crops.rglob("*.png")
    for argument in (tmp_path, tmp_path / "**" / "*.*", tmp_path / "*"):
        assert find_images([argument])[0] == [tmp_path / "x.jpg"]
    for argument in (crop, crops, crop.parent, crops / "*" / "*.png"):  # who names them means them
        assert find_images([argument])[0] == [crop]


def test_the_scale_of_a_run_is_said_by_its_source():
    made = [(0.1, "red cells"), (0.12, "red cells"), (0.2, "white cells"), (float("nan"), "unknown")]
    assert scales((source, mpp) for mpp, source in made) == [
        "Scale 0.11 µm per pixel, measured from the red cells (2 pictures, 0.1 to 0.12)",
        "Scale unknown in 1 picture",
        "Scale 0.2 µm per pixel, assumed from the white cells (1 picture)",
    ]

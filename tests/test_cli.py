"""The command line, in process mostly: its files, its words and its exit codes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from napari_wbc import classifier as classifier_module
from napari_wbc._sample_data import samples
from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.cli import app
from napari_wbc.console import print_differential, say_notes
from napari_wbc.count import differential, differential_of
from napari_wbc.export import read_cells, read_results
from napari_wbc.inputs import find_images, name_inputs
from napari_wbc.pipeline import annotate
from napari_wbc.single import classify_crops

SAMPLES = {sample.key: sample.path for sample in samples()}
FIELD = SAMPLES["smear_neutrophil_monocyte"]
VIEW = SAMPLES["yellow_eosinophil"]


@pytest.fixture(autouse=True)
def _one_model(classifier, monkeypatch):
    """Load the shipped model once for all tests; other models are loaded as ever."""
    load = classifier_module.Classifier.load

    def cached(model=None, *, device=None):
        return classifier if model is None and device is None else load(model, device=device)

    monkeypatch.setattr(classifier_module.Classifier, "load", cached)
    monkeypatch.setenv("COLUMNS", "100")


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def pictures(tmp_path):
    """Two good pictures of one name, one with a name that is hostile to terminals, and a broken one."""
    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    shutil.copy(VIEW, folder / "a" / "x.jpg")
    shutil.copy(SAMPLES["yellow_erythroblast"], folder / "b" / "x.jpg")
    shutil.copy(FIELD, folder / "é [red] <b>.jpg" if os.name != "nt" else folder / "é [red].jpg")
    (folder / "b" / "cut.jpg").write_bytes(VIEW.read_bytes()[:3000])
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_annotate_gives_what_the_pipeline_gives(pictures, classifier, tmp_path):
    out = tmp_path / "out"
    hostile = next(pictures.glob("*red*")).name
    output = call("annotate", pictures, "-o", out, code=3)
    stem = hostile.removesuffix(".jpg")
    assert sorted(p.name for p in out.iterdir()) == ["a_x", "b_x", "differential.csv", "run.json", stem]
    cells = read_results(out / stem).cells
    assert cells == annotate(pictures / hostile, model=classifier)
    assert set(cells.table["slide"]) == {hostile}
    counts = pd.read_csv(out / "differential.csv")
    assert counts["slide"].unique().tolist() == ["a/x.jpg", "b/x.jpg", hostile, "all"]
    block = counts[counts["slide"] == hostile].reset_index(drop=True)
    pd.testing.assert_frame_equal(block, differential(cells, hostile), check_dtype=False)
    assert counts[counts["slide"] == "all"]["n"].sum() == counts[counts["slide"] != "all"]["n"].sum() == 4
    for words in ("b/cut.jpg: the file is damaged", "95 % limits (Clopper–Pearson)", "Research use only", UNIDENTIFIED):
        assert words in output.replace("\\", "/")


def test_run_json_tells_how(pictures, classifier, tmp_path):
    call("annotate", pictures, tmp_path / "nosuch.png", "-o", tmp_path / "out", "--threshold", 0.99, code=3)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["model"] == {"name": classifier.card.name, "sha256": classifier.card.sha256}
    assert record["threshold"] == record["parameters"]["threshold"] == 0.99
    assert {"python", "torch", "numpy", "napari-wbc"} <= set(record["versions"])
    assert record["seconds"] > 0
    assert record["started"][10] == "T"
    entries = {Path(entry["path"]).name: entry for entry in record["inputs"]}
    assert [entry["state"] for entry in record["inputs"]] == ["ok", "failed", "ok", "ok", "failed"]
    assert "damaged" in entries["cut.jpg"]["error"]
    assert "no such file" in entries["nosuch.png"]["error"]
    good = record["inputs"][0]
    assert (good["slide"], good["result"], good["cells"]) == ("a/x.jpg", "a_x", 1)
    assert good["sha256"].startswith("60b4b140f9db")
    assert 0.1 < good["mpp"] < 0.2
    assert good["mpp_source"] in ("red cells", "white cells")


def test_the_scale_and_the_threshold_reach_the_cells(tmp_path):
    call("annotate", VIEW, "-o", tmp_path, "--mpp", 0.14, "--threshold", 1)
    table = read_results(tmp_path / VIEW.stem).cells.table
    assert table["mpp"].tolist() == [0.14]
    assert table["class"].tolist() == [UNIDENTIFIED]


def test_a_file_is_done_once_and_patterns_are_expanded(tmp_path):
    shutil.copy(VIEW, tmp_path / "one.jpg")
    out = tmp_path / "out"
    call("segment", tmp_path / "one.jpg", tmp_path / "*.jpg", tmp_path, "-o", out)
    assert len(json.loads((out / "run.json").read_text())["inputs"]) == 1
    # A second run over the folder that holds the first one's results does not take these for pictures.
    call("annotate", tmp_path, "-o", out)
    record = json.loads((out / "run.json").read_text())
    assert [entry["slide"] for entry in record["inputs"]] == ["one.jpg"]
    call("annotate", tmp_path / "**" / "*.png", tmp_path / "*.jpg", "-o", out, code=3)


def test_names_of_folders_do_not_collide(tmp_path):
    files = ["a/x.png", "b/x.png", "b/x.jpg", "b/y.png", "a_x.png", "run.json.png", "...png", "b/X.tif"]
    named = name_inputs(tmp_path / file for file in files)
    folders = [item.folder for item in named]
    assert folders == ["a_x.png", "b_x.png", "b_x.jpg", "y", "a_x", "run.json_2", "_", "b_X.tif"]
    assert [item.slide for item in named][:4] == ["a/x.png", "b/x.png", "x.jpg", "y.png"]
    assert name_inputs(tmp_path / file for file in files) == named


def test_brackets_in_a_name_are_no_pattern(tmp_path):
    shutil.copy(VIEW, tmp_path / "x[1].jpg")
    found, missing = find_images([tmp_path / "x[1].jpg", tmp_path / "x[2].jpg"])
    assert found == [tmp_path / "x[1].jpg"]
    assert missing == [(tmp_path / "x[2].jpg", "no picture matches the pattern")]


@pytest.mark.parametrize("arguments", [["nosuch.png"], ["."], ["*.tif"]])
def test_no_pictures_is_wrong_usage(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = call("annotate", *arguments, "-o", "out", code=2)
    assert "No pictures found" in output
    assert arguments[0] in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["report", "nosuch", "-o", "x.html"], ["report", ".", "-o", "x.html", "--image", "nosuch"],
     ["report", ".", "-o", "x.html", "--ranges", "nosuch"], ["export", "nosuch", "-o", "x.json"], ["dataset", "nosuch"],
     ["train", ".", "nosuch", "-o", "x"], ["train", ".", "-o", "x", "--start", "nosuch"],
     ["search", "nosuch", "-o", "x", "--sweep", "lr=1,2"], ["evaluate", "wbc8-mobilenetv2", "nosuch", "-o", "x"],
     ["evaluate", "nosuch", ".", "-o", "x"], ["annotate", "nosuch", "-o", "x"], ["batch", "nosuch", "-o", "x"]],
)  # fmt: skip
def test_a_path_that_is_not_there_is_wrong_usage_of_every_command(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = call(*arguments, code=2)
    assert "nosuch" in output
    assert "no such file or folder" in output or "no model" in output
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_cells_in_notes_are_added_up(capsys):
    say_notes({"1 cell left out": 6, "3 cells left out": 2, "a scale was assumed": 1}, 18)
    assert capsys.readouterr().out.splitlines() == [
        "Note: 12 cells left out (in 8 of 18 pictures)", "Note: a scale was assumed (in 1 of 18 pictures)"
    ]  # fmt: skip


def test_what_is_no_white_cell_with_a_class_is_told(capsys):
    counts = {"neutrophil": 9, "erythroblast": 3, "platelet": 0, "unidentified": 1}
    print_differential(differential_of(counts), 1, 15)
    said = " ".join(capsys.readouterr().out.split())
    assert "9 white cells in 1 picture, of 15 cells" in said
    assert "erythroblast: 3 (too few white cells for a ratio)" in said
    assert "without a class: 2, in no count" in said
    print_differential(differential_of({"neutrophil": 1, "unidentified": 0}), 1, 1)
    said = " ".join(capsys.readouterr().out.split())
    assert "1 white cell in 1 picture" in said
    assert "of 1 cell" not in said
    assert "without" not in said


@pytest.mark.parametrize(
    "options",
    [["--mpp", "0"], ["--mpp", "nan"], ["--mpp", "99"], ["--threshold", "1.5"], ["--threshold", "nan"],
     ["--model", "nosuch"], ["--device", "abacus"], ["--nosuch"]],
)  # fmt: skip
def test_wrong_options_are_wrong_usage(options, tmp_path):
    call("annotate", VIEW, "-o", tmp_path / "out", *options, code=2)
    assert not (tmp_path / "out").exists()


def test_a_damaged_model_is_named(tmp_path, classifier):
    (tmp_path / "m.json").write_text("{}")
    assert "m.json" in call("annotate", VIEW, "-o", tmp_path / "out", "--model", tmp_path / "m.json", code=1)


def test_all_failed(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "differential.csv").write_text("of an earlier run")
    assert "the file is empty" in call("annotate", tmp_path / "x.png", "-o", tmp_path / "out", code=1)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["run.json"]


def test_an_output_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for command in (["annotate", VIEW], ["segment", VIEW], ["crop", VIEW], ["classify", VIEW]):
        output = call(*command, "-o", tmp_path / "file" / "out", code=1)
        assert "choose another folder" in output.replace("\n", " ")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert "the disk is full" in call("annotate", VIEW, "-o", tmp_path / "deep" / "out", code=1)
    with monkeypatch.context() as patch:  # it fills up later
        patch.setattr("napari_wbc.export.encode", full)
        patch.setattr(Path, "write_text", full)
        assert "the disk is full" in call("annotate", VIEW, "-o", tmp_path / "deep" / "out", code=1)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_done_is_kept_when_the_user_stops(tmp_path, monkeypatch):
    from napari_wbc import pipeline

    analyse, calls = pipeline.analyse, []

    def once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return analyse(*args, **kwargs)

    monkeypatch.setattr(pipeline, "analyse", once)
    output = call("annotate", VIEW, FIELD, "-o", tmp_path / "out", code=130)
    assert "1 of 2" in output
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["inputs"]) == 1
    assert (tmp_path / "out" / "differential.csv").is_file()


def test_segment_gives_cells_without_classes(tmp_path):
    assert "2 cells in 1 picture\n" in call("segment", FIELD, "-o", tmp_path)
    assert sorted(p.name for p in (tmp_path / FIELD.stem).iterdir()) == ["cells.csv", "labels.tif"]
    results = read_results(tmp_path / FIELD.stem)
    assert results.cells.classes == ()
    assert results.cells.table["class"].tolist() == ["", ""]
    assert np.unique(results.labels).tolist() == [0, 1, 2]


def test_equal_pictures_under_several_names_are_named(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(FIELD, tmp_path / name)
    shutil.copy(VIEW, tmp_path / "c.jpg")
    output = call("segment", tmp_path, "-o", tmp_path / "out")
    assert "Note: the same picture under 2 names, counted as often: a.jpg, b.jpg\n" in output


def test_crops_are_sorted_and_classified_again_alike(classifier, tmp_path):
    out = tmp_path / "crops"
    call("crop", FIELD, "-o", out)
    table = pd.read_csv(out / "crops.csv")
    assert len(table) == 2
    told = call("classify", out, "-o", tmp_path / "p.csv")
    assert "Note: scale as written in the picture's file (in 2 of 2 pictures)" in told
    again = pd.read_csv(tmp_path / "p.csv")
    again["file"] = [Path(file).relative_to(out).as_posix() for file in again["file"]]
    both = table.merge(again, on="file")
    assert both["scale"].tolist() == ["file", "file"]
    assert both["class_x"].tolist() == both["class_y"].tolist()
    for name in classifier.card.classes:
        np.testing.assert_allclose(both[f"p_{name}_x"], both[f"p_{name}_y"], atol=2e-6)


def test_crops_of_a_size_of_ones_own(tmp_path):
    call("crop", FIELD, "-o", tmp_path / "c", "--model", "none", "--side-um", 20, "--pixels", 40)
    files = sorted((tmp_path / "c").rglob("*.png"))
    assert [file.parent.name for file in files] == ["unclassified"] * 2
    with Image.open(files[0]) as picture:
        assert picture.size == (40, 40)
        assert picture.info["napari-wbc:mpp"] == "0.5"
    call("crop", FIELD, "-o", tmp_path / "d", "--side-um", -1, code=2)


def test_where_the_scale_of_a_crop_is_from(classifier, tmp_path):
    grey = np.full((60, 90, 3), 240, np.uint8)
    grey[20:40, 35:55] = (90, 40, 140)
    Image.fromarray(grey).save(tmp_path / "plain.png", dpi=(72, 72))
    given = next(classify_crops([tmp_path / "plain.png"], classifier, mpp=0.2))
    assert (given.mpp, given.scale) == (0.2, "given")
    Image.new("RGB", (90, 60), (240, 235, 238)).save(tmp_path / "empty.png", dpi=(72, 72))
    assumed = next(classify_crops([tmp_path / "empty.png"], classifier))
    assert assumed.mpp == pytest.approx(classifier.card.crop.side_um / 60)
    assert assumed.scale.startswith("assumed")
    assert assumed.probabilities.sum() == pytest.approx(1, abs=1e-5)
    measured = next(classify_crops([SAMPLES["yellow_erythroblast"]], classifier))
    assert measured.scale == "red cells"
    assert measured.mpp == pytest.approx(0.144, abs=0.02)


def test_classify_reports_broken_files(classifier, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nonsense")
    shutil.copy(VIEW, tmp_path / "b.jpg")
    Image.new("RGB", (1, 1), "purple").save(tmp_path / "c.png")
    output = call("classify", tmp_path, "-o", tmp_path / "p.csv", "--threshold", 1, code=3)
    assert "1 failed" in output
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    columns = [
        "file",
        "class",
        "probability",
        *(f"p_{c}" for c in classifier.card.classes),
        "unlikeness",
        "reason",
        "mpp",
        "scale",
        "error",
    ]
    assert table.columns.tolist() == columns
    assert table["class"].tolist() == ["", UNIDENTIFIED, UNIDENTIFIED]
    assert "not a picture" in table["error"][0]
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "c.png").unlink()
    call("classify", tmp_path, "-o", tmp_path / "p.csv", code=1)


def test_samples_are_listed_and_copied(tmp_path):
    assert FIELD.name in call("samples", "-o", tmp_path / "s")
    assert (tmp_path / "s" / FIELD.name).read_bytes() == FIELD.read_bytes()
    licences = (tmp_path / "s" / "LICENCES.txt").read_text("utf-8")
    assert all(sample.path.name in licences and sample.licence in licences for sample in samples())


def test_models_info_and_version(classifier):
    output = call("models")
    assert classifier.card.name in output
    assert "immature granulocyte" in output
    result = classifier.card.results[0]
    assert f"measured on {result['data']}" in output
    low, high = f"{result['low']:.1f}", f"{result['high']:.1f}"
    assert f"{result['what']}: {result['value']:.1f} % (95 % limits {low} – {high}), {result['n']} cells" in output
    assert "what " not in output
    assert (
        "points lost from the laboratory of the training (pbc/val) to others, on average (×100): 34.2 (95 %" in output
    )
    assert "threads: " in call("info")
    assert call("--version").startswith("napari-wbc 0.")
    assert "Exit codes" in call("annotate", "--help")


def test_in_a_process_of_its_own(tmp_path):
    program = shutil.which("napari-wbc", path=str(Path(sys.executable).parent)) or shutil.which("napari-wbc")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    command = [program, "annotate", str(VIEW), "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Clopper?Pearson" in done.stdout
    assert len(read_cells(tmp_path / "out" / VIEW.stem / "cells.parquet")) == 1


def test_helping_needs_no_torch():
    code = "import sys, napari_wbc.cli; assert not {'torch', 'napari', 'qtpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

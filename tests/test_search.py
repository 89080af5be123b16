"""Searches: ranked by folds, resumed after a kill, and refused where nothing can come of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss
from typer.testing import CliRunner

from napari_wbc.cli import app
from napari_wbc.cli_search import adapted
from napari_wbc.dataset import DatasetError, join, read_dataset
from napari_wbc.dataset_pictures import check
from napari_wbc.models import normalisation
from napari_wbc.protocol import Stage, load_protocol, read_values
from napari_wbc.recipe import Recipe, recipes
from napari_wbc.search import search
from napari_wbc.search_report import ranked_table, write_tables
from napari_wbc.split import make_split

CROPS = Path(__file__).parent / "data/crops"
TINY = Recipe(
    network="custom_cnn", start="random", pixels=32, fit="picture", epochs=1, batch_size=4, lr=1e-3, warmup=0,
    batch_norm="train", preprocessing=({"step": "normalise"},), augmentation=(),
)  # fmt: skip
MINI = """
network = "custom_cnn"
start = "random"
batch_norm = "train"
pixels = 32
fit = "picture"
epochs = 2
batch_size = 4
warmup = 0
preprocessing = [{ step = "normalise" }]

[protocol]
source = "Nobody (1900)"
reported = ["all right"]
val = 0.34

[[stage]]
name = "colours"
row = [{ name = "grey", preprocessing = [{ step = "grey" }, { step = "normalise" }] }, { name = "as they are" }]
"""


def run(tree: Path, folder: Path, stages: list[Stage], recipe: Recipe = TINY, **more: object):
    return search(tree, recipe, stages, folder, val=0.34, device="cpu", **more)  # type: ignore[arg-type]


def test_sweeps_are_ranked_by_folds_and_the_best_goes_on(tree: Path, tmp_path: Path) -> None:
    stages = [Stage("rate", {"lr": (1e-3, 1e-9)}, folds=2), Stage("size", {"batch_size": (2,)})]
    found = run(tree, tmp_path / "s", stages)
    table = ranked_table(found)
    assert table["rank"].tolist() == [1, 2, 1]
    for trial in found.of("rate"):
        assert [folder.name for folder in trial.folders] == ["fold_1", "fold_2"]
        row = table[table["variant"] == trial.name].iloc[0]
        told = []
        for folder in trial.folders:
            cells = pd.read_csv(folder / "predictions.csv")
            p = cells[[f"p_{name}" for name in sorted(cells["class"].unique())]].to_numpy()
            guess = cells["predicted"]
            told.append(
                (accuracy_score(cells["class"], guess), log_loss(cells["class"], p / p.sum(1, keepdims=True)),
                 f1_score(cells["class"], guess, average="macro"))
            )  # fmt: skip
        for k, name in enumerate(("accuracy", "loss", "macro_f1")):
            values = [fold[k] for fold in told]
            assert row[f"{name} mean"] == pytest.approx(np.mean(values), rel=1e-4)
            assert row[f"{name} sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-4, abs=1e-6)
    held = pd.concat(pd.read_csv(f / "predictions.csv") for f in found.of("rate")[0].folders)
    assert len(held) == held["file"].nunique() == 9  # each cell is judged once
    best = table.iloc[0]["variant"]
    assert found.best.lr == found.of("size")[0].recipe.lr == float(best.removeprefix("lr="))

    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("history.csv")}
    assert len(files) == 5
    again = run(tree, tmp_path / "s", stages)
    assert {p: p.stat().st_mtime_ns for p in files} == files
    pd.testing.assert_frame_equal(ranked_table(again), table)
    with pytest.raises(RuntimeError, match="other settings"):
        run(tree, tmp_path / "s", stages[:1])


@pytest.mark.timeout(1200)  # on a busy machine
def test_a_killed_search_goes_on_where_it_was(tree: Path, tmp_path: Path) -> None:
    script = tmp_path / "go.py"
    script.write_text(
        "import sys, time, test_search as t\nfrom pathlib import Path\n"
        "def slow(what, done, total):\n"
        "    if what.startswith('run 2') and not Path(sys.argv[3]).exists(): time.sleep(0.3)\n"
        "t.run(Path(sys.argv[1]), Path(sys.argv[2]), [t.Stage('rate', {'lr': (1e-3, 1e-4)})],\n"
        "      t.TINY.but(epochs=4), report=slow)\n"
    )
    folder, fast = tmp_path / "s", tmp_path / "fast"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, str(script), str(tree), str(folder), str(fast)]
    process = subprocess.Popen(command, env=environment)
    second = folder / "rate/02_lr=0.0001/run"
    for _ in range(6000):
        time.sleep(0.1)
        if (second / "last.ckpt").exists() or process.poll() is not None:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = pd.read_csv(second / "history.csv")
    assert 1 <= len(begun) < 4
    first = folder / "rate/01_lr=0.001/run/history.csv"
    stamp = first.stat().st_mtime_ns
    fast.touch()
    subprocess.run(command, env=environment, check=True)
    assert first.stat().st_mtime_ns == stamp
    ended = pd.read_csv(second / "history.csv")
    assert len(ended) == 4
    pd.testing.assert_frame_equal(ended.head(len(begun)), begun)  # the seconds, too: those epochs were not run again
    assert (second / "predictions.csv").is_file()


def test_a_variant_that_learns_nothing_comes_last(tree: Path, tmp_path: Path, monkeypatch) -> None:
    from napari_wbc import engine

    real = engine.functional.cross_entropy
    calls = iter(range(10_000))
    monkeypatch.setattr(
        engine.functional, "cross_entropy",
        lambda logits, *a, **k: real(logits, *a, **k) * (float("nan") if next(calls) == 0 else 1),
    )  # fmt: skip
    stages = [Stage("rate", {"lr": (1e-2, 1e-3)})]
    found = run(tree, tmp_path / "s", stages)
    table = ranked_table(found)
    assert table["variant"].tolist() == ["lr=0.001", "lr=0.01"]
    assert "nothing was learnt" in table["failed"].iloc[1]
    assert found.best.lr == 1e-3
    assert "nothing was learnt" in run(tree, tmp_path / "s", stages).trials[0].failed  # nor is it tried again
    assert {"rate.png", "rate_roc.png", "runs.csv"} <= {path.name for path in write_tables(found)}


def test_a_recipe_of_several_runs(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "mini.toml").write_text(MINI)
    told = CliRunner().invoke(
        app, ["train", str(tree), "--recipe", str(tmp_path / "mini.toml"), "--scale", "0.5", "--pixels", "24",
              "--device", "cpu", "-o", str(tmp_path / "run")],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    scaled = "only 0.5 of the data and epochs were run; at 24 instead of 32 pixels"
    words = " ".join(told.output.split())
    assert f"Scaled: {scaled}" in words
    assert "Source: Nobody (1900)" in words
    assert "Reported there: all right" in words
    runs = pd.read_csv(tmp_path / "run/runs.csv")
    assert runs["variant"].tolist() == ["grey", "as they are"]
    assert (runs["scaled"] == f"scaled: {scaled}").all()
    assert (pd.read_csv(tmp_path / "run/ranked.csv")["scaled"] == scaled).all()
    assert set(pd.read_csv(tmp_path / "run/classes.csv")["class"]) == {"eosinophil", "lymphocyte", "neutrophil"}
    for suffix in ("", "_confusion", "_curves", "_roc"):
        assert (tmp_path / f"run/colours{suffix}.png").stat().st_size > 5000
    card = (tmp_path / "run/colours/01_grey/run/run.json").read_text()
    assert scaled in card
    assert '"grey"' in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "lrr=1"], "did you mean 'lr'"),
        (["--sweep", "lr"], "is not KEY=VALUE"),
        (["--sweep", "lr=0,1e-3"], "lr is 0.0, but must be"),
        (["--sweep", "lr=nan"], "lr is nan, but must be"),
        (["--sweep", "epochs=many"], "cannot be read as int"),
        (["--sweep", "lr=1e-3,1e-3"], "tried twice"),
        (["--sweep", "lr=1e-3", "--folds", "4"], "4 folds need 4 groups"),
        (["--sweep", "lr=1e-3", "--folds", "1"], "must be 2 or more"),
        (["--sweep", "epochs=1", "--epochs", "2"], "leave --epochs out"),
        (["--sweep", "lr=1e-3", "--mpp", "0.001"], "not between 0.005 and 5"),
        ([], "say what to try"),
    ],
)
def test_searches_of_which_nothing_can_come(tree: Path, tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "mini.toml").write_text(MINI)
    command = ["search", str(tree), "--recipe", str(tmp_path / "mini.toml"), "-o", str(tmp_path / "s"), *options]
    told = CliRunner().invoke(app, command)
    assert told.exit_code in (1, 2)
    assert message in " ".join(told.output.split())
    assert not (tmp_path / "s").exists()


def test_one_class_and_a_class_of_one_picture(tree: Path, tmp_path: Path) -> None:
    (tree / "rare").mkdir()
    shutil.copy(CROPS / "basophil/BA_101381.jpg", tree / "rare")
    with pytest.raises(DatasetError, match="'rare' has 1"):
        run(tree, tmp_path / "s", [Stage("rate", {"lr": (1e-3,)}, folds=2)])
    for name in ("eosinophil", "neutrophil", "rare"):
        shutil.rmtree(tree / name)
    with pytest.raises(DatasetError, match="only one class"):
        run(tree, tmp_path / "s", [Stage("rate", {"lr": (1e-3,)})])


def test_every_published_recipe_is_possible() -> None:
    names = {"togatorop2023", "mobilenetv2-5class", "muntasa2025", "transfer-8class", "frozen-vs-custom"}
    assert names <= set(recipes())
    for name in names:
        protocol = load_protocol(name)
        assert protocol.stages
        assert protocol.reported
        assert protocol.split == "grouped"
        for stage in protocol.stages:
            for _, changes in stage.variants():
                assert protocol.recipe.but(**changes).preprocessing
    grid = load_protocol("muntasa2025").stages[0]
    assert len(grid.variants()) == 9
    assert grid.folds == 5


def test_stages_that_say_something_unknown(tmp_path: Path) -> None:
    for text, message in (
        ("speed = 3", "unknown speed"), ("folds = 1", "must be 2 or more"), ("sweep = { lr = [] }", "no values"),
        ("settings = { lrr = 1 }", "unknown 'lrr'"), ("sweep = { epochs = [1, 0] }", "epochs is 0"),
    ):  # fmt: skip
        (tmp_path / "x.toml").write_text(f'[[stage]]\nname = "a"\n{text}\n')
        with pytest.raises(ValueError, match=message):
            load_protocol(tmp_path / "x.toml")


def test_values_take_the_types_of_the_recipe() -> None:
    assert read_values(["lr=1,1e-4", "batch-size=8", "network=vgg16,resnet50"]) == {
        "lr": (1.0, 1e-4), "batch_size": (8,), "network": ("vgg16", "resnet50"),
    }  # fmt: skip
    assert read_values(['preprocessing=[{step="grey"}]'])["preprocessing"] == ([{"step": "grey"}],)


def test_copies_before_a_random_split_leak_and_are_counted(tree: Path) -> None:
    found = check(read_dataset(tree))
    split = make_split(found, kind="random", val=0.25, copies=12)
    assert len(split.dataset) == 3 * 16
    assert split.leaks == len(split.rows("val")) == 12
    assert any("LEAKS: 12 of 12" in note for note in split.notes)
    assert any("9 cells were multiplied to 48 before the split" in note for note in split.notes)
    assert len(make_split(found, kind="grouped", val=0.34, copies=12).dataset) == 9


def test_sets_that_are_taken_together_keep_their_groups_apart(tree: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(tree / "lymphocyte", tmp_path / name)
        (tmp_path / name / "labels.csv").write_text("file,class,group\nLY_100275.jpg,lymphocyte,g1\n")
    both = join([read_dataset(tmp_path / name) for name in ("one", "two")])
    assert both.name == "one+two"
    assert both.table["group"].tolist() == ["one/g1", "two/g1"]


def test_starts_for_one_network_and_for_the_rest(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    file = tmp_path / "a.safetensors"
    save_file({"x": zeros(1)}, file, {"input": "RGB 224x224, x/127.5-1"})
    adapt = adapted({"pixels": 64}, ["random", f"mobilenet_v2={file}"])
    mobile, vgg = adapt(Recipe(batch_norm="frozen")), adapt(Recipe(network="vgg16", free=0))
    assert (mobile.start, mobile.batch_norm) == (str(file), "frozen")
    assert mobile.reduced == "at 64 instead of 128 pixels"
    assert (vgg.start, vgg.batch_norm, vgg.free) == ("random", "train", -1)
    assert normalisation("mobilenet_v2", str(file)) == "scale_to_unit"
    assert normalisation("mobilenet_v2", "imagenet") == "imagenet"
    assert normalisation("inception_resnet_v2", "imagenet") == "scale_to_unit"
    scratch = Recipe(network="custom_cnn", start="random", batch_norm="train")
    assert adapted({}, ["imagenet"])(scratch).start == "random"
    with pytest.raises(ValueError, match="given twice"):
        adapted({}, ["random", "imagenet"])

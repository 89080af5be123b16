"""The dock that trains, driven as a user drives it: real cells, real processes, a real window."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from napari_wbc._widgets import _train
from napari_wbc._widgets._curves import Curves
from napari_wbc._widgets._train import result_lines, time_left
from napari_wbc.models import available_models

# Starting a process that imports torch takes most of it.
TIMEOUT = 600_000
pytestmark = pytest.mark.timeout(1500)
TINY = """
# Small and quick.
network = "custom_cnn"
start = "random"
pixels = 32
side_um = 24.0
epochs = 3
batch_size = 4
lr = 1e-3
preprocessing = [{ step = "scale_to_unit" }]
augmentation = [{ step = "colour" }]
warmup = 0
batch_norm = "train"
"""


@pytest.fixture
def trainer(dock, tree, tmp_path, monkeypatch):
    """Return the dock with three classes of three cells, a tiny recipe and a folder for the run."""
    monkeypatch.setattr(_train, "RUNS", tmp_path / "runs")
    (tmp_path / "tiny.toml").write_text(TINY)
    widget = dock("Train classifier")
    widget.recipe.insertItem(0, "tiny", str(tmp_path / "tiny.toml"))
    widget.recipe.setCurrentIndex(0)
    widget.mpp.setText("0.145")
    return widget


def choose(qtbot, widget, path) -> None:
    widget.labelled.edit.setText(str(path))
    widget.labelled.edit.editingFinished.emit()
    qtbot.waitUntil(lambda: not widget.labelled.child.is_running, timeout=TIMEOUT)


def processes_below(pid: int) -> set[int]:
    """Numbers of the processes that this one started, and of theirs."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(a): int(b) for a, b in (line.split() for line in table.splitlines())}
    found: set[int] = {pid}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def are_gone(pids: set[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_from_cells_to_a_model_in_the_list_of_classify(viewer, dock, press, qtbot, trainer, tree):
    classify = dock("Classify white cells")
    assert trainer.status.text() == _train.NEEDS_CELLS
    choose(qtbot, trainer, tree)
    said = trainer.labelled.summary.text()
    assert "3 classes, 9 cells" in said
    assert "training" in said
    assert "No patients or slides are named" in said
    assert trainer.status.text() == _train.READY
    assert (trainer.name.placeholderText(), trainer.folder.placeholderText()) == (
        "cells", str(tree.parent / "runs/cells"),
    )  # fmt: skip
    trainer.epochs.setValue(2)
    stages: list[str] = []
    trainer.training.progressed.connect(lambda stage, done, total: stages.append(stage))
    assert press(trainer) == "Trained: the model cells is in the list of Classify white cells."

    run = tree.parent / "runs/cells"
    assert list(dict.fromkeys(stages)) == ["checking pictures", "cutting cells", "epoch 1 of 2", "epoch 2 of 2"]
    pd.testing.assert_frame_equal(trainer.curves.history, pd.read_csv(run / "history.csv"))
    left, right = trainer.curves.canvas.figure.axes
    drawn = {line.get_label(): line.get_ydata().tolist() for line in right.lines}
    assert drawn["validation"] == (100 * trainer.curves.history["val_accuracy"]).tolist()
    assert [len(line.get_xdata()) for line in left.lines] == [2, 2]
    card = json.loads((run / "cells.json").read_text())
    assert card["network"] == "custom_cnn"
    assert card["training"]["epochs"] == 2
    (accuracy,) = [row for row in card["results"] if row["what"] == "accuracy"]
    assert f"accuracy {accuracy['value']:.1f} % (95 % limits {accuracy['low']:.1f}" in trainer.result.text()

    assert "Few steps" in trainer.result.text()
    # The curves have the room of the classes, which the tool tip still has.
    assert "6 training" in trainer.labelled.summary.text()
    assert "lymphocyte" not in trainer.labelled.summary.text()
    assert "lymphocyte" in trainer.labelled.summary.toolTip()

    # Without being touched, the other dock offers it.
    assert classify.model.findText("cells") >= 0
    assert classify.model.currentText() == "wbc8-mobilenetv2"
    trainer.use_button.click()
    assert classify.model.currentData() == str(available_models()["cells"])
    assert trainer.name.placeholderText() == "cells-2"


@pytest.mark.skipif(os.name == "nt", reason="the processes are looked up with ps")
def test_cancel_leaves_no_process_and_the_run_goes_on(qtbot, press, trainer, tree):
    trainer.labelled._path = tree  # what the cells are is seen above
    trainer.labelled.changed.emit()
    trainer.epochs.setValue(400)
    others = processes_below(os.getpid())  # such as the tracker of multiprocessing, which stays
    trainer.start()
    qtbot.waitUntil(lambda: len(trainer.curves.history) > 1, timeout=TIMEOUT)
    started = processes_below(os.getpid()) - others
    assert started
    start = time.monotonic()
    trainer.cancel_button.click()
    qtbot.waitUntil(lambda: not trainer.is_running, timeout=TIMEOUT)
    assert time.monotonic() - start < 20  # on a busy machine; two seconds on one that is not
    qtbot.waitUntil(lambda: are_gone(started), timeout=60_000)
    assert trainer.status.text().startswith("Cancelled after ")
    assert "goes on from there" in trainer.status.text()
    run = tree.parent / "runs/cells"
    assert (run / "last.ckpt").is_file()
    kept = pd.read_csv(run / "history.csv")
    assert trainer.name.placeholderText() == "cells"

    # The same again goes on; this time the dock is closed in the middle.
    trainer.start()
    qtbot.waitUntil(lambda: len(trainer.curves.history) > len(kept), timeout=TIMEOUT)
    # An epoch that was cancelled between its row and its checkpoint is run again: the same numbers in another time.
    again = trainer.curves.history.iloc[: len(kept)]
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), kept.drop(columns="seconds"))
    started = processes_below(os.getpid()) - others
    trainer.viewer.window.remove_dock_widget(trainer)
    qtbot.waitUntil(lambda: are_gone(started), timeout=60_000)


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_process_that_is_killed_and_settings_that_changed(qtbot, press, trainer, tree):
    trainer.labelled._path = tree
    trainer.labelled.changed.emit()
    trainer.epochs.setValue(400)
    trainer.start()
    (child,) = trainer.training._processes
    assert child.waitForStarted()
    os.kill(child.processId(), signal.SIGKILL)
    qtbot.waitUntil(lambda: not trainer.is_running, timeout=TIMEOUT)
    assert "the system ended the process" in trainer.status.text()
    (tree.parent / "runs/cells").mkdir(parents=True)
    (tree.parent / "runs/cells/thesis.doc").touch()
    assert press(trainer).endswith("holds other files; choose a new folder for the run")
    trainer.folder.setText(str(tree.parent / "runs/other"))
    trainer.name.setText("wbc8-mobilenetv2")
    assert press(trainer).endswith("is the name of a model that comes with the package; give another as Model name")


def test_cells_that_cannot_be_trained_on(qtbot, press, trainer, tmp_path, tree):
    (tmp_path / "empty").mkdir()
    choose(qtbot, trainer, tmp_path / "empty")
    assert "no labelled picture found" in trainer.status.text()
    assert not trainer.labelled.summary.isVisible()
    shutil.copytree(tree, tmp_path / "<b>bad")
    (tmp_path / "<b>bad/neutrophil/zero.jpg").touch()
    choose(qtbot, trainer, tmp_path / "<b>bad")
    assert "zero.jpg" in trainer.labelled.summary.text()
    trainer.mpp.setText("7")
    assert "must be from 0.001 to 5" in press(trainer)


def test_without_the_libraries_it_says_what_to_install(dock, monkeypatch):
    monkeypatch.setattr(_train, "NEEDED", ("lightning", "no_such_library"))
    widget = dock("Train classifier")
    assert 'pip install "napari-wbc[train]"' in widget.status.text()
    widget.start()
    assert not widget.is_running


def test_in_a_window_of_800_pixels_nothing_is_cut(make_napari_viewer, qtbot, tmp_path):
    from qtpy.QtWidgets import QScrollArea

    viewer = make_napari_viewer(show=True)
    _, widget = viewer.window.add_plugin_dock_widget("napari-wbc", "Train classifier")
    viewer.window.resize(1280, 800)
    widget.labelled.notes = [
        "No near-copies found",
        "No patients or slides are named: " + "cells may be on both sides, " * 4,
    ]
    names = [f"class {k}" for k in range(8)]
    pd.DataFrame({"class": names * 3, "split": ["train"] * 16 + ["val"] * 8}).to_csv(tmp_path / "split.csv")
    widget.labelled.show_split(tmp_path)
    widget.advanced.expand(animate=False)
    widget.status.setText("What is wrong with the cells, and what to do about it. " * 3)
    lines = widget.labelled.summary, widget.status

    def all_seen() -> bool:
        return all(line.height() >= line.heightForWidth(line.width()) for line in lines)

    qtbot.wait(200)  # several layouts follow each other
    qtbot.waitUntil(all_seen, timeout=5000)
    # And the curves need no scrolling.
    widget.advanced.collapse(animate=False)
    widget.status.setText("Trained.")
    widget.labelled.show_split(tmp_path, brief=True)
    widget.result.setText("Validation, 64 cells: accuracy 98.4 % (95 % limits 91.6 – 100.0), macro-F1 98.4 %.")
    columns = {
        name: np.linspace(0.1, 0.9, 5) for name in ("loss", "val_loss", "accuracy", "val_accuracy", "val_macro_f1")
    }
    pd.DataFrame({"epoch": range(1, 6), **columns}).to_csv(tmp_path / "history.csv")
    widget.curves.show_history(tmp_path / "history.csv", 5)
    (area,) = widget.findChildren(QScrollArea)
    qtbot.wait(200)
    qtbot.waitUntil(lambda: area.verticalScrollBar().maximum() == 0, timeout=5000)
    assert widget.curves.visibleRegion().boundingRect().height() == widget.curves.height()


def test_curves_follow_the_theme(qtbot, tmp_path):
    history = pd.DataFrame(
        [[k, 1 / k, 0.5, 2 / k, 0.4, 0.3, 1e-3, 1.0] for k in (1, 2)],
        columns=["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_macro_f1", "lr", "seconds"],
    )
    history.to_csv(tmp_path / "history.csv", index=False)
    curves = Curves("dark")
    qtbot.addWidget(curves)
    curves.show_history(tmp_path / "history.csv", 5)
    dark = curves.canvas.figure.get_facecolor()
    curves.set_theme("light")
    assert sum(curves.canvas.figure.get_facecolor()[:3]) > sum(dark[:3])
    assert curves.canvas.figure.axes[1].get_xlim()[1] > 5


def test_words():
    assert time_left(10, 5, 10) == "20 s left"
    assert time_left(60, 1, 10) == "10 min left"
    assert time_left(0.1, 1, 10) == time_left(5, 0, 9) == ""
    rows = [
        {"what": "accuracy", "data": "cells/val", "n": 9, "value": 88.89, "low": 51.75, "high": 99.72},
        {"what": "macro-F1", "data": "cells/val", "n": 9, "value": 86.0},
    ]
    assert result_lines(rows) == ["Validation, 9 cells: accuracy 88.9 % (95 % limits 51.8 – 99.7), macro-F1 86.0 %."]

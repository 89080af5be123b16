"""The dock that trains a network on labelled cells, in a process of its own."""

from __future__ import annotations

import json
import re
import threading
import time
import tomllib
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import count, groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_documents_path
from qtpy.compat import isalive
from qtpy.QtCore import Qt, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_wbc.atomic import safe_name
from napari_wbc.models import NETWORKS, available_models
from napari_wbc.words import tenths

from ._child import Child, arguments_of
from ._curves import Curves
from ._dock import EXPECTED, ButtonDock
from ._labelled import PARTS, Labelled, shown
from ._models import refresh_models

if TYPE_CHECKING:
    from napari.viewer import Viewer

RUNS = user_documents_path() / "napari-wbc"
RECIPES = Path(__file__).parents[1] / "recipes"
THE_RECIPES = "the recipe's"
BROWSE = "Browse…"
NEEDED = ("lightning", "sklearn")
NEEDS_LIBRARIES = 'Training needs more libraries: pip install "napari-wbc[train]", then start napari again.'
NEEDS_CELLS = "Choose labelled cells first: a folder with one folder of pictures a class, or a CSV file."
READY = "Ready to train."
# What messages of the command call its options, and what they are called here.
HERE = {
    "give another with --name": "give another as Model name",
    "or give another name with --name": "or give another as Model name",
    "--start random": "Start: random",
    "--mpp": "Scale",
    "a smaller --batch-size": "a recipe with a smaller batch_size",
    "run the same command": "click Train classifier",
    "run it again": "click Train classifier",
}


class TrainWidget(ButtonDock):
    """Train a network on labelled cells; the model is then in the list of *Classify white cells*.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    verb = "Train classifier"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.setMinimumWidth(390)
        self.run_folder, self.model_name = Path(), ""
        self._epochs, self._stage, self._since = 1, "", (0.0, 0)
        self.training = Child(self)
        self.training.progressed.connect(self._on_progress)
        self.training.ended.connect(self._on_ended)
        self.labelled = Labelled(self)
        self.labelled.failed.connect(self._on_bad_cells)
        self.labelled.changed.connect(self._say_next)
        self._add_controls()
        self._add_advanced()
        self._add_results()
        napari_viewer.events.theme.connect(self._on_theme)
        self._say_next()

    @property
    def is_running(self) -> bool:
        """Whether a network is being trained."""
        return self.training.is_running

    def start(self) -> None:
        """Train, or go on with a run that was cancelled."""
        if self.is_running:
            return
        if self._missing():
            self._say_next()
            return
        try:
            arguments = self._arguments()
        except EXPECTED as error:
            self._fail(error)
            return
        self.labelled.stop()
        self._stage = ""
        self._show_running(True)
        self.progress.setFormat("")
        self.result.clear()
        self._buttons.hide()
        self.curves.show_history(Path(), 1)
        self.status.setText("Starting …")
        # Takes a second: done when the first epoch is.
        threading.Thread(target=import_module, args=("matplotlib.backends.backend_qtagg",), daemon=True).start()
        self.training.start(*arguments)

    def cancel(self) -> None:
        """Stop within two seconds; what is finished stays."""
        self.training.stop()
        self.cancel_button.setEnabled(False)
        self.status.setText("Stopping …")

    def leave(self) -> None:
        """Leave no process behind."""
        self.training.stop()
        self.labelled.stop()

    def use(self) -> None:
        """Open the dock that classifies, with the new model chosen."""
        _, dock = self.viewer.window.add_plugin_dock_widget("napari-wbc", "Classify white cells")
        dock.model.choose(self.model_name)
        dock.advanced.expand(animate=False)

    def _arguments(self) -> list[str]:
        """Return the command that the controls mean."""
        mpp = self.mpp.text().strip().replace(",", ".")
        if mpp and not _is_scale(mpp):
            raise ValueError(f"the scale is {mpp}, but must be from 0.001 to 5 µm per pixel, or blank")
        self.model_name = self.name.text().strip() or self.name.placeholderText()
        self.run_folder = Path(self.folder.text().strip() or self.folder.placeholderText()).expanduser().absolute()
        share = self.share.value() / 100
        return [
            "train", str(self.labelled.path),
            *arguments_of(
                output=self.run_folder, name=self.model_name, recipe=self.recipe.currentData(),
                network=self.network.currentData(), start=self.weights.currentData(), mpp=mpp,
                epochs=self.epochs.value() or None, scale=share if share < 1 else None,
            ),
        ]  # fmt: skip

    def _on_progress(self, stage: str, done: int, total: int) -> None:
        epoch = re.fullmatch(r"epoch (\d+) of (\d+)", stage)
        if epoch and stage != self._stage:
            self._show_run(int(epoch[2]))
        # Times of stages differ; epochs are one.
        if not self._stage or (stage != self._stage and not (epoch and self._stage.startswith("epoch"))):
            self._since = time.monotonic(), done
        self._stage = stage
        self.progress.setRange(0, total)
        self.progress.setValue(done)
        left = time_left(time.monotonic() - self._since[0], done - self._since[1], total - done)
        self.progress.setFormat(f"{stage}{left and f', {left}'}")
        self.status.setText(f"{stage.capitalize()} …")
        if epoch and done == total:
            self.progress.setRange(0, 0)
            self.status.setText("Measuring the model on validation …")

    def _show_run(self, epochs: int, output: str | None = None) -> None:
        """Show what the folder of the run holds by now."""
        self._epochs = epochs
        # A folder that cannot be read for a moment must not end the program; the next epoch tries again.
        with suppress(*EXPECTED, OSError):
            self.labelled.show_split(self.run_folder, output, brief=True)
            self.curves.show_history(self.run_folder / "history.csv", epochs)

    def _on_ended(self, output: str, why: str) -> None:
        self._show_running(False)
        if why:
            for there, here in HERE.items():
                why = why.replace(there, here)
            self._fail(ValueError(why))
        elif output:
            try:
                self._show_result(output)
            # An exception that leaves a slot ends the whole program.
            except Exception as error:  # noqa: BLE001
                self._fail(error)
        else:
            self._show_cancelled()
        self._suggest()

    def _show_result(self, output: str) -> None:
        self._show_run(self._epochs, output)
        card = json.loads((self.run_folder / f"{self.model_name}.json").read_text(encoding="utf-8"))
        more = [line for line in output.splitlines() if line.startswith(("Stopped early", "Scaled", "Few steps"))]
        self.result.setText("\n".join([*result_lines(card["results"]), *more, "Research use only."]))
        self.status.setText(f"Trained: the model {self.model_name} is in the list of Classify white cells.")
        refresh_models()
        self._buttons.show()

    def _show_cancelled(self) -> None:
        if (self.run_folder / "last.ckpt").is_file():
            self._show_run(self._epochs)
        n = len(self.curves.history)
        epochs = "epoch, which is kept" if n == 1 else "epochs, which are kept"
        done = f"after {n} {epochs}" if n else "before the first epoch was finished"
        self.status.setText(f"Cancelled {done}. Train classifier, with the same settings, goes on from there.")

    def _missing(self) -> str:
        """Return what is needed before anything can be trained."""
        if any(find_spec(library) is None for library in NEEDED):
            return NEEDS_LIBRARIES
        return NEEDS_CELLS if self.labelled.path is None else ""

    def _say_next(self) -> None:
        if not self.is_running:
            self.status.setText(self._missing() or READY)
            self._suggest()

    def _suggest(self) -> None:
        """Show in the empty fields a name that no model has, and a folder for its run."""
        data = self.labelled.path
        if data is None:
            return
        table = data.suffix.lower() == ".csv"
        wanted = safe_name(data.parent.name if data.name == "labels.csv" else data.stem if table else data.name)
        names = (wanted if k == 1 else f"{wanted}-{k}" for k in count(1))
        there = available_models()
        name = next(name for name in names if name not in there and not _is_finished(RUNS / name))
        self.name.setPlaceholderText(name)
        folder = RUNS / (self.name.text().strip() or name)
        self.folder.setPlaceholderText(shown(folder))

    def _on_theme(self) -> None:
        if isalive(self):
            self.curves.set_theme(self.viewer.theme)

    def _on_bad_cells(self, message: str) -> None:
        self._fail(ValueError(message))

    def _add_controls(self) -> None:
        self.mpp = QLineEdit()
        self.mpp.setPlaceholderText("measured from the red cells")
        self.mpp.setToolTip("µm per pixel of the pictures; blank: each picture's own, measured from its red cells")
        self.recipe = QComboBox()
        for path in sorted(RECIPES.glob("*.toml")):
            # Published protocols have stages of many runs: a search, not a model.
            if "stage" not in tomllib.loads(path.read_text(encoding="utf-8")):
                self.recipe.addItem(path.stem, str(path))
        self.recipe.setCurrentText("wbc")
        self.recipe.addItem(BROWSE, None)
        self.recipe.activated.connect(self._on_recipe)
        self.name, self.folder = QLineEdit(), QLineEdit()
        self.name.setToolTip("Name of the model in the list of models")
        self.name.textChanged.connect(self._suggest)
        self.folder.setToolTip("Folder of the run: model, curves, split and settings. It must be new or empty.")
        browse = QPushButton("…")
        browse.setMaximumWidth(32)
        browse.clicked.connect(self._browse_folder)
        row = QHBoxLayout()
        row.addWidget(self.folder, 1)
        row.addWidget(browse)
        self.form.addRow("Cells", self.labelled.row)
        self.form.addRow(self.labelled.summary)
        self.form.addRow("Scale, µm/px", self.mpp)
        self.form.addRow("Recipe", self.recipe)
        self.form.addRow("Model name", self.name)
        self.form.addRow("Run folder", row)

    def _add_advanced(self) -> None:
        self.network, self.weights = QComboBox(), QComboBox()
        self.network.addItem(THE_RECIPES, None)
        for name in NETWORKS:
            self.network.addItem(name, name)
        for text, value in ((THE_RECIPES, None), ("ImageNet", "imagenet"), ("random", "random"), (BROWSE, BROWSE)):
            self.weights.addItem(text, value)
        self.weights.setToolTip("Weights to start from; ImageNet's are downloaded once")
        self.weights.activated.connect(self._on_weights)
        self.epochs, self.share = QSpinBox(), QDoubleSpinBox()
        self.epochs.setRange(0, 10_000)
        self.share.setRange(0.1, 100)
        self.share.setDecimals(1)
        self.share.setValue(100)
        self.share.setSuffix(" %")
        self.share.setToolTip("Share of the data and of the epochs that is run, for a trial")
        inside = QWidget()
        form = QFormLayout(inside)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Network", self.network)
        form.addRow("Start", self.weights)
        form.addRow("Epochs", self.epochs)
        form.addRow("Share", self.share)
        self.advanced = QCollapsible("Advanced", expandedIcon="▾", collapsedIcon="▸")
        self.advanced.addWidget(inside)
        self.body.insertWidget(1, self.advanced)
        self._show_recipe()

    def _add_results(self) -> None:
        self.result = QLabel()
        self.result.setWordWrap(True)
        self.result.setTextFormat(Qt.TextFormat.PlainText)
        self.result.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.curves = Curves(self.viewer.theme)
        self.use_button, folder_button = QPushButton("Use it in Classify"), QPushButton("Open run folder")
        self.use_button.clicked.connect(self.use)
        folder_button.clicked.connect(self._open_folder)
        self._buttons = QWidget()
        row = QHBoxLayout(self._buttons)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.use_button)
        row.addWidget(folder_button)
        self._buttons.hide()
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.result)
        column.addWidget(self.curves, 1)
        column.addStretch()
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QScrollArea.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(inside)
        # It scrolls; the lines above it cannot, and would be cut.
        area.setMinimumHeight(1)
        self.body.addWidget(area, 1)
        self.body.addWidget(self._buttons)

    def _on_recipe(self, index: int) -> None:
        if self.recipe.itemData(index) is None:
            path, _ = QFileDialog.getOpenFileName(self, "Recipe", "", "Recipe (*.toml)")
            if path:
                self.recipe.insertItem(0, Path(path).stem, path)
            self.recipe.setCurrentIndex(0 if path else self.recipe.findText("wbc"))
        self._show_recipe()

    def _show_recipe(self) -> None:
        """Say what the recipe chooses where the dock chooses nothing."""
        try:
            text = Path(self.recipe.currentData()).read_text(encoding="utf-8")
            values = tomllib.loads(text)
        except (OSError, ValueError):
            text, values = "", {}  # training says what is wrong with it
        about = [line.removeprefix("#").strip() for line in takewhile(lambda line: line[:1] == "#", text.splitlines())]
        self.recipe.setToolTip(" ".join(about))
        self.network.setItemText(0, ", ".join([THE_RECIPES, *map(str, filter(None, [values.get("network")]))]))
        self.epochs.setSpecialValueText(", ".join([THE_RECIPES, *map(str, filter(None, [values.get("epochs")]))]))

    def _on_weights(self, index: int) -> None:
        if self.weights.itemText(index) == BROWSE:
            path, _ = QFileDialog.getOpenFileName(self, "Weights", "", "Weights (*.safetensors)")
            if path:
                self.weights.insertItem(1, Path(path).name, path)
            self.weights.setCurrentIndex(1 if path else 0)

    def _browse_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "A new or empty folder for the run")
        if folder:
            self.folder.setText(folder)

    def _open_folder(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.run_folder)))


def time_left(seconds: float, done: int, more: int) -> str:
    """Return how long `more` steps take if `done` took so many seconds, in words; empty while nobody knows."""
    if done <= 0 or seconds < 1 or more <= 0:
        return ""
    left = seconds / done * more
    if left < 90:
        return f"{max(1, round(left))} s left"
    return f"{round(left / 60)} min left" if left < 5400 else f"{left / 3600:.1f} h left"


def result_lines(results: list[dict[str, Any]]) -> list[str]:
    """Return a line for each part of the data that a card has results on."""
    lines = []
    for data, rows in groupby(results, key=lambda row: str(row["data"])):
        said, n = [], 0
        for row in rows:
            limits = f" (95 % limits {tenths(row['low'])} – {tenths(row['high'])})" if "low" in row else ""
            said.append(f"{row['what']} {tenths(row['value'])} %{limits}")
            n = row["n"]
        lines.append(f"{PARTS.get(data.rpartition('/')[2], data).capitalize()}, {n} cells: {', '.join(said)}.")
    return lines


def _is_scale(text: str) -> bool:
    try:
        return 0.001 <= float(text) <= 5
    except ValueError:
        return False


def _is_finished(run: Path) -> bool:
    return bool(list(run.glob("*.safetensors"))) and not (run / "last.ckpt").exists()

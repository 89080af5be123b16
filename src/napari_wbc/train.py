"""Train a network on labelled cells; one folder a run."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .allocator import keep_blocks
from .atomic import new_file
from .classifier import ModelCard
from .dataset import Dataset, DatasetError, read_dataset
from .engine import HISTORY, NothingLearntError, TrainingError, fit, lightning_module, start_network, trainer_precision
from .models import NETWORKS
from .prepare import Prepared, Report, prepare, split_cells
from .recipe import Recipe
from .run_folder import card_of, check_folder, draw_curves, install_model, keep_start, model_name, write_model
from .split import Kind, Split
from .words import plural

__all__ = [
    "HISTORY",
    "NothingLearntError",
    "Prepared",
    "Report",
    "Trained",
    "TrainingError",
    "check_start",
    "few_steps",
    "prepare",
    "split_cells",
    "train",
]  # fmt: skip


ENOUGH_STEPS = 80
"""Fewer hardly move the weights away from their start at the rate of the recipe ``wbc`` (docs/training.md)."""


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Parameters
    ----------
    folder : pathlib.Path
        Of the run.
    card : ModelCard
        Of the model, which lies in it.
    history : pandas.DataFrame
        A row an epoch, columns `HISTORY`.
    stopped : str
        Why training ended before its time; empty if it did not.
    """

    folder: Path
    card: ModelCard
    history: pd.DataFrame
    stopped: str = ""


def train(
    data: str | Path | Dataset | Split,
    recipe: Recipe,
    folder: str | Path,
    *,
    name: str | None = None,
    split: Kind | None = None,
    split_file: str | Path | None = None,
    val: float = 0.2,
    test: float = 0.0,
    mpp: float | None = None,
    device: str | None = None,
    devices: int = 1,
    nodes: int = 1,
    precision: str = "auto",
    report: Report | None = None,
    install: bool = True,
    cache: Path | None = None,
) -> Trained:
    """Train a network, or go on with a run that was interrupted.

    Parameters
    ----------
    data : path, Dataset or Split
        Labelled cells (`napari_wbc.dataset.read_dataset`), or cells that were split already.
    recipe : Recipe
        What to do.
    folder : path
        Of the run. It gets ``settings.json`` (every setting), ``split.csv``, ``problems.csv``, ``history.csv``,
        ``curves.png``, ``environment.json``, ``predictions.csv`` (of val and test) and the model: card and weights. If
        it holds a run of the same settings that was interrupted, that run goes on and gives the same history as if it
        had not been.
    name : str, optional
        Of the model; the folder's if not given.
    split, split_file, val, test : see `napari_wbc.split.make_split`
    mpp : float, optional
        Micrometres per pixel of the pictures.
    device : str, optional
        ``cpu``, ``cuda`` or ``mps``; the fastest if not given.
    devices, nodes : int
        Devices on each of so many machines (Lightning's distributed data parallel training).
    precision : str
        ``32``, ``bf16``, ``16``, or ``auto``: bf16 on CUDA, else 32 bits.
    report : callable, optional
        Told how far it is.
    install : bool
        Whether the model joins the list of models (`napari_wbc.models.available_models`).
    cache : pathlib.Path, optional
        Folder that keeps the crops for further runs on the same cells; without it they are removed at the end.

    Returns
    -------
    Trained

    Raises
    ------
    DatasetError, TrainingError, ValueError
        If there is nothing to learn from, training went wrong, or the recipe is not possible.
    """
    folder, recipe = Path(folder), recipe.normalised()
    where = data.dataset.name if isinstance(data, Split) else data.name if isinstance(data, Dataset) else str(data)
    if isinstance(data, str | Path):
        data = read_dataset(data)  # what is wrong with the data is said before anything else
    settings = json.loads(
        json.dumps(
            {
                "recipe": recipe.to_dict(), "data": where,
                "split": split, "split_file": split_file and str(split_file), "val": val, "test": test, "mpp": mpp,
            }
        )
    )  # fmt: skip
    check_folder(folder, settings)
    name = model_name(name, folder, install=install)
    check_start(recipe, device, precision)
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / "settings.json") as fresh:
        fresh.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if not isinstance(data, Split):
        data = split_cells(data, recipe, split=split, split_file=split_file, val=val, test=test, report=report)
    ready = prepare(data, recipe, mpp=mpp, cache=cache or folder / "cache", report=report)
    if recipe.prior_strength and (unknown := set(ready.classes) - set(recipe.prior)):
        raise DatasetError(f"the recipe's prior has no share for {', '.join(sorted(unknown))}")
    keep_start(folder, ready)
    torch.manual_seed(recipe.seed)
    network = start_network(recipe, len(ready.classes))
    weight = None
    if recipe.balance == "loss":
        n = np.bincount(ready.y[ready.split.rows("train")], minlength=len(ready.classes)).clip(1).astype(float)
        weight = torch.tensor(n**-recipe.balance_power / np.mean(n**-recipe.balance_power), dtype=torch.float32)
    module = lightning_module(recipe, weight, network)
    keep_blocks()
    follower = fit(folder, recipe, ready, module, device, devices, nodes, precision, report)
    if not follower.first:
        raise SystemExit(0)  # of a distributed run, the first process finishes
    history = pd.DataFrame(follower.rows, columns=HISTORY)
    if "best" not in follower.states:
        raise NothingLearntError(
            f"the loss was no number in the first epoch: nothing was learnt and nothing is kept. The learning rate "
            f"{recipe.lr:g} may be too high"
        )
    card = card_of(name, recipe, ready, history, mpp)
    state = follower.states["average" if recipe.average != "none" else recipe.keep]
    if not all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point()):
        state = follower.states["best"]
    card = write_model(folder, card, recipe, ready, state, device, mpp)
    draw_curves(history, folder / "curves.png")
    if install:
        install_model(folder / f"{card.name}.json")
    del ready  # Windows does not remove files that are mapped into memory
    shutil.rmtree(folder / "cache", ignore_errors=True)
    with suppress(OSError):
        (folder / "last.ckpt").unlink()
    return Trained(folder, card, history, follower.stopped)


def few_steps(steps: int, epochs: int) -> str:
    """Say that a run had too few steps to learn much, and what to try; empty if it had enough."""
    if steps >= ENOUGH_STEPS:
        return ""
    more = math.ceil(ENOUGH_STEPS * epochs / steps)
    return (
        f"Few steps: {steps} in {plural(epochs, 'epoch')} change the weights little; with so few "
        f"cells, more epochs ({more}) or a higher learning rate often learn more"
    )


def check_start(recipe: Recipe, device: str | None, precision: str) -> None:
    """What would fail after minutes of preparing fails now."""
    import lightning  # noqa: F401 - missing without the extra

    trainer_precision(precision, device or "cpu")
    if (device == "cuda" and not torch.cuda.is_available()) or (
        device == "mps" and not torch.backends.mps.is_available()
    ):
        raise ValueError(f"device {device}: cannot be used here; leave --device out")
    if recipe.start != "random" or recipe.network not in NETWORKS:
        start_network(recipe, 2)

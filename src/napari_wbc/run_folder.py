"""The folder of a training run: what may stand in it, what a run writes, and the model at its end."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .atomic import DEBRIS, new_file
from .batches import Batches
from .classifier import Classifier, ModelCard, save_model
from .dataset_pictures import cut_cells
from .engine import TrainingError
from .prepare import Prepared
from .recipe import Recipe
from .record import differences, versions


def check_settings(folder: Path, settings: Mapping[str, Any], file: str) -> bool:
    """A folder may be new, empty, or hold a run of these settings, which `file` keeps; returns whether it does.

    Raises
    ------
    TrainingError
        If it holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder}: a file stands where the folder of the run is needed; choose another")
    if not folder.exists() or not any(p.name not in DEBRIS for p in folder.iterdir()):
        return False
    kept = folder / file
    if not kept.is_file():
        raise TrainingError(f"{folder}: holds other files; choose a new folder for the run")
    try:
        before = dict(json.loads(kept.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{kept}: damaged or cut short ({error}); choose a new folder for the run") from error
    if differ := differences(before, json.loads(json.dumps(settings, default=list))):
        raise TrainingError(
            f"{folder}: holds a run with other settings ({differ}); give the same to go on with it, choose a new "
            "folder, or delete it"
        )
    return True


def check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """A folder may be new, empty, or hold an unfinished run of these settings; else TrainingError."""
    if (
        check_settings(folder, settings, "settings.json")
        and not (folder / "last.ckpt").is_file()
        and (folder / "history.csv").is_file()
        and list(folder.glob("*.safetensors"))
    ):
        raise TrainingError(f"{folder}: this run is finished; choose a new folder to train again")


def model_name(name: str | None, folder: Path, *, install: bool) -> str:
    """A name that is a file's and nobody else's."""
    from .atomic import safe_name
    from .models import available_models, user_models

    wanted = name or folder.resolve().name
    if safe_name(wanted) != wanted or wanted in ("settings", "environment", "search"):  # files of the run
        raise ValueError(f"{wanted!r} is no name for a model; give another with --name")
    there = available_models().get(wanted) if install else None
    if there is not None and there.parent != user_models():
        raise ValueError(f"{wanted!r} is the name of a model that comes with the package; give another with --name")
    if there is not None:
        raise ValueError(f"there is a model {wanted!r} in {there.parent}; delete it, or give another name with --name")
    return wanted


def keep_start(folder: Path, ready: Prepared) -> None:
    """What a run starts from; a run that goes on must start from the same."""
    facts = versions() | {"torch threads": str(torch.get_num_threads()), "cuda": str(torch.version.cuda)}
    if (folder / "last.ckpt").is_file() and (folder / "split.csv").is_file():
        kept = (folder / "split.csv").read_bytes().replace(b"\r\n", b"\n")
        if kept != ready.split.table().to_csv(index=False).encode():
            raise TrainingError(
                f"{folder}: the data changed since this run began, and cells would move between training and "
                "validation; choose a new folder"
            )
    with new_file(folder / "environment.json") as fresh:
        fresh.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for file, table in (
        ("split.csv", ready.split.table()),
        ("problems.csv", pd.DataFrame(ready.split.dataset.problems, columns=["file", "problem"])),
    ):
        with new_file(folder / file) as fresh:
            table.to_csv(fresh, index=False)


def card_of(name: str, recipe: Recipe, ready: Prepared, history: pd.DataFrame, mpp: float | None = None) -> ModelCard:
    """The card of a model that was trained so, on pictures of so many µm per pixel if that was given."""
    counts = pd.Series(ready.split.part).value_counts()
    head: dict[str, Any] = {"hidden": recipe.hidden, "dropout": recipe.dropout}
    if recipe.batch_norm == "folded":
        head["folded"] = True
    training = {
        "data": ready.split.dataset.name,
        "cells": {part: int(n) for part, n in counts.items()},
        "further cells": len(ready.extra),
        "split": ready.split.kind,
        "notes": list(ready.notes),
        "epochs": len(history),
        "steps": len(history) * len(Batches(ready, recipe)),
        "recipe": {key: value for key, value in recipe.to_dict().items() if value not in ((), {}, "")},
    }
    if recipe.scaled:
        training["scaled"] = recipe.scaled
    if mpp is not None:
        training["mpp"] = mpp
    return ModelCard(
        name, recipe.network, ready.classes, recipe.size, recipe.preprocessing, views=recipe.views, head=head,
        threshold=recipe.threshold,
        description=f"Trained on {ready.split.dataset.name}", training=training,
    )  # fmt: skip


def write_model(
    folder: Path,
    card: ModelCard,
    recipe: Recipe,
    ready: Prepared,
    state: Mapping[str, Tensor],
    device: str | None,
    mpp: float | None,
) -> ModelCard:
    """Add the prior, measure on val and test as prediction cuts and sees them, and write card, weights and
    ``predictions.csv``.
    """
    from dataclasses import replace

    from .count import clopper_pearson
    from .evaluate import predictions, read_predictions

    state = {name: value.cpu() for name, value in state.items()}
    bias = [name for name in state if name.startswith("classifier.") and name.endswith(".bias")][-1]
    if recipe.prior_strength:
        prior = torch.tensor([math.log(recipe.prior[name]) for name in card.classes])
        state[bias] = state[bias] + recipe.prior_strength * prior
    path = folder / f"{card.name}.json"
    save_model(path, card, state)
    classifier = Classifier.load(path, device=device)
    if recipe.unlike:
        from .strange import learn_unlikeness

        unlikeness, tensors = learn_unlikeness(Classifier.load(path, device="cpu").network, recipe, ready)
        card, state = replace(card, unlikeness=unlikeness), state | tensors
    dataset, held = ready.split.dataset, np.flatnonzero(np.isin(ready.split.part, ["val", "test"]))
    crops = ready.crops[held] if ready.stored == card.crop else cut_cells(dataset.rows(held), card.crop, mpp=mpp)
    cells = ready.split.table().iloc[held].reset_index(drop=True)
    with new_file(folder / "predictions.csv") as fresh:
        predictions(cells, classifier.predict(crops).astype(float), card.classes).to_csv(fresh, index=False)
    results: list[dict[str, Any]] = []
    for part in ("val", "test"):
        if not len(ready.split.rows(part)):
            continue
        told = read_predictions(folder, part)
        right, n, values = int(told.table["right"].sum()), len(told.table), told.values()
        low, high = clopper_pearson(right, n)
        scaled = {"scaled": recipe.scaled} if recipe.scaled else {}
        for what, limits in (
            ("accuracy", {"low": round(100 * low, 2), "high": round(100 * high, 2)}),
            ("macro-F1", {}),
        ):
            results.append(
                {"what": what, "data": f"{dataset.name}/{part}", "n": n, "value": round(100 * values[what], 2)}
                | limits | scaled
            )  # fmt: skip
    return save_model(path, replace(card, results=tuple(results)), state)


def install_model(card: Path) -> Path:
    """Copy a model into the list of models; returns its new card."""
    from .models import user_models

    target = user_models()
    target.mkdir(parents=True, exist_ok=True)
    for suffix in (".safetensors", ".json"):
        with new_file(target / card.with_suffix(suffix).name) as fresh:
            shutil.copyfile(card.with_suffix(suffix), fresh)
    return target / card.name


def draw_curves(history: pd.DataFrame, file: Path) -> None:
    """Loss and accuracy over the epochs, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6))  # a computed layout takes a second, and a search draws many
    left, right = figure.subplots(1, 2, gridspec_kw={"left": 0.07, "right": 0.98, "bottom": 0.15, "wspace": 0.18})
    for axes, columns, title in (
        (left, ("loss", "val_loss"), "Loss"),
        (right, ("accuracy", "val_accuracy", "val_macro_f1"), "Right"),
    ):
        for column, style in zip(columns, ("-", "-", "--"), strict=False):
            label = {"loss": "training", "accuracy": "training", "val_macro_f1": "validation, macro-F1"}.get(
                column, "validation"
            )
            axes.plot(history["epoch"], history[column], style, label=label, marker="." if len(history) < 40 else None)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with new_file(file) as fresh:
        figure.savefig(fresh, format="png", dpi=130)

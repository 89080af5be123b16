"""Try settings one after the other, each an ordinary training run, and rank them; interrupted searches go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .atomic import new_file, safe_name
from .dataset import Dataset
from .evaluate import Evaluation, read_predictions
from .protocol import Stage
from .recipe import Recipe
from .run_folder import check_settings
from .split import Kind, Split, folds
from .train import NothingLearntError, Report, check_start, split_cells, train

if TYPE_CHECKING:
    import optuna

__all__ = ["Found", "Trial", "search"]

RANKED = {"accuracy": "accuracy", "log loss": "loss", "macro-F1": "macro_f1"}
"""Metrics on validation that every table has."""


@dataclass(frozen=True)
class Trial:
    """Settings that were tried.

    Parameters
    ----------
    stage, name : str
        What they are called.
    changes : mapping
        Keys of the recipe that make them.
    recipe : Recipe
        That was run.
    folders : tuple of pathlib.Path
        Of the training runs: one a fold.
    failed : str
        Why there is no result; empty if there is.
    """

    stage: str
    name: str
    changes: Mapping[str, Any] = field(repr=False)
    recipe: Recipe = field(repr=False)
    folders: tuple[Path, ...]
    failed: str = ""

    def judged(self, part: str) -> list[Evaluation]:
        """What the models of the folds said of val or test."""
        return [] if self.failed else [read_predictions(folder, part) for folder in self.folders]

    @property
    def histories(self) -> list[pd.DataFrame]:
        """The epochs of each fold."""
        return [] if self.failed else [pd.read_csv(folder / "history.csv") for folder in self.folders]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Parameters
    ----------
    folder : pathlib.Path
        Of the search.
    split : Split
        That all runs share; folds divide its cells outside test.
    stages : tuple of Stage
        What was tried.
    trials : tuple of Trial
        In the order in which they were tried.
    best : Recipe
        With the best values of all sweeps.
    """

    folder: Path
    split: Split
    stages: tuple[Stage, ...]
    trials: tuple[Trial, ...]
    best: Recipe

    @property
    def notes(self) -> list[str]:
        """What to tell of the data, the split, and how the runs fall short."""
        told = sorted({trial.recipe.scaled for trial in self.trials} - {""})
        return [*self.split.notes, *(f"scaled: {text}" for text in told)]

    def of(self, stage: str) -> list[Trial]:
        """Trials of a stage."""
        return [trial for trial in self.trials if trial.stage == stage]


def search(
    data: str | Path | Dataset,
    recipe: Recipe,
    stages: Sequence[Stage],
    folder: str | Path,
    *,
    adapt: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    split: Kind | None = None,
    split_file: str | Path | None = None,
    val: float = 0.2,
    test: float = 0.0,
    mpp: float | None = None,
    device: str | None = None,
    precision: str = "auto",
    report: Report | None = None,
) -> Found:
    """Try the stages one after the other, or go on with a search that was interrupted.

    Parameters
    ----------
    data : path or Dataset
        Labelled cells (`napari_wbc.dataset.read_dataset`).
    recipe : Recipe
        What all runs share.
    stages : sequence of Stage
        What to try. The best by mean accuracy on validation (of equals, that of the lower loss) goes on.
    folder : path
        Of the search. It gets a folder a stage, a variant and a fold, each an ordinary run, ``search.db`` (Optuna's
        studies) and ``search.json`` (every setting). Finished trials are not run again; an interrupted run goes on.
    adapt : callable, optional
        Last word on the recipe of every run.
    split, split_file, val, test : see `napari_wbc.split.make_split`
        One split for all runs; folds divide what is not test.
    mpp, device, precision, report : see `napari_wbc.train.train`

    Raises
    ------
    DatasetError, TrainingError, ValueError
        If the data, a setting or the folder cannot be used; before the first run where that can be known.
    """
    folder = Path(folder)
    planned = [adapt(recipe.but(**changes)) for stage in stages for _, changes in stage.variants()]
    settings = {
        "recipe": adapt(recipe).to_dict(), "data": data.name if isinstance(data, Dataset) else str(data),
        "stages": [[name, changes, stage.folds] for stage in stages for name, changes in stage.variants()],
        "runs": [some.to_dict() for some in planned], "split": split, "split_file": split_file and str(split_file),
        "val": val, "test": test, "mpp": mpp,
    }  # fmt: skip
    check_settings(folder, settings, "search.json")
    for some in {(r.network, r.start): r for r in planned}.values():
        check_start(some, device, precision)
    parts = split_cells(data, adapt(recipe), split=split, split_file=split_file, val=val, test=test, report=report)
    for n in {stage.folds for stage in stages if stage.folds}:
        folds(parts, n, recipe.seed)  # too few groups are said now
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / "search.json") as fresh:
        fresh.write_text(json.dumps(settings, indent=2, default=list) + "\n", encoding="utf-8")
    runs = _Runs(folder, mpp, device, precision, report, sum(len(s.variants()) * max(1, s.folds) for s in stages))
    trials: list[Trial] = []
    for stage in stages:
        done = _try(stage, recipe, adapt, parts, runs)
        trials += done
        if stage.sweep and (best := best_of(done)) is not None:
            recipe = recipe.but(**{key: best.changes[key] for key in stage.sweep})
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return Found(folder, parts, tuple(stages), tuple(trials), adapt(recipe))


@dataclass
class _Runs:
    """What all runs of a search share."""

    folder: Path
    mpp: float | None
    device: str | None
    precision: str
    report: Report | None
    total: int
    done: int = 0

    def train(self, parts: Split, recipe: Recipe, folder: Path) -> None:
        """One run, unless it is finished."""
        self.done += 1
        if (folder / "predictions.csv").is_file() and not (folder / "last.ckpt").is_file():
            return
        report = self.report
        number = f"run {self.done} of {self.total}, "
        train(
            parts, recipe, folder, mpp=self.mpp, device=self.device, precision=self.precision, install=False,
            cache=self.folder / "cache",
            report=(lambda what, k, n: report(number + what if "epoch" in what else what, k, n)) if report else None,
        )  # fmt: skip


def _try(stage: Stage, recipe: Recipe, adapt: Callable[[Recipe], Recipe], parts: Split, runs: _Runs) -> list[Trial]:
    """All variants of a stage; those that Optuna's study knows as finished are not run."""
    from optuna.trial import TrialState

    study = _study(runs.folder, stage.name)
    known = {trial.user_attrs["variant"]: trial for trial in study.trials if "variant" in trial.user_attrs}
    splits = folds(parts, stage.folds, recipe.seed) if stage.folds else [parts]
    names = [f"fold_{k + 1}" for k in range(len(splits))] if stage.folds else ["run"]
    result = []
    for k, (name, changes) in enumerate(stage.variants(), start=1):
        own = adapt(recipe.but(**changes))
        place = runs.folder / safe_name(stage.name) / f"{k:02d}_{safe_name(name)[:60]}".rstrip(" .")
        folders = tuple(place / fold for fold in names)
        trial = known.get(name)
        if trial is None or not trial.state.is_finished():
            number = _begin(study, stage, name, changes) if trial is None else trial.number
            failed = ""
            try:
                for some, folder in zip(splits, folders, strict=True):
                    runs.train(some, own, folder)
            except NothingLearntError as error:
                failed = str(error)
            done = Trial(stage.name, name, changes, own, folders, failed)
            values = summary(done.judged("val"))
            study.set_user_attr(name, {"failed": failed, **values})
            if failed:
                study.tell(number, state=TrialState.FAIL)
            else:
                study.tell(number, values["accuracy mean"])
        else:
            runs.done += len(folders)
            failed = study.user_attrs[name]["failed"]
        result.append(Trial(stage.name, name, changes, own, folders, failed))
    return result


def _study(folder: Path, name: str) -> optuna.Study:
    """Optuna's study of a stage, which outlives a kill."""
    import optuna
    from sqlalchemy.engine import URL

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    where = URL.create("sqlite", database=str(folder / "search.db"))
    return optuna.create_study(
        storage=where.render_as_string(hide_password=False), study_name=name, direction="maximize", load_if_exists=True
    )


def _begin(study: optuna.Study, stage: Stage, name: str, changes: Mapping[str, Any]) -> int:
    """Note that a variant is being tried; returns the number of Optuna's trial."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    params = {"variant": name} | {key: changes[key] for key in stage.sweep}
    choices: dict[str, BaseDistribution] = {
        key: CategoricalDistribution(stage.sweep.get(key, [n for n, _ in stage.variants()])) for key in params
    }
    study.add_trial(
        create_trial(state=TrialState.RUNNING, params=params, distributions=choices, user_attrs={"variant": name})
    )
    return len(study.trials) - 1


def summary(judged: Sequence[Evaluation]) -> dict[str, float]:
    """Mean and spread (standard deviation, NaN for one) over folds of accuracy, loss and macro-F1."""
    values = pd.DataFrame([result.values() for result in judged], columns=list(RANKED)).rename(columns=RANKED)
    told = {f"{name} {what}": value for name in RANKED.values()
            for what, value in (("mean", values[name].mean()), ("sd", values[name].std()))}  # fmt: skip
    return {name: float(value) for name, value in told.items()}


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the highest mean accuracy on validation, of equals that of the lowest loss; None if all failed."""
    done = [trial for trial in trials if not trial.failed]
    if not done:
        return None
    values = [summary(trial.judged("val")) for trial in done]
    return done[int(np.lexsort([[v["loss mean"] for v in values], [-v["accuracy mean"] for v in values]])[0])]

"""Tables and figures of a search: what was tried, ranked, and what its source shows of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .atomic import new_file, safe_name
from .evaluate import Evaluation
from .evaluate_report import draw_confusion
from .search import RANKED, Found, Trial, best_of, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MEASURED", "fold_table", "ranked_table", "write_tables"]

MEASURED = ("accuracy", "precision", "recall", "specificity", "F1", "AUC", "loss")
"""Of validation, or of test where there is one: means over the classes that have cells, but accuracy and loss."""
_MOST_SHOWN = 6


def measured(result: Evaluation) -> dict[str, float]:
    """`MEASURED` of one model."""
    values, classes = result.values(), result.per_class()
    held = classes[classes["n"] > 0].fillna({"precision": 0.0})  # a class that was never answered
    return {
        "accuracy": values["accuracy"],
        **{name: float(held[name].mean()) for name in ("precision", "recall", "specificity", "F1")},
        "AUC": values["AUC, mean over classes"], "loss": values["log loss"],
    }  # fmt: skip


def fold_table(found: Found) -> pd.DataFrame:
    """A row a run: stage, variant, fold, how it did on validation and on the reported part, and its folder."""
    rows = []
    part = reported(found)
    for trial in found.trials:
        both = zip(trial.folders, trial.judged("val"), trial.judged(part), strict=False)
        for k, (folder, val, told) in enumerate(both, start=1):
            values = val.values()
            rows.append(
                {"stage": trial.stage, "variant": trial.name, "fold": k, "failed": ""}
                | {f"val {short}": values[name] for name, short in RANKED.items()}
                | {f"{part} {name}": value for name, value in measured(told).items()}
                | {"n": len(told.table), "folder": folder.relative_to(found.folder).as_posix()}
            )  # fmt: skip
        if trial.failed:
            rows.append({"stage": trial.stage, "variant": trial.name, "failed": trial.failed})
    table = pd.DataFrame(rows)
    table["scaled"] = "; ".join(note for note in found.notes if note.startswith("scaled"))
    return table


def reported(found: Found) -> str:
    """The part of the cells that results are told of: test where there is one."""
    return "test" if len(found.split.rows("test")) else "val"


def ranked_table(found: Found) -> pd.DataFrame:
    """A row a variant, the best of each stage first: means and standard deviations over folds."""
    blocks = []
    part = reported(found)
    for stage in found.stages:
        rows = []
        for trial in found.of(stage.name):
            told = pd.DataFrame([measured(result) for result in trial.judged(part)], columns=list(MEASURED))
            row: dict[str, Any] = {"stage": stage.name, "rank": 0, "variant": trial.name}
            row |= {"folds": 0 if trial.failed else len(trial.folders)} | summary(trial.judged("val"))
            for name in MEASURED:
                row |= {f"{part} {name}": told[name].mean(), f"{part} {name} sd": told[name].std()}
            rows.append(row | {"failed": trial.failed, "scaled": trial.recipe.scaled})
        block = pd.DataFrame(rows).sort_values(["accuracy mean", "loss mean"], ascending=[False, True], kind="stable")
        block["rank"] = np.arange(1, len(block) + 1)
        blocks.append(block)
    return pd.concat(blocks, ignore_index=True)


def write_tables(found: Found) -> list[Path]:
    """Write ``runs.csv``, ``ranked.csv``, ``classes.csv`` and the figures of each stage into the search's folder.

    Parameters
    ----------
    found : Found
        From `napari_wbc.search.search`.

    Returns
    -------
    list of pathlib.Path
        What was written. Of each stage: what was tried, the confusion matrices, the curves and the ROC of each fold;
        the last three of the best variant, or of all where a stage compares rows.
    """
    part = reported(found)
    ranked = ranked_table(found)
    written = []
    for name, table in (("runs", fold_table(found)), ("ranked", ranked), ("classes", _class_table(found, part))):
        written.append(found.folder / f"{name}.csv")
        with new_file(written[-1]) as fresh:
            table.to_csv(fresh, index=False)
    for stage in found.stages:
        trials = found.of(stage.name)
        best = best_of(trials)
        if best is None:
            continue
        shown = [t for t in trials if not t.failed][:_MOST_SHOWN] if stage.row else [best]
        tried = {"": _draw_tried(ranked[ranked["stage"] == stage.name], trials, stage.sweep)} if len(trials) > 1 else {}
        figures = tried | {
            "_confusion": _draw_confusions(shown, part),
            "_curves": _draw_curves(shown),
            "_roc": _draw_roc(shown, part),
        }
        note = "; ".join(sorted({trial.recipe.scaled for trial in trials} - {""}))
        for suffix, figure in figures.items():
            title = fill(f"{stage.name}" + (f" (scaled: {note})" if note else ""), int(12 * figure.get_figwidth()))
            figure.suptitle(title, fontsize=10)
            written.append(found.folder / f"{safe_name(stage.name).replace(' ', '_')}{suffix}.png")
            with new_file(written[-1]) as fresh:
                figure.savefig(fresh, format="png", dpi=110)
    return written


def _class_table(found: Found, part: str) -> pd.DataFrame:
    """A row a class of each run: precision, recall, specificity, F1 and AUC."""
    blocks = [
        result.per_class().assign(scaled=trial.recipe.scaled, stage=trial.stage, variant=trial.name, fold=k)
        for trial in found.trials
        for k, result in enumerate(trial.judged(part), start=1)
    ]
    first = ["stage", "variant", "fold"]
    table = pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame(columns=first)
    return table[[*first, *table.columns.difference(first, sort=False)]]


def _figure(n: int, width: float = 4.6, height: float = 4.0, columns: int = 3) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(n, columns)
    lines = -(-n // columns)
    figure = Figure(figsize=(max(6.0, width * columns), height * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for spare in axes[n:]:
        spare.set_axis_off()
    return figure, axes[:n]


def _draw_tried(table: pd.DataFrame, trials: Sequence[Trial], sweep: Any) -> Figure:
    """Accuracy and loss on validation of all variants: lines over the first key that is swept, else bars."""
    figure, axes = _figure(2, 5.2)
    table = table.set_index("variant")
    for axis, what in zip(axes, ("accuracy", "loss"), strict=True):
        mean, sd = table[f"{what} mean"], table[f"{what} sd"].fillna(0)
        if sweep and len(set(map(type, next(iter(sweep.values()))))) == 1 and not isinstance(
            next(iter(sweep.values()))[0], str
        ):  # fmt: skip
            key, *others = sweep
            for point in itertools.product(*(sweep[other] for other in others)):
                some = [t for t in trials if all(t.changes[o] == v for o, v in zip(others, point, strict=True))]
                label = ", ".join(f"{o}={v}" for o, v in zip(others, point, strict=True))
                names = [t.name for t in some]
                axis.errorbar(
                    [t.changes[key] for t in some], mean[names], sd[names], marker="o", capsize=3, label=label
                )
            if min(sweep[key]) > 0 and max(sweep[key]) > 9 * min(sweep[key]):
                axis.set_xscale("log")
            axis.set_xticks(sweep[key], [f"{value:g}" for value in sweep[key]], minor=False)
            axis.minorticks_off()
            axis.set_xlabel(key)
            if others:
                axis.legend(frameon=False, fontsize=8)
        else:
            names = [t.name for t in trials]
            axis.barh(names, mean[names], xerr=sd[names], color="#3b75af")
            axis.invert_yaxis()
        axis.set_title(f"validation {what}")
        axis.grid(alpha=0.3)
    return figure


def _together(results: Sequence[Evaluation]) -> Evaluation:
    first = results[0]
    table = pd.concat([result.table for result in results], ignore_index=True)
    unit = np.concatenate([result.unit for result in results])
    return Evaluation(first.model, first.data, first.classes, table, unit, first.among)


def _draw_confusions(trials: Sequence[Trial], part: str) -> Figure:
    figure, axes = _figure(len(trials), 5.0, 4.4)
    for axis, trial in zip(axes, trials, strict=True):
        draw_confusion(axis, _together(trial.judged(part)))
        folds = f", {len(trial.folders)} folds together" if len(trial.folders) > 1 else ""
        axis.set_title(f"{trial.name}: {part}{folds}", fontsize=9)
    return figure


def _draw_curves(trials: Sequence[Trial]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(2 * len(trials), 4.6, 3.0, 2)
    for k, trial in enumerate(trials):
        for fold, history in enumerate(trial.histories):
            for axis, (seen, held) in zip(
                axes[2 * k : 2 * k + 2], (("loss", "val_loss"), ("accuracy", "val_accuracy")), strict=True
            ):
                for column, colour, label in ((seen, "#999999", "training"), (held, "#3b75af", "validation")):
                    axis.plot(history["epoch"], history[column], color=colour, alpha=0.8, marker=".",
                              label=label if fold == 0 else None)  # fmt: skip
                axis.set_title(f"{trial.name}: {seen}", fontsize=9)
                axis.set_xlabel("epoch")
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
                axis.grid(alpha=0.3)
                axis.legend(frameon=False, fontsize=8)
    return figure


def _draw_roc(trials: Sequence[Trial], part: str) -> Figure:
    """ROC of each fold: of two classes, the second's; of more, the mean over the classes at equal 1 - specificity."""
    from sklearn.metrics import roc_curve

    figure, axes = _figure(len(trials), 4.6, 4.2)
    for axis, trial in zip(axes, trials, strict=True):
        for k, result in enumerate(trial.judged(part), start=1):
            y, p = result.y, result.probabilities
            numbers = [c for c in range(len(result.classes)) if 0 < (y == c).sum() < len(y)]
            if not numbers:
                continue
            if len(result.classes) == 2:
                false, true, _ = roc_curve(y == 1, p[:, 1])
            else:
                false = np.linspace(0, 1, 201)
                curves = [roc_curve(y == c, p[:, c]) for c in numbers]
                true = np.mean([np.interp(false, curve[0], curve[1]) for curve in curves], axis=0)
            area = result.values()["AUC, mean over classes"]
            name = f"fold {k}" if len(trial.folders) > 1 else part
            axis.plot(false, true, label=f"{name}: AUC {area:.3f}")
        axis.plot([0, 1], [0, 1], color="0.7", lw=0.8)
        axis.set(xlabel="1 − specificity", ylabel="sensitivity")
        axis.set_title(trial.name, fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    return figure

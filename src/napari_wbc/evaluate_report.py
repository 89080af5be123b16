"""What is said of models that were judged: tables to read, plots, and one page with all of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pandas as pd

from .atomic import new_file, safe_name
from .evaluate import Evaluation, calibration_error, compare
from .page import plain, render
from .tables import to_csv
from .words import plural, tenths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_SHARES = ("Cohen's kappa", "AUC, mean over classes", "AUC", "log loss", "loss")
"""Metrics that are no shares of cells, and are not shown in per cent."""


def metrics_table(result: Evaluation) -> pd.DataFrame:
    """Return `Evaluation.summary` to be read: columns metric, value and limits, shares in per cent."""
    rows = []
    for row in result.summary.to_dict("records"):
        name = str(row["metric"])
        value, low, high = (number(row[key], name) for key in ("value", "low", "high"))
        rows.append((heading(name), value, "–" if np.isnan(row["low"]) else f"{low} – {high}"))
    return pd.DataFrame(rows, columns=["metric", "value", "95 % limits"])


def classes_table(result: Evaluation) -> pd.DataFrame:
    """Return `Evaluation.per_class` to be read, shares in per cent."""
    table = result.per_class()
    names = list(table.columns[2:])
    table = table.assign(**{name: [number(value, name) for value in table[name]] for name in names})
    return table.rename(columns={name: heading(name) for name in names})


def limits_note(result: Evaluation) -> str:
    """Say where the limits are from."""
    told = f"Limits: 95 %, bootstrap over {_units(result)}"
    table = result.summary.set_index("metric")
    if table["low"].drop("accuracy").notna().all():
        return told
    exact = "; those of the accuracy are exact" if table.loc["accuracy", "value"] in (0, 1) else ""
    return f"{told}, but where all resamples are alike (–){exact}"


def _units(result: Evaluation) -> str:
    """Say how many what the bootstrap draws."""
    n = len(np.unique(result.unit))
    if "group" not in result.table:  # predictions of a training run
        return plural(n, "unit") + " of its split (the cells of a patient, slide or picture)"
    named = (result.table["group"].fillna("").astype(str) != "").to_numpy()
    pictures = len(np.setdiff1d(result.unit, result.unit[named]))
    groups = f"{plural(n - pictures, 'group')} (patients or slides) that the data name"
    return " and ".join([groups] * bool(named.any()) + [plural(pictures, "picture")] * bool(pictures))


def heading(name: str, of: str = "") -> str:
    """Return the heading of a metric's column, of a part of the data if one is given."""
    told = f"{of} {name}".strip()
    return told if name in NO_SHARES else f"{told}, %"


def number(value: float, name: str) -> str:
    """Return the value of a metric as it is shown; a dash for none."""
    return "–" if np.isnan(value) else f"{value:.3f}" if name in NO_SHARES else tenths(100 * value)


def draw_confusion(axes: Any, result: Evaluation) -> None:
    """Confusion matrix: cells, and their share of the true class."""
    counts = result.confusion()
    rows = counts.to_numpy()[counts.sum(axis=1) > 0]
    names = [name for name, n in counts.sum(axis=1).items() if n]
    share = rows / rows.sum(axis=1, keepdims=True)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(rows.shape):
        if rows[i, j]:
            axes.text(j, i, f"{rows[i, j]}\n{100 * share[i, j]:.0f} %", ha="center", va="center", fontsize=7,
                   color="white" if share[i, j] > 0.5 else "black")  # fmt: skip
    axes.set_xticks(range(len(counts)), list(result.classes), rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(title="Confusion: cells, and share of the true class", xlabel="predicted", ylabel="true")


def draw(result: Evaluation) -> Figure:
    """Confusion matrix, ROC curves, calibration, and accuracy against share rejected."""
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    from .palette import colour

    figure = Figure(figsize=(12, 10), layout="constrained")
    (a, b), (c, d) = figure.subplots(2, 2)
    draw_confusion(a, result)
    y, p = result.y, result.probabilities
    for k, name in enumerate(result.classes):
        if 0 < (y == k).sum() < len(y):
            false, true, _ = roc_curve(y == k, p[:, k])
            b.plot(false, true, color=colour(name), label=name)
    b.plot([0, 1], [0, 1], color="0.7", lw=0.8)
    b.set(title="ROC, each class against the rest", xlabel="1 − specificity", ylabel="sensitivity")
    b.legend(frameon=False, fontsize=8)
    top, right = p.max(1), p.argmax(1) == y
    which = np.minimum((top * 10).astype(int), 9)
    n = np.bincount(which, minlength=10)
    seen = n > 0
    c.bar((np.bincount(which, top, 10) / n.clip(1))[seen], (np.bincount(which, right, 10) / n.clip(1))[seen], 0.06,
          color="#3b75af")  # fmt: skip
    c.plot([0, 1], [0, 1], color="0.5", lw=0.8)
    c.set(
        title=f"Calibration, ECE {calibration_error(top, right):.3f}",
        xlabel="probability",
        ylabel="right",
        xlim=(0, 1.02),
    )
    curve = result.rejection()
    d.plot(100 * curve["rejected"], 100 * curve["accuracy"], color="#3b75af")
    d.set(title="Accuracy of what is left", xlabel="least probable cells rejected, %", ylabel="right, %", xlim=(0, 50))
    for axes in (b, c, d):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{result.model} on {result.data}: {plural(len(y), 'cell')}")
    return figure


def contact_sheet(result: Evaluation, most: int = 48) -> npt.NDArray[np.uint8] | None:
    """The wrong cells of which the model was surest, with what they are and what it said; None if all are right."""
    from PIL import Image, ImageDraw

    wrong = result.table[~result.table["right"]].sort_values("probability", ascending=False).head(most)
    if wrong.empty or result.crops is None:
        return None
    side, columns = 120, 8
    sheet = Image.new("RGB", (columns * side, -(-len(wrong) // columns) * (side + 30)), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (row, cell) in enumerate(wrong.iterrows()):
        x, y = k % columns * side, k // columns * (side + 30)
        sheet.paste(Image.fromarray(result.crops[int(str(row))]).resize((side - 4, side - 4)), (x + 2, y + 2))
        pen.text((x + 3, y + side - 2), f"is {cell['class']}"[:20], fill="black")
        pen.text((x + 3, y + side + 11), f"{cell['predicted']} {100 * cell['probability']:.0f} %"[:22], fill="#b00020")
    return np.asarray(sheet)


def write_report(results: Sequence[Evaluation], folder: str | Path) -> Path:
    """Write ``report.html``, and for each model and set its predictions, metrics, confusion and pictures.

    Parameters
    ----------
    results : sequence of Evaluation
        One a model and set.
    folder : path
        Where to; made if it is not there.

    Returns
    -------
    pathlib.Path
        The page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts, everything = [], []
    names: set[str] = set()
    for result in results:
        stem = base = safe_name(f"{result.model}_{result.data}".replace("/", "_"))
        k = 2
        while stem in names:
            stem, k = f"{base}_{k}", k + 1
        names.add(stem)
        summary, per_class, confusion = result.summary, result.per_class(), result.confusion()
        for suffix, table in (
            ("predictions", result.table), ("classes", per_class), ("confusion", confusion.reset_index()),
            ("metrics", summary), ("rejection", result.rejection()),
        ):  # fmt: skip
            with new_file(folder / f"{stem}_{suffix}.csv") as fresh:
                fresh.write_text(to_csv(table), encoding="utf-8", newline="\n")
        with new_file(folder / f"{stem}.png") as fresh:
            draw(result).savefig(fresh, format="png", dpi=110)
        sheet = contact_sheet(result)
        if sheet is not None:
            from PIL import Image

            with new_file(folder / f"{stem}_wrong.png") as fresh:
                Image.fromarray(sheet).save(fresh, format="PNG")
        everything.append({"model": result.model, "data": result.data, "notes": list(result.notes),
                           "metrics": summary.to_dict("records"), "classes": per_class.to_dict("records")})  # fmt: skip
        parts.append(_section(result, stem, sheet is not None))
    pairs = [
        compare(a, b) for k, a in enumerate(results) for b in results[k + 1 :]
        if a.data == b.data and a.table["file"].tolist() == b.table["file"].tolist()
    ]  # fmt: skip
    with new_file(folder / "report.json") as fresh:
        text = json.dumps(plain({"evaluations": everything, "mcnemar": pairs}), indent=2, ensure_ascii=False)
        fresh.write_text(text + "\n", encoding="utf-8")
    page = folder / "report.html"
    with new_file(page) as fresh:
        fresh.write_text(_page(results, parts, pairs), encoding="utf-8")
    return page


def _section(result: Evaluation, stem: str, wrong: bool) -> Any:
    notes = [
        f"{plural(len(result.table), 'cell')}, answers among {len(result.among)} classes",
        *result.notes,
        limits_note(result),
    ]
    return {
        "model": result.model, "data": result.data, "notes": notes, "summary": metrics_table(result),
        "classes": classes_table(result), "picture": quote(stem), "wrong": wrong,
    }  # fmt: skip


def _page(results: Sequence[Evaluation], parts: list[Any], pairs: list[dict[str, Any]]) -> str:
    lead = pd.DataFrame(
        [
            {
                "model": r.model,
                "data": r.data,
                "cells": len(r.table),
                "right": f"{tenths(100 * r.table['right'].mean())} %",
            }
            for r in results
        ]
    )
    return render("evaluation.html", lead=lead, pairs=pd.DataFrame(pairs) if pairs else None, parts=parts)

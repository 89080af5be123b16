"""Judge models on labelled cells: metrics with limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .class_names import usual_name
from .dataset import Dataset, DatasetError, read_dataset
from .dataset_pictures import check, cut_cells
from .split import find_copies, parts_told
from .words import plural

if TYPE_CHECKING:
    from .classifier import Classifier

RESAMPLES = 500
"""Of the bootstrap; the AUC, whose computation is slow, is taken from a fifth of them."""


@dataclass(frozen=True)
class Evaluation:
    """What a model said of labelled cells.

    Parameters
    ----------
    model, data : str
        Names.
    classes : tuple of str
        Of the model.
    table : pandas.DataFrame
        A row a cell: file, class, predicted, probability, right, ``p_<class>``.
    unit : (n,) integer array
        Cells of one patient or slide, or copies of one picture, share a number; the bootstrap draws units.
    among : tuple of str
        Classes that were allowed as answers.
    notes : tuple of str
        What was left out, and why.
    """

    model: str
    data: str
    classes: tuple[str, ...]
    table: pd.DataFrame = field(repr=False)
    unit: npt.NDArray[np.int64] = field(repr=False)
    among: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    crops: npt.NDArray[np.uint8] | None = field(default=None, repr=False)

    @property
    def y(self) -> npt.NDArray[np.int64]:
        """True classes, as numbers of `classes`."""
        return np.asarray(self.table["class"].map({name: k for k, name in enumerate(self.classes)}), np.int64)

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """(n, k), rows sum to 1."""
        return self.table[[f"p_{name}" for name in self.classes]].to_numpy(np.float64)

    def values(self) -> dict[str, float]:
        """Metrics of all cells, without limits."""
        import warnings

        with warnings.catch_warnings():  # cells of one class alone have no AUC
            warnings.simplefilter("ignore")
            return {name: float(metric(self.y, self.probabilities)) for name, metric in self._metrics().items()}

    def _metrics(self) -> dict[str, Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64]], float]]:
        from sklearn import metrics

        present = np.unique(self.y)

        def auc(y: npt.NDArray[np.int64], p: npt.NDArray[np.float64]) -> float:
            values = [metrics.roc_auc_score(y == k, p[:, k]) for k in present if 0 < (y == k).sum() < len(y)]
            return float(np.mean(values)) if values else float("nan")

        return {
            "accuracy": lambda y, p: metrics.accuracy_score(y, p.argmax(1)),
            "balanced accuracy": lambda y, p: metrics.recall_score(
                y, p.argmax(1), labels=np.unique(y), average="macro", zero_division=0
            ),
            "macro-F1": lambda y, p: metrics.f1_score(y, p.argmax(1), labels=present, average="macro", zero_division=0),
            "weighted F1": lambda y, p: metrics.f1_score(y, p.argmax(1), average="weighted", zero_division=0),
            "Cohen's kappa": lambda y, p: metrics.cohen_kappa_score(y, p.argmax(1)),
            "AUC, mean over classes": auc,
            "ECE": lambda y, p: calibration_error(p.max(1), p.argmax(1) == y),
            "log loss": lambda y, p: metrics.log_loss(y, p, labels=np.arange(len(self.classes))),
        }

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Metrics of all cells: value and 95 % limits by bootstrap over units.

        Resamples of cells that are all right, or of one unit, are all alike and say nothing of other cells: then the
        limits are NaN, but for the accuracy of cells that are all right (or all wrong), whose limits are exact ones
        (Clopper-Pearson) over units.
        """
        import warnings

        from .count import clopper_pearson

        y, p = self.y, self.probabilities
        draws = _draws(self.unit, RESAMPLES)
        rows = []
        with warnings.catch_warnings():  # a resample without a class has no AUC of it
            warnings.simplefilter("ignore")
            for name, metric in self._metrics().items():
                some = draws[: max(20, RESAMPLES // 5)] if name.startswith("AUC") else draws
                values = [metric(y[rows_], p[rows_]) for rows_ in some]
                value = metric(y, p)
                alike = not np.nanmax(values) - np.nanmin(values) > 1e-9
                low, high = (np.nan, np.nan) if alike else np.nanpercentile(values, [2.5, 97.5])
                if name == "accuracy" and value in (0, 1):
                    units = len(np.unique(self.unit))
                    low, high = clopper_pearson(units * int(value), units)
                rows.append({"metric": name, "value": value, "low": low, "high": high, "n": len(y)})
        return pd.DataFrame(rows)

    def per_class(self) -> pd.DataFrame:
        """Precision, recall (sensitivity), specificity, F1 and AUC of each class, and how many cells it has."""
        from sklearn import metrics

        y, p = self.y, self.probabilities
        guess = p.argmax(1)
        counts = metrics.multilabel_confusion_matrix(y, guess, labels=np.arange(len(self.classes)))
        precision, recall, f1, support = metrics.precision_recall_fscore_support(
            y, guess, labels=np.arange(len(self.classes)), zero_division=0
        )
        rows = []
        for k, name in enumerate(self.classes):
            (tn, fp), _ = counts[k]
            n = int(support[k])
            both = 0 < n < len(y)
            rows.append(
                {
                    "class": name, "n": n, "precision": precision[k] if (guess == k).any() else np.nan,
                    "recall": recall[k] if n else np.nan, "specificity": tn / (tn + fp) if tn + fp else np.nan,
                    "F1": f1[k] if n else np.nan, "AUC": metrics.roc_auc_score(y == k, p[:, k]) if both else np.nan,
                }
            )  # fmt: skip
        return pd.DataFrame(rows)

    def confusion(self) -> pd.DataFrame:
        """Counts; true classes in rows, predicted ones in columns."""
        from sklearn.metrics import confusion_matrix

        counts = confusion_matrix(self.y, self.probabilities.argmax(1), labels=np.arange(len(self.classes)))
        return pd.DataFrame(counts, index=pd.Index(self.classes, name="true"), columns=list(self.classes))

    def rejection(self) -> pd.DataFrame:
        """Accuracy of the cells that are left if the least probable share is rejected."""
        order = np.argsort(-self.table["probability"].to_numpy(), kind="stable")
        right = self.table["right"].to_numpy(bool)[order]
        n = np.arange(1, len(right) + 1)
        return pd.DataFrame({"rejected": 1 - n / len(right), "accuracy": np.cumsum(right) / n})[::-1].reset_index(
            drop=True
        )


def _draws(unit: npt.NDArray[np.int64], n: int) -> list[npt.NDArray[np.int64]]:
    """Rows of bootstrap samples that draw whole units."""
    rng = np.random.default_rng(0)
    members = pd.Series(np.arange(len(unit))).groupby(unit).apply(np.asarray).tolist()
    return [np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))]) for _ in range(n)]


def calibration_error(confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of equal width.

    References
    ----------
    .. [1] Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    n = np.bincount(which, minlength=bins)
    gap = np.abs(np.bincount(which, confidence, bins) - np.bincount(which, right.astype(float), bins))
    return float(gap[n > 0].sum() / max(1, len(right)))


def evaluate(
    classifier: Classifier,
    data: str | Path | Dataset,
    *,
    part: str | None = None,
    split_file: str | Path | None = None,
    mpp: float | None = None,
    among: Sequence[str] | str = "model",
    classes: Mapping[str, str] | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Classify labelled cells and keep what was said.

    Parameters
    ----------
    classifier : Classifier
        The model.
    data : path or Dataset
        `napari_wbc.dataset.read_dataset`.
    part : str, optional
        Only the cells of this given split (``train``, ``val``, ``test``).
    split_file : path, optional
        The split to take it from, in place of the data's own: ``split.csv`` of a training run.
    mpp : float, optional
        Micrometres per pixel of the pictures; else from the data, the files, or the red cells.
    among : sequence of str, or ``model`` or ``data``
        Classes that may be answered: all of the model's, or those that the data have; the others' probability is
        taken away and the rest scaled to 1.
    classes : mapping, optional
        Class names of the data to names of the model.
    report : callable, optional
        Told how far it is.

    Raises
    ------
    DatasetError
        If the data have none of the model's classes, or no such part.
    """
    dataset = data if isinstance(data, Dataset) else read_dataset(data)
    if split_file is not None:
        dataset = replace(dataset, table=dataset.table.assign(split=parts_told(split_file, dataset)))
    if part:
        if not (dataset.table["split"] == part).any():
            raise DatasetError(
                f"{dataset.name}: {f'{split_file} names' if split_file else 'the data bring'} no part {part!r}; the "
                "split of a training run is its split.csv: give it with --split-file. Without a part all cells are "
                "judged, those that the model was trained on, too"
            )
        dataset = dataset.of_split(part)
    known = classifier.card.classes
    names = {name: (classes or {}).get(name) or _same_class(name, known) for name in dataset.classes}
    usable = {name: to for name, to in names.items() if to in known}
    notes = []
    if unknown := sorted(set(names) - set(usable)):
        n = int(dataset.table["class"].isin(unknown).sum())
        notes.append(f"left out, since the model has no such class: {plural(n, 'cell')} of {', '.join(unknown)}")
    if not usable:
        raise DatasetError(
            f"{dataset.name}: none of its classes ({', '.join(dataset.classes)}) is a class of the model "
            f"({', '.join(known)}); say which is which with --class FROM=TO"
        )
    found = check(dataset.mapped(usable), (lambda k, n: report("checking pictures", k, n)) if report else None)
    if found.dataset.problems:
        notes.append(f"left out, unreadable, unlabelled or a copy: {plural(len(found.dataset.problems), 'picture')}")
    unit, copies, _ = find_copies(found)
    if copies:
        notes.append(f"{copies} pictures are near-copies of another")
    given = classifier.card.training.get("mpp")
    by_scale = mpp is None and not classifier.card.crop.cells and found.dataset.table["mpp"].isna().any()
    if by_scale and isinstance(given, int | float):
        notes.append(
            f"the scale of each picture is its own or measured, but the model was trained with --mpp {given:g}; give "
            "--mpp here, too, if it is known"
        )
    crops = cut_cells(
        found.dataset, classifier.card.crop, mpp=mpp,
        progress=(lambda k, n: report("cutting cells", k, n)) if report else None,
    )  # fmt: skip
    n = len(crops)
    p = classifier.predict(crops, progress=(lambda k: report("classifying", k, n)) if report else None).astype(float)
    allowed = known
    if among != "model":
        wanted = set(usable.values()) if among == "data" else set(among)
        if missing := wanted - set(known):
            raise DatasetError(f"the model has no class {', '.join(sorted(missing))}; it has {', '.join(known)}")
        allowed = tuple(name for name in known if name in wanted)
        p[:, [name not in wanted for name in known]] = 0
    p /= np.maximum(p.sum(1, keepdims=True), 1e-12)
    table = predictions(found.dataset.table[["file", "class", "group"]], p, known)
    name = dataset.name + (f"/{part}" if part else "")
    return Evaluation(classifier.card.name, name, known, table, unit, allowed, tuple(notes), crops)


def predictions(cells: pd.DataFrame, p: npt.NDArray[np.float64], classes: Sequence[str]) -> pd.DataFrame:
    """Add to a table of cells, (n) rows with their ``class``, what a model said: `p`, (n, k)."""
    table = cells.copy()
    table["predicted"] = np.asarray(classes, dtype=object)[p.argmax(1)]
    table["probability"] = p.max(1).round(6)
    table["right"] = table["predicted"] == table["class"]
    for k, name in enumerate(classes):
        table[f"p_{name}"] = p[:, k]
    return table


def read_predictions(folder: str | Path, part: str) -> Evaluation:
    """What the model of a training run said of the cells of ``val`` or ``test`` (``predictions.csv`` of its folder).

    Raises
    ------
    DatasetError
        If the file is not there or holds something else.
    """
    folder = Path(folder)
    try:
        table = pd.read_csv(folder / "predictions.csv", keep_default_na=False)
        table = table[table["split"] == part].reset_index(drop=True)
        classes = tuple(name.removeprefix("p_") for name in table.columns if name.startswith("p_"))
        unit = table["unit"].to_numpy(np.int64)
        p = table[[f"p_{name}" for name in classes]].to_numpy(np.float64)
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError("a probability is not from 0 to 1")
        if strange := sorted(set(table["class"].astype(str)) - set(classes)):
            raise ValueError(f"the class {strange[0]!r} has no column p_{strange[0]}")
        if not set(table["right"].astype(str)) <= {"True", "False"} or "file" not in table or "predicted" not in table:
            raise ValueError("the columns file, predicted and right, True or False, are needed")
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{folder}: predictions.csv of the run cannot be read ({error}); train again") from error
    return Evaluation(folder.name, part, classes, table, unit, classes)


def _same_class(name: str, known: tuple[str, ...]) -> str:
    """The model's class that a class of the data is: of that name, or a synonym, in capitals or not."""
    if name in known:
        return name
    return {usual_name(other): other for other in known}.get(usual_name(name), name)


def compare(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """McNemar's exact test of two models on the same cells.

    Returns
    -------
    dict
        ``only first`` and ``only second`` right, and the two-sided ``p``.

    References
    ----------
    .. [1] Dietterich, "Approximate statistical tests for comparing supervised classification learning algorithms",
           Neural Computation 10:1895-1923, 1998.
    """
    from scipy.stats import binomtest

    if first.table["file"].tolist() != second.table["file"].tolist():
        raise ValueError("the models were not judged on the same cells")
    a, b = first.table["right"].to_numpy(bool), second.table["right"].to_numpy(bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"first": first.model, "second": second.model, "only first": only_a, "only second": only_b, "p": p}

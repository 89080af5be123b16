"""The one table that every stage shares: a row a cell, with a checked schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from .class_names import UNIDENTIFIED
from .regions import Regions

IMPROBABLE, UNLIKE = "improbable", "unlike"
UNLIKE_NOTE = "left unidentified as unlike those that the model knows: perhaps blasts, clumps or dirt"
PROBABILITY_PREFIX = "p_"


class Column(NamedTuple):
    """What one column of a `Cells` table holds."""

    dtype: str
    unit: str
    meaning: str
    default: Any = None
    """Value in tables that lack the column; None if they may not lack it."""


COLUMNS: Mapping[str, Column] = {
    "slide": Column("str", "", "name of the slide or field the cell is in"),
    "label": Column("int64", "", "the cell's value in the label image"),
    "centroid-0": Column("float64", "px", "row of the cell's centre, level 0"),
    "centroid-1": Column("float64", "px", "column of the cell's centre, level 0"),
    "bbox-0": Column("int64", "px", "first row"),
    "bbox-1": Column("int64", "px", "first column"),
    "bbox-2": Column("int64", "px", "one past the last row"),
    "bbox-3": Column("int64", "px", "one past the last column"),
    "area": Column("float64", "px²", "area of nucleus and cytoplasm"),
    "nucleus_area": Column("float64", "px²", "area of the nucleus; NaN where only an outline was given"),
    "area_um2": Column("float64", "µm²", "area of nucleus and cytoplasm; NaN without a scale"),
    "nucleus_area_um2": Column("float64", "µm²", "area of the nucleus; NaN without a scale"),
    "eccentricity": Column("float64", "", "of the ellipse with the same second moments: 0 round, 1 a line"),
    "solidity": Column("float64", "", "area over the area of the convex hull"),
    "at_border": Column("bool", "", "the picture cuts the cell"),
    "mpp": Column("float64", "µm/px", "the scale that was used; NaN where unknown"),
    "class": Column("str", "", "the class that counts: a reviewer's where somebody decided, else the model's"),
    "probability": Column("float64", "", "probability of the likeliest class; NaN before classification"),
    "unlikeness": Column(
        "float64", "", "0 like the cells that the model knows, 1 unlike them; NaN where it cannot tell", float("nan")
    ),
    "reason": Column(
        "str", "", f"why a cell is unidentified: '{IMPROBABLE}' class, '{UNLIKE}' the cells that the model knows", ""
    ),
    "class_model": Column("str", "", f"what the model said after its thresholds; '{UNIDENTIFIED}' below them", ""),
    "class_reviewed": Column("str", "", "what a reviewer decided; empty where nobody did", ""),
    "reviewer": Column("str", "", "who decided", ""),
    "reviewed_at": Column("str", "", "when, ISO 8601 in UTC", ""),
}
REVIEW_COLUMNS = ("class", "class_reviewed", "reviewer", "reviewed_at")
"""What a decision changes."""


class CellsError(ValueError):
    """A table is not a legal `Cells` table."""


class Cells:
    """Cells of one or more slides, with their measurements and classes.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a cell with at least the columns of `COLUMNS` that have no default; columns
        ``p_<class>`` hold the probability of each class in the order of the
        model's classes. Other columns are kept as they are. The table is
        copied, its columns are cast to the types of the schema.

    Raises
    ------
    CellsError
        If a column is missing, cannot be cast, a probability lies outside 0 to 1,
        or two rows have the same slide and label.

    Notes
    -----
    Coordinates are (row, column) in level-0 pixels with scikit-image's names
    (`skimage.measure.regionprops_table`). A table without rows is legal.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        missing = [name for name in COLUMNS if name not in table.columns]
        migrate = "class_model" in missing and "class" in table.columns
        if needed := [name for name in missing if COLUMNS[name].default is None]:
            raise CellsError(f"the table of cells lacks the columns {', '.join(needed)}")
        table = table.reset_index(drop=True).assign(**{name: COLUMNS[name].default for name in missing})
        wanted = {name: column.dtype for name, column in COLUMNS.items()}
        for name, dtype in (wanted | dict.fromkeys(_probability_columns(table), "float64")).items():
            given = table[name]
            if (cast := _cast(given, name, dtype)) is not given:
                table[name] = cast
        for name in ["probability", "unlikeness", *_probability_columns(table)]:
            if ((table[name] < 0) | (table[name] > 1)).any():
                raise CellsError(f"column {name} holds values outside 0 to 1")
        if table.duplicated(["slide", "label"]).any():
            raise CellsError("two rows have the same slide and label")
        if migrate:
            table["class_model"] = pd.Series(_said(table), table.index, dtype=object)
        # A class that is not the model's is somebody's decision, however it came here.
        decided = (table["class"] != table["class_model"]) | (table["class_reviewed"] != "")
        table["class_reviewed"] = table["class"].where(decided, "").astype(object)
        extra = [name for name in table.columns if name not in COLUMNS]
        self.table = table[[*COLUMNS, *extra]]

    @classmethod
    def empty(cls, classes: Sequence[str] = ()) -> Cells:
        """Return a table without rows, with the columns of `classes`."""
        data: dict[str, Any] = {name: [] for name in COLUMNS}
        data.update({PROBABILITY_PREFIX + name: [] for name in classes})
        return cls(pd.DataFrame(data))

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of the model, in its order."""
        return tuple(name.removeprefix(PROBABILITY_PREFIX) for name in _probability_columns(self.table))

    @property
    def class_probabilities(self) -> pd.Series:
        """Probability of each class; NaN where a reviewer chose another than the model, whose `probability` is, and
        where a cell is unidentified because it is `unlike` those that the model knows.
        """
        own = (self.table["class"] == self.table["class_model"]) & ~self.unlike
        return self.table["probability"].where(own)

    @property
    def unlike(self) -> pd.Series:
        """Which cells are unidentified because they are unlike those that the model knows, however probable a class."""
        return (self.table["class"] == UNIDENTIFIED) & (self.table["reason"] == UNLIKE)

    @property
    def centroids(self) -> npt.NDArray[np.float64]:
        """Centres of the cells, (n, 2) rows and columns in level-0 pixels."""
        return self.table[["centroid-0", "centroid-1"]].to_numpy(dtype=np.float64)

    def with_predictions(
        self,
        probabilities: npt.NDArray[np.floating[Any]],
        classes: Sequence[str],
        threshold: float,
        unlikeness: npt.NDArray[np.floating[Any]] | None = None,
        unlike_above: float = 1.0,
    ) -> Cells:
        """Return the cells with a class each.

        Parameters
        ----------
        probabilities : (n, k) float array
            Probability of each class, rows in the order of the table.
        classes : sequence of str
            Names of the k classes.
        threshold : float
            A cell whose likeliest class is less probable is *unidentified*.
        unlikeness : (n,) float array, optional
            How unlike the cells of training each is, 0 to 1; NaN where unknown.
        unlike_above : float
            Cells that are more unlike are *unidentified*, however probable their class.

        Returns
        -------
        Cells
            With the columns ``p_<class>`` and ``unlikeness``, rounded to 6 digits, in place of earlier ones, and the
            ``reason`` of each unidentified cell. What a reviewer decided stays the class.

        Raises
        ------
        CellsError
            If the probabilities are not one row a cell and one column a class.
        """
        if probabilities.shape != (len(self), len(classes)):
            raise CellsError(
                f"{len(self)} cells and {len(classes)} classes need probabilities of that shape, "
                f"not {probabilities.shape}"
            )
        table = self.table.drop(columns=_probability_columns(self.table))
        # Rounded, so that the table in memory is the table in a text file.
        probabilities = np.round(probabilities.astype(np.float64), 6)
        for k, name in enumerate(classes):
            table[PROBABILITY_PREFIX + name] = probabilities[:, k]
        if len(self):
            best = probabilities.argmax(axis=1)
            top = probabilities.max(axis=1)
            table["probability"] = top
            table["unlikeness"] = np.nan if unlikeness is None else np.round(unlikeness.astype(np.float64), 6)
            table["reason"] = reasons(top, table["unlikeness"].to_numpy(), threshold, unlike_above)
            known = table["reason"] == ""
            table["class_model"] = np.where(known, np.asarray(classes, dtype=object)[best], UNIDENTIFIED)
            table["class"] = table["class_reviewed"].where(table["class_reviewed"] != "", table["class_model"])
        return Cells(table)

    def with_review(self, **columns: npt.NDArray[np.object_]) -> Cells:
        """Return the cells with other `REVIEW_COLUMNS`, (n,) arrays of text that are taken as they are."""
        cells = copy(self)
        cells.table = self.table.assign(
            **{name: pd.Series(values, self.table.index, dtype=object) for name, values in columns.items()}
        )
        return cells

    def where(self, chosen: npt.NDArray[np.bool_]) -> Cells:
        """Return those cells for which the (n,) mask is True."""
        cells = copy(self)
        cells.table = self.table[chosen].reset_index(drop=True)
        return cells

    def __len__(self) -> int:
        return len(self.table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cells) and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Cells: {len(self)} cells, classes {', '.join(self.classes) or 'none yet'}>"


def reasons(
    probability: npt.NDArray[np.floating[Any]],
    unlikeness: npt.NDArray[np.floating[Any]],
    threshold: float,
    unlike_above: float,
) -> npt.NDArray[np.object_]:
    """Return why each cell must stay unidentified; empty for those that may have a class."""
    found = np.where(unlikeness > unlike_above, UNLIKE, np.where(probability >= threshold, "", IMPROBABLE))
    return found.astype(object)


def _said(table: pd.DataFrame) -> npt.NDArray[np.object_]:
    """Return what the model said, from a table that does not keep it: its likeliest class.

    The threshold is not known there, so that *unidentified* is taken for the model's word.
    """
    names = _probability_columns(table)
    said = np.full(len(table), "", dtype=object)
    if names and len(table):
        p = table[names]
        known = p.notna().all(axis=1).to_numpy()
        classes = np.array([name.removeprefix(PROBABILITY_PREFIX) for name in names], dtype=object)
        said[known] = classes[p.fillna(-1.0).to_numpy().argmax(axis=1)][known]
        unsure = ((table["class"] == UNIDENTIFIED) | (table["reason"] != "")).to_numpy()
        said[known & unsure] = UNIDENTIFIED
    return said


def _probability_columns(table: pd.DataFrame) -> list[str]:
    return [name for name in map(str, table.columns) if name.startswith(PROBABILITY_PREFIX)]


_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def _cast(values: pd.Series[Any], name: str, dtype: str) -> pd.Series[Any]:
    if values.dtype == (object if dtype == "str" else dtype) and (
        dtype != "str" or all(type(value) is str for value in values)
    ):
        return values
    try:
        if dtype == "str":
            return values.fillna("").astype(str).astype(object)
        if dtype == "bool":
            truth = values.astype(str).str.lower().map(_TRUTH)
            if truth.isna().any():
                raise CellsError(f"column {name} holds values other than True and False")
            return truth.astype(bool)
        return pd.Series(values.to_numpy().astype(dtype), index=values.index)
    except CellsError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise CellsError(f"column {name} cannot be read as {dtype}: {error}") from error


def measure(
    labels: npt.NDArray[np.integer[Any]],
    nuclei: npt.NDArray[np.integer[Any]] | None = None,
    *,
    slide: str = "",
    mpp: float = float("nan"),
) -> Cells:
    """Measure every labelled cell of a field.

    Parameters
    ----------
    labels : (H, W) integer array
        0 is background; ids may have gaps and any size.
    nuclei : (H, W) integer array, optional
        Nuclei with the ids of their cells.
    slide : str
        Name written into the table.
    mpp : float
        Micrometres per pixel; NaN where unknown.

    Returns
    -------
    Cells
        One row an id, in increasing order, not classified yet.

    Raises
    ------
    CellsError
        If a label is negative.
    """
    if labels.size and labels.min() < 0:
        raise CellsError("a label image must not hold negative values")
    if not labels.any():
        return Cells.empty()
    if labels.max() <= labels.size:  # counting is ten times as fast as sorting
        ids = np.flatnonzero(np.bincount(labels.ravel()))
        place = np.zeros(int(ids[-1]) + 1, np.int32)
        ids = ids[ids > 0]
        place[ids] = np.arange(1, len(ids) + 1)
        compact = place[labels]
    else:
        ids, inverse = np.unique(labels, return_inverse=True)
        background = ids[0] == 0
        compact = inverse.reshape(labels.shape).astype(np.int32) + (not background)
        ids = ids[int(background) :]
    table = pd.DataFrame(measured(compact, None if nuclei is None else np.where(nuclei > 0, compact, 0), mpp))
    table["label"] = ids
    table["slide"] = slide
    table["class"] = ""
    table["probability"] = np.nan
    return Cells(table)


def measured(
    labels: npt.NDArray[np.integer[Any]], nuclei: npt.NDArray[np.integer[Any]] | None, mpp: float
) -> dict[str, npt.NDArray[Any]]:
    """Return the columns that `measure` gives for labels 1 to n that are all there, before they are a table."""
    regions = Regions(labels)
    found: dict[str, npt.NDArray[Any]] = {"label": np.arange(1, regions.n)}
    found |= {f"centroid-{axis}": regions.centroids[1:, axis].round(4) for axis in range(2)}
    found |= {f"bbox-{k}": regions.boxes[1:, k] for k in range(4)}
    found["area"] = regions.count[1:].astype(np.float64)
    inner = np.full(regions.n, np.nan) if nuclei is None else np.bincount(nuclei.ravel(), minlength=regions.n)
    found["nucleus_area"] = inner[1:].astype(np.float64)
    found |= {f"{name}_um2": (found[name] * mpp**2).round(3) for name in ("area", "nucleus_area")}
    found["eccentricity"] = regions.eccentricity[1:].round(4)
    found["solidity"] = regions.solidity[1:].round(4)
    top, left, bottom, right = regions.boxes[1:].T
    found["at_border"] = (top <= 0) | (left <= 0) | (bottom >= labels.shape[0]) | (right >= labels.shape[1])
    found["mpp"] = np.full(regions.n - 1, mpp)
    return found

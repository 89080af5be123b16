"""Splits that cannot leak: cells of one patient or slide, and copies of one picture, stay on one side."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from .dataset import Dataset, DatasetError
from .dataset_pictures import Check
from .words import plural

__all__ = ["Split", "find_copies", "folds", "make_split", "read_split"]

Kind = Literal["grouped", "given", "random"]
ALIKE_BITS = 10
"""Hashes that differ in no more bits are compared pixel by pixel …"""
ALIKE = 0.97
"""… and pictures whose thumbnails correlate by as much are copies of one another."""


@dataclass(frozen=True)
class Split:
    """Which cell is trained on, which is for choosing, which is for the result.

    Parameters
    ----------
    dataset : Dataset
        The cells.
    part : (n,) array of str
        ``train``, ``val`` or ``test``.
    unit : (n,) integer array
        Cells that must stay together share a number: one patient or slide, or copies of one picture.
    kind : str
        ``grouped``, ``given`` (by the data or by a file) or ``random``.
    notes : tuple of str
        What to tell: copies, groups, leaks.
    """

    dataset: Dataset
    part: npt.NDArray[np.str_] = field(repr=False)
    unit: npt.NDArray[np.int64] = field(repr=False)
    kind: Kind
    notes: tuple[str, ...] = ()

    def rows(self, part: str) -> npt.NDArray[np.int64]:
        """Numbers of the cells of a part."""
        return np.flatnonzero(self.part == part)

    @property
    def leaks(self) -> int:
        """Cells of val and test of whose unit some cells are trained on."""
        held = np.isin(self.part, ["val", "test"])
        return int(np.isin(self.unit[held], self.unit[self.part == "train"]).sum())

    def table(self) -> pd.DataFrame:
        """Columns file, class, split, unit, and the box where there is one."""
        result = self.dataset.table[["file", "class", "y0", "x0"]].copy()
        result["split"], result["unit"] = self.part, self.unit
        return result if result["y0"].notna().any() else result.drop(columns=["y0", "x0"])


def find_copies(found: Check) -> tuple[npt.NDArray[np.int64], int, int]:
    """Number the units: cells of one group, and pictures that are copies of one another, turned and mirrored ones too.

    Parameters
    ----------
    found : Check
        From `napari_wbc.dataset_pictures.check`.

    Returns
    -------
    unit : (n,) int64 array
        From 0.
    copies, groups : int
        Pictures that have a copy; groups that the data name.

    Notes
    -----
    Candidates are pairs whose perceptual hashes (Zauner, "Implementation and benchmarking of perceptual image hash
    functions", 2010) differ in few bits in one of eight views; a candidate counts if the thumbnails correlate.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(found.dataset)
    first, second = _alike(found.hashes, found.thumbnails)
    copies = len(np.union1d(first, second))
    names = found.dataset.table["group"].astype(str)
    numbers, _ = pd.factorize(names.where(names != "", None))
    grouped = np.flatnonzero(numbers >= 0)
    leader = pd.Series(grouped).groupby(numbers[grouped]).transform("first").to_numpy()
    # Cells of one picture overlap in each other's surroundings.
    same = np.asarray(found.dataset.table.groupby("file")["file"].transform(lambda rows: rows.index[0]), np.int64)
    first, second = np.r_[first, grouped, np.arange(n)], np.r_[second, leader, same]
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(n, n))
    unit = connected_components(graph, directed=False)[1].astype(np.int64)
    return unit, copies, int(numbers.max() + 1) if n else 0


def _alike(
    hashes: npt.NDArray[np.uint64], thumbnails: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs of copies."""
    from .dataset_pictures import views

    pairs: list[tuple[int, int]] = []
    upright = hashes[:, 0]
    for k in range(len(hashes) - 1):
        others = upright[k + 1 :]
        near = np.zeros(len(others), bool)
        for view in range(8):
            near |= np.bitwise_count(others ^ hashes[k, view]) <= ALIKE_BITS
        candidates = np.flatnonzero(near) + k + 1
        if not len(candidates):
            continue
        turned = np.stack([view.ravel() for view in views(thumbnails[k])])
        like = (thumbnails[candidates].reshape(len(candidates), -1) @ turned.T).max(axis=1) > ALIKE
        pairs += [(k, int(c)) for c in candidates[like]]
    array = np.array(pairs, np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def make_split(
    found: Check,
    *,
    kind: Kind | None = None,
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    file: str | Path | None = None,
    copies: int = 0,
) -> Split:
    """Split cells.

    Parameters
    ----------
    found : Check
        From `napari_wbc.dataset_pictures.check`.
    kind : str, optional
        ``given`` uses the split that the data bring, ``grouped`` makes one that is stratified and keeps units
        together, ``random`` ignores them (it leaks; to reproduce papers). If not given: ``given`` where the data
        bring one, else ``grouped``.
    val, test : float
        Shares of the cells.
    seed : int
        Equal seeds give equal splits.
    file : path, optional
        A split that was saved (``split.csv`` of a run); kind is then ``given``.
    copies : int
        With a random split, the cells are first multiplied to about so many of each class among those trained on: as
        papers do that augment first and split afterwards. Other splits leave this to training.

    Raises
    ------
    DatasetError
        If a class or a part would be empty, or the file does not fit the cells.
    """
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise ValueError(f"shares of {val:g} for validation and {test:g} for test leave nothing to train on")
    unit, n_copies, groups = find_copies(found)
    data = found.dataset
    if len(data.classes) < 2:
        raise DatasetError(f"{data.name}: there is only one class, {data.classes[0]!r}; a classifier needs two")
    if copies and kind == "random" and file is None:
        wanted = max(2 + (test > 0), round(copies / (1 - val - test)))
        rows = np.concatenate([np.resize(index, wanted) for index in data.table.groupby("class").indices.values()])
        data, unit = data.rows(np.sort(rows)), unit[np.sort(rows)]
    if file is not None:
        part, kind = read_split(file, data), "given"
    elif (kind or "given") == "given" and (data.table["split"] != "").any():
        part, kind = data.table["split"].to_numpy(str), "given"
        if not (part == "val").any():
            _check_enough(data, unit, 2)
            free = np.flatnonzero(part == "train")
            part[free[_part(data.table["class"].to_numpy(str)[free], unit[free], val, seed)]] = "val"
    elif kind == "given":
        raise DatasetError(f"{data.name}: the data bring no split; choose grouped, or give a split file")
    else:
        kind = kind or "grouped"
        part = np.full(len(data), "train", dtype="<U5")
        y = data.table["class"].to_numpy(str)
        _check_enough(data, unit if kind == "grouped" else np.arange(len(data)), 2 + (test > 0))
        free = np.arange(len(data))
        for name, share in (("test", test), ("val", val / (1 - test))):
            if share > 0:
                chosen = _part(y[free], unit[free] if kind == "grouped" else free, share, seed)
                part[free[chosen]] = name
                free = np.setdiff1d(free, free[chosen])
    notes = _notes(n_copies, groups, len(found.dataset))
    if len(data) != len(found.dataset):
        notes = (*notes, f"{len(found.dataset)} cells were multiplied to {len(data)} before the split")
    if idle := int((~np.isin(part, ["train", "val", "test"])).sum()):
        notes = (*notes, f"not used, since the given split has no part for them: {plural(idle, 'cell')}")
    split = Split(data, np.asarray(part), unit, kind, notes)
    _check_split(split)
    if split.leaks:
        held = int(np.isin(split.part, ["val", "test"]).sum())
        split = Split(
            data, split.part, unit, kind,
            (*split.notes, f"this split LEAKS: {split.leaks} of {held} cells of val and test have copies of their "
             "picture, or cells of their patient or slide, among those trained on; results are too good"),
        )  # fmt: skip
    return split


def _check_enough(data: Dataset, unit: npt.NDArray[np.int64], n: int) -> None:
    """Each class must have a unit for each part."""
    for name, rows in data.table.groupby("class").groups.items():
        if len(np.unique(unit[np.asarray(rows)])) < n:
            raise DatasetError(
                f"class {name!r} has {len(rows)} cells of {len(np.unique(unit[np.asarray(rows)]))} groups, too few for "
                f"{n} parts; bring more of them, or leave the class out"
            )


def _notes(copies: int, groups: int, n: int) -> tuple[str, ...]:
    told = ["no near-copies found"]
    if copies:
        told = [f"{copies} pictures are near-copies of another (turned and mirrored ones counted)"]
    doubt = "cells of one smear may be on both sides, and results too good for another laboratory"
    if not groups:
        told.append(f"no patients or slides are named: {doubt}")
    elif 2 * groups > n:
        told.append(f"{groups} groups are named, nearly one a cell, so hardly patients or slides: {doubt}")
    else:
        told.append(f"{groups} groups (patients, slides) are named")
    return tuple(told)


def _part(y: npt.NDArray[np.str_], unit: npt.NDArray[np.int64], share: float, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of about this share of the cells, stratified, in whole units: some of many folds."""
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    n_folds = min(20 if share * 20 >= 1 else round(1 / share), len(np.unique(unit)))
    fewest = min(len(np.unique(unit[y == name])) for name in np.unique(y))
    if n_folds > fewest:  # every class in every fold where that is possible
        n_folds = max(2, min(fewest, n_folds))
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # small classes are judged by _check_split, with a remedy
        warnings.simplefilter("ignore", UserWarning)
        parts = [np.asarray(chosen) for _, chosen in splitter.split(y, y, unit)]
    return np.concatenate(parts[: min(n_folds - 1, max(1, round(share * n_folds)))])


def folds(split: Split, k: int, seed: int = 0) -> list[Split]:
    """The cells outside test, in k parts that are val in turn; units stay together unless the split is random.

    Raises
    ------
    DatasetError
        If there are fewer units, or fewer cells of a class, than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    free = np.flatnonzero(split.part != "test")
    y = split.dataset.table["class"].to_numpy(str)[free]
    unit = np.arange(len(free)) if split.kind == "random" else split.unit[free]
    for name in np.unique(y):
        n = len(np.unique(unit[y == name]))
        if k < 2 or n < k:
            raise DatasetError(
                f"{k} folds need {max(k, 2)} groups of each class or more; {name!r} has {n}. Choose fewer folds or "
                "bring more cells"
            )
    parts = []
    for _, chosen in StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(y, y, unit):
        part = np.where(split.part == "test", "test", "train").astype("<U5")
        part[free[chosen]] = "val"
        parts.append(Split(split.dataset, part, split.unit, split.kind, split.notes))
    for fold in parts:
        _check_split(fold)
    return parts


def read_split(file: str | Path, data: Dataset) -> npt.NDArray[np.str_]:
    """Parts from a saved table; DatasetError if it does not name every cell."""
    parts = parts_told(file, data)
    unknown = sum(part not in ("train", "val", "test") for part in parts)
    if unknown:
        raise DatasetError(
            f"{file}: {unknown} of {len(parts)} cells have no part (train, val or test) in it; give the split of these "
            "data"
        )
    return parts


def parts_told(file: str | Path, data: Dataset) -> npt.NDArray[np.str_]:
    """Parts from a saved table; empty for cells that it does not name."""
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        keys = ["file", *(c for c in ("y0", "x0") if c in table)]
        told = {tuple(row): part for *row, part in table[[*keys, "split"]].itertuples(index=False)}
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(
            f"{file}: not a split ({error}); a CSV table with the columns file and split is needed"
        ) from error
    wanted = data.table[keys].astype(object).where(data.table[keys].notna(), "").astype(str)
    # Folders move: names below the data's folder are enough where they are unique.
    parts = [told.get(tuple(row), "") for row in wanted.itertuples(index=False)]
    if "" in parts:
        short = {_tail(row[0]): part for row, part in told.items()}
        if len(short) == len(told):
            parts = [p or short.get(_tail(f), "") for p, f in zip(parts, data.table["file"], strict=True)]
    return np.array(parts, dtype=str)


def _tail(file: str) -> str:
    return "/".join(Path(file.replace("\\", "/")).parts[-2:])


def _check_split(split: Split) -> None:
    y = split.dataset.table["class"].to_numpy(str)
    classes = split.dataset.classes
    for part in ("train", "val"):
        missing = [name for name in classes if not ((y == name) & (split.part == part)).any()]
        if missing:
            few = ", ".join(f"{name!r} ({int((y == name).sum())} in all)" for name in missing)
            raise DatasetError(
                f"no cell of {few} for {'training' if part == 'train' else 'validation'}; bring more of them, or leave "
                "the class out"
            )

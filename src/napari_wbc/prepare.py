"""Labelled cells read, checked, split and cut: what a training run starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .crop import CropSize
from .dataset import Dataset, check, cut_cells, read_dataset
from .recipe import Recipe
from .split import Split, make_split

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is to do."""
MARGIN = 1.7
"""Crops of a scale are stored with so much around them that they can be turned and zoomed without a border."""


@dataclass(frozen=True)
class Prepared:
    """Cells, split and crops, ready to train on.

    Parameters
    ----------
    split : Split
        Cells and parts.
    crops : (n, S', S', 3) uint8 array
        Larger than what the network sees.
    stored : CropSize
        What they show.
    y : (n,) int64 array
        Classes, as numbers.
    classes : tuple of str
        Names.
    extra : (m, S', S', 3) uint8 array and (m,) int64 array
        Cells that are only trained on, and a weight of each in `extra_weight`.
    """

    split: Split
    crops: npt.NDArray[np.uint8] = field(repr=False)
    stored: CropSize
    y: npt.NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]
    extra: npt.NDArray[np.uint8] = field(repr=False)
    extra_y: npt.NDArray[np.int64] = field(repr=False)
    extra_weight: npt.NDArray[np.float64] = field(repr=False)
    notes: tuple[str, ...] = ()


def prepare(
    data: str | Path | Dataset,
    recipe: Recipe,
    *,
    split: str | None = None,
    split_file: str | Path | None = None,
    val: float = 0.2,
    test: float = 0.0,
    mpp: float | None = None,
    cache: Path | None = None,
    report: Report | None = None,
) -> Prepared:
    """Read, check, split and cut the cells.

    Parameters
    ----------
    data : path or Dataset
        `napari_wbc.dataset.read_dataset`.
    recipe : Recipe
        What is trained.
    split, split_file, val, test : see `napari_wbc.split.make_split`
    mpp : float, optional
        Micrometres per pixel of the pictures.
    cache : pathlib.Path, optional
        Folder to keep the crops in.
    report : callable, optional
        Told how far it is.

    Raises
    ------
    DatasetError
        If there is nothing to train on.
    """
    dataset = data if isinstance(data, Dataset) else read_dataset(data)
    if recipe.classes:
        dataset = dataset.mapped(recipe.classes)
    if recipe.scale < 1:
        dataset = _share_of(dataset, recipe)
    said: Callable[[str], Callable[[int, int], None] | None] = lambda what: (  # noqa: E731
        (lambda done, total: report(what, done, total)) if report else None
    )
    found = check(dataset, said("checking pictures"))
    parts = make_split(found, kind=split, val=val, test=test, seed=recipe.seed, file=split_file)  # type: ignore[arg-type]
    size, stored = recipe.size, _stored(recipe)
    crops = cut_cells(
        found.dataset, size, cache / "crops.npy" if cache else None, stored=stored, mpp=mpp,
        progress=said("cutting cells"),
    )  # fmt: skip
    classes = tuple(recipe.prior) if recipe.prior and set(recipe.prior) >= set(found.dataset.classes) else ()
    classes = classes or found.dataset.classes
    number = {name: k for k, name in enumerate(classes)}
    y = np.asarray(found.dataset.table["class"].map(number), np.int64)
    notes = list(parts.notes)
    if found.dataset.problems:
        notes.append(f"{len(found.dataset.problems)} pictures are left out; see problems.csv")
    extra, extra_y, weight, told = _further(recipe, data, number, size, stored, cache, said)
    return Prepared(parts, crops, stored, y, classes, extra, extra_y, weight, (*notes, *told))


def _share_of(dataset: Dataset, recipe: Recipe) -> Dataset:
    """A share of the cells of each class, eight a class at least."""
    rng = np.random.default_rng(recipe.seed)
    rows: list[int] = []
    for index in dataset.table.groupby(["class", "split"]).groups.values():
        n = min(len(index), max(8, math.ceil(len(index) * recipe.scale)))
        rows += sorted(rng.choice(np.asarray(index), n, replace=False).tolist())
    return Dataset(dataset.name, dataset.table.loc[sorted(rows)].reset_index(drop=True), dataset.problems)


def _stored(recipe: Recipe) -> CropSize:
    """What training keeps of each cell."""
    margin = MARGIN if recipe.fit == "scale" and recipe.turn else 1.0
    pixels = round(recipe.pixels * margin)
    return CropSize(recipe.side_um * margin, pixels, recipe.size.cells)


def _further(
    recipe: Recipe,
    data: str | Path | Dataset,
    number: Mapping[str, int],
    size: CropSize,
    stored: CropSize,
    cache: Path | None,
    said: Callable[[str], Callable[[int, int], None] | None],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.float64], list[str]]:
    """Cells of the recipe's further sets; their shares are of all cells that are drawn."""
    from .dataset import read_table
    from .recipe import RECIPES

    crops = [np.empty((0, stored.pixels, stored.pixels, 3), np.uint8)]
    y, weights, notes = [np.empty(0, np.int64)], [np.empty(0)], []
    for entry in recipe.also:
        root = None if isinstance(data, Dataset) else Path(data).resolve().parent / str(entry["name"])
        if root is None or not root.is_dir():
            notes.append(f"{entry['name']} is not beside the data: trained without it")
            continue
        more = read_table(RECIPES / str(entry["labels"]), root)
        more = Dataset(more.name, more.table[more.table["class"].isin(list(number))].reset_index(drop=True))
        cut = cut_cells(
            more, size, cache / f"{entry['name']}.npy" if cache else None, stored=stored,
            progress=said(f"cutting cells of {entry['name']}"),
        )  # fmt: skip
        labels = np.asarray(more.table["class"].map(dict(number)), np.int64)
        power = np.bincount(labels, minlength=len(number))[labels].astype(float) ** -recipe.balance_power
        crops.append(np.asarray(cut))
        y.append(labels)
        weights.append(float(entry["share"]) * power / power.sum())
        notes.append(f"{len(labels)} cells of {entry['name']} are trained on, too")
    return np.concatenate(crops), np.concatenate(y), np.concatenate(weights), notes

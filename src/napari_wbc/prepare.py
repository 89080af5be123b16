"""Labelled cells read, checked, split and cut: what a training run starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .crop import CropSize
from .dataset import Dataset, read_dataset
from .dataset_pictures import check, cut_cells
from .recipe import Recipe
from .split import Kind, Split, make_split
from .words import plural

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


def split_cells(
    data: str | Path | Dataset,
    recipe: Recipe,
    *,
    split: Kind | None = None,
    split_file: str | Path | None = None,
    val: float = 0.2,
    test: float = 0.0,
    report: Report | None = None,
) -> Split:
    """Read, check and split the cells that a recipe uses.

    Parameters
    ----------
    data : path or Dataset
        `napari_wbc.dataset.read_dataset`.
    recipe : Recipe
        Its classes, share, copies and seed.
    split, split_file, val, test : see `napari_wbc.split.make_split`
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
    if recipe.scale < 1 or recipe.per_class:
        dataset = _share_of(dataset, recipe)
    found = check(dataset, (lambda k, n: report("checking pictures", k, n)) if report else None)
    return make_split(
        found, kind=split, val=val, test=test, seed=recipe.seed, file=split_file, copies=recipe.scaled_copies
    )


def prepare(
    split: Split,
    recipe: Recipe,
    *,
    mpp: float | None = None,
    cache: Path | None = None,
    report: Report | None = None,
) -> Prepared:
    """Cut the cells.

    Parameters
    ----------
    split : Split
        From `split_cells`.
    recipe : Recipe
        What is trained.
    mpp : float, optional
        Micrometres per pixel of the pictures.
    cache : pathlib.Path, optional
        Folder to keep the crops in.
    report : callable, optional
        Told how far it is.
    """
    said: Callable[[str], Callable[[int, int], None] | None] = lambda what: (  # noqa: E731
        (lambda done, total: report(what, done, total)) if report else None
    )
    dataset, size, stored = split.dataset, recipe.size, _stored(recipe)
    # Runs that share a cache may see the cells differently.
    name = f"crops_{stored.pixels}_{stored.side_um:g}_{stored.cells:g}.npy"
    crops = cut_cells(
        dataset, size, cache / name if cache else None, stored=stored, mpp=mpp, progress=said("cutting cells")
    )
    classes = tuple(recipe.prior) if recipe.prior and set(recipe.prior) >= set(dataset.classes) else ()
    classes = classes or dataset.classes
    number = {name: k for k, name in enumerate(classes)}
    y = np.asarray(dataset.table["class"].map(number), np.int64)
    notes = list(split.notes)
    if dataset.problems:
        notes.append(f"left out: {plural(len(dataset.problems), 'picture')}; see problems.csv")
    extra, extra_y, weight, told = _further(recipe, dataset, number, size, stored, cache, said)
    return Prepared(split, crops, stored, y, classes, extra, extra_y, weight, (*notes, *told))


def _share_of(dataset: Dataset, recipe: Recipe) -> Dataset:
    """Of each class no more than the recipe takes, and the share of them that is run: eight a class at least."""
    rng = np.random.default_rng(recipe.seed)
    rows = np.arange(len(dataset))

    def some(keys: list[str], wanted: Callable[[int], int]) -> None:
        nonlocal rows
        groups = dataset.table.iloc[rows].groupby(keys).indices.values()
        chosen = [rng.choice(index, min(len(index), wanted(len(index))), replace=False) for index in groups]
        rows = rows[np.sort(np.concatenate(chosen))]

    if recipe.per_class:
        some(["class"], lambda _: recipe.per_class)
    if recipe.scale < 1 and not recipe.copies:
        some(["class", "split"], lambda n: max(8, math.ceil(n * recipe.scale)))
    return dataset.rows(rows)


def _stored(recipe: Recipe) -> CropSize:
    """What training keeps of each cell."""
    margin = MARGIN if recipe.fit == "scale" and recipe.turn else 1.0
    pixels = round(recipe.pixels * margin)
    return CropSize(recipe.side_um * margin, pixels, recipe.size.cells)


def _further(
    recipe: Recipe,
    dataset: Dataset,
    number: Mapping[str, int],
    size: CropSize,
    stored: CropSize,
    cache: Path | None,
    said: Callable[[str], Callable[[int, int], None] | None],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.float64], list[str]]:
    """Cells of the recipe's further sets; their shares are of all cells that are drawn."""
    from .dataset import read_dataset, read_table
    from .recipe import RECIPES

    crops = [np.empty((0, stored.pixels, stored.pixels, 3), np.uint8)]
    y, weights, notes = [np.empty(0, np.int64)], [np.empty(0)], []
    for entry in recipe.also:
        root = dataset.root and dataset.root.resolve().parent / str(entry["name"])
        if root is None or not root.is_dir():
            notes.append(f"{entry['name']} is not beside the data: trained without it")
            continue
        more = read_table(RECIPES / str(entry["labels"]), root) if "labels" in entry else read_dataset(root)
        used = more.table["class"].isin(list(number))
        used &= ~more.table["file"].map(lambda file: Path(file).name).isin(entry.get("leave_out", ()))
        more = Dataset(more.name, more.table[used].reset_index(drop=True))
        cut = cut_cells(
            more, size, cache / f"{entry['name']}.npy" if cache else None, stored=stored,
            progress=said(f"cutting cells of {entry['name']}"),
        )  # fmt: skip
        labels = np.asarray(more.table["class"].map(dict(number)), np.int64)
        power = np.bincount(labels, minlength=len(number))[labels].astype(float) ** -recipe.balance_power
        crops.append(np.asarray(cut))
        y.append(labels)
        weights.append(float(entry["share"]) * power / power.sum())
        use = "are trained on, too" if entry["share"] else "are known to the score of unlikeness, but not trained on"
        notes.append(f"{len(labels)} cells of {entry['name']} {use}")
    return np.concatenate(crops), np.concatenate(y), np.concatenate(weights), notes

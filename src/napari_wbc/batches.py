"""Batches of training cells, disturbed, and of validation cells as prediction sees them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import IterableDataset

from .augment import disturb
from .crop import CropSize
from .draws import drawing, rand
from .prepare import Prepared
from .preprocess import apply_steps
from .recipe import Recipe
from .turning import turn

PART = 16
"""Crops that are disturbed together."""


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """Disturbed batches of one epoch, the same whenever that epoch is run."""

    def __init__(self, ready: Prepared, recipe: Recipe, epoch: int = 0, rank: int = 0, world: int = 1) -> None:
        self.ready, self.recipe, self.epoch, self.rank, self.world = ready, recipe, epoch, rank, world
        self.rows = ready.split.rows("train")
        if recipe.copies:
            self.rows = _repeated(self.rows, ready.y, recipe.scaled_copies, epoch)
        n = recipe.per_epoch or len(self.rows) + int((ready.extra_weight > 0).sum())
        self.n = max(1, math.ceil(n * (recipe.scale if recipe.per_epoch else 1)))

    def __len__(self) -> int:
        return max(1, self.n // self.recipe.batch_size // self.world)

    def order(self) -> npt.NDArray[np.int64]:
        """Numbers of the cells of the epoch; those from the number of crops on are further cells."""
        ready, recipe = self.ready, self.recipe
        rng = np.random.default_rng((recipe.seed, self.epoch))
        drawn = np.flatnonzero(ready.extra_weight > 0)
        everything = np.r_[self.rows, drawn + len(ready.crops)]
        if recipe.balance != "sampling" and not recipe.per_epoch:
            order = rng.permutation(everything)
        else:
            y = ready.y[self.rows]
            power = recipe.balance_power if recipe.balance == "sampling" else 0.0
            weight = np.bincount(y, minlength=len(ready.classes))[y].astype(float) ** -power
            weight *= (1 - ready.extra_weight.sum()) / weight.sum()
            order = rng.choice(everything, self.n, p=np.r_[weight, ready.extra_weight[drawn]])
        size = min(recipe.batch_size, len(order))
        return order[: max(1, len(order) // size) * size].reshape(-1, size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        from itertools import islice

        worker = torch.utils.data.get_worker_info()
        threads = 1 if worker else torch.get_num_threads()
        ready, recipe, n = self.ready, self.recipe, len(self.ready.crops)
        # Each process of a distributed run takes its batches, each of its workers some of them.
        step, first = (worker.num_workers, worker.id) if worker else (1, 0)
        step, first = step * self.world, first * self.world + self.rank
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for k, rows in enumerate(islice(self.order(), first, None, step)):
                own = rows < n
                crops = np.empty((len(rows), *ready.crops.shape[1:]), np.uint8)
                crops[own] = ready.crops[np.sort(rows[own])][np.argsort(np.argsort(rows[own]))]
                crops[~own] = ready.extra[rows[~own] - n]
                y = np.where(own, ready.y[np.where(own, rows, 0)], 0)
                y[~own] = ready.extra_y[rows[~own] - n]
                seeds = [hash((recipe.seed, self.epoch, first + k * step, start)) for start in range(0, len(y), PART)]
                x = torch.cat(list(pool.map(self._part, seeds, _parts(crops), _parts(y))))
                torch.set_num_threads(threads)  # threads that begin later take over the number that was set last
                yield x.contiguous(memory_format=torch.channels_last), torch.from_numpy(y)

    def _part(self, seed: int, crops: npt.NDArray[np.uint8], y: npt.NDArray[np.int64]) -> Tensor:
        """Part of a batch, the work of one thread that draws for itself: no number depends on how many there are."""
        with drawing(seed % 2**63):
            return disturbed_crops(crops, y, self.ready, self.recipe)


def _parts(values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [values[start : start + PART] for start in range(0, len(values), PART)]


def disturbed_crops(crops: npt.NDArray[np.uint8], y: npt.NDArray[np.int64], ready: Prepared, recipe: Recipe) -> Tensor:
    """Stored crops of these classes as training shows them: (n, 3, S, S)."""
    x = turn(torch.from_numpy(crops), ready.stored, recipe.size, **_turning(recipe, y, ready.classes))
    return disturb(x, recipe.augmentation, recipe.preprocessing, recipe.size)


def _turning(recipe: Recipe, y: npt.NDArray[np.int64], classes: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of `turn` for cells of these classes."""
    if not recipe.turn:
        return {"rotate": False, "flip": False}
    told = dict(recipe.turn)
    radius, share = told.pop("radius_um", None), told.pop("reactive", {})
    if radius:
        told["radius_um"] = torch.tensor([float(radius.get(name, 0)) for name in classes])[torch.from_numpy(y)]
        chance = torch.tensor([float(share.get(name, 0)) for name in classes])[torch.from_numpy(y)]
        told["reactive"] = rand(len(y)) < chance
    return told


def _repeated(rows: npt.NDArray[np.int64], y: npt.NDArray[np.int64], copies: int, epoch: int) -> npt.NDArray[np.int64]:
    """Each class's training cells over and over, so many; epochs disturb each anew, and begin where the last ended."""
    own = [rows[y[rows] == k] for k in np.unique(y[rows])]
    return np.concatenate([np.resize(np.roll(some, -epoch * copies), copies) for some in own])


class Validation(IterableDataset[tuple[Tensor, Tensor]]):
    """The cells of val, undisturbed, in the first of the recipe's views."""

    def __init__(self, ready: Prepared, recipe: Recipe, part: str = "val") -> None:
        self.ready, self.recipe, self.rows = ready, recipe, ready.split.rows(part)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.recipe.size
        for start in range(0, len(self.rows), 128):
            rows = self.rows[start : start + 128]
            crops = plain_crops(self.ready.crops[rows], self.ready.stored, size)
            steps = (*(self.recipe.views[0] if self.recipe.views else ()), *self.recipe.preprocessing)
            yield apply_steps(crops, steps, size), torch.from_numpy(self.ready.y[rows])


def plain_crops(crops: npt.NDArray[np.uint8], stored: CropSize, size: CropSize) -> Tensor:
    """The middle of stored crops as prediction cuts it: (n, 3, S, S) from 0 to 1."""
    x = torch.from_numpy(np.array(crops)).permute(0, 3, 1, 2).float() / 255
    side = size.side_um / stored.side_um * stored.pixels
    margin = round((stored.pixels - side) / 2)
    x = x[:, :, margin : stored.pixels - margin, margin : stored.pixels - margin]
    wanted = (size.pixels, size.pixels)
    return functional.interpolate(x, wanted, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)

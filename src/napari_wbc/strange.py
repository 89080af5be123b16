"""Crops that show no known cell, and the regression that tells them from crops that do (`napari_wbc.unlikeness`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from .batches import disturbed_crops, plain_crops
from .crop import CropSize
from .models._networks import blocks
from .prepare import Prepared
from .preprocess import apply_steps
from .recipe import Recipe
from .unlikeness import PREFIX, Gauge

Look = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64]], Tensor]
"""From stored crops (n, S', S', 3) and their classes to what the network takes."""
MOST_CELLS = 2400
"""Of the training cells are looked at; more cost time and change little."""
MOST_BLOCKS = 8
STRENGTH = 0.01
"""Inverse of the regularisation of scikit-learn's logistic regression on standardised statistics."""


def _larger(crops: Tensor, _: CropSize) -> Tensor:
    return _zoomed(crops, torch.exp(torch.empty(len(crops)).uniform_(math.log(1.4), math.log(2.2))))


def _smaller(crops: Tensor, _: CropSize) -> Tensor:
    return _zoomed(crops, torch.exp(torch.empty(len(crops)).uniform_(math.log(0.35), math.log(0.6))))


def _coarser(crops: Tensor, stored: CropSize) -> Tensor:
    """Pixels of 0.65 to 1.4 µm: too few to see chromatin or granules."""
    out = crops.clone()
    for k in range(len(crops)):
        side = round(stored.side_um / float(torch.empty(()).uniform_(0.65, 1.4)))
        small = functional.interpolate(crops[k : k + 1], (side, side), mode="bilinear", antialias=True)
        out[k] = functional.interpolate(small, crops.shape[2:], mode="bicubic")[0].clamp(0, 1)
    return out


def _away(crops: Tensor, stored: CropSize) -> Tensor:
    """Rolled by 6 to 12 µm in any direction."""
    return torch.stack([_rolled(crop, stored, 6, 12) for crop in crops])


def _clump(crops: Tensor, stored: CropSize) -> Tensor:
    """A second cell 5 to 9 µm away; where they overlap the darker one is seen."""
    others = crops[torch.randperm(len(crops))]
    return torch.stack(
        [torch.minimum(crop, _rolled(other, stored, 5, 9)) for crop, other in zip(crops, others, strict=True)]
    )


def _smudge(crops: Tensor, _: CropSize) -> Tensor:
    n, side = len(crops), crops.shape[-1]
    bend = functional.interpolate(torch.randn(n, 2, 6, 6) * 0.16, (side, side), mode="bicubic").permute(0, 2, 3, 1)
    grid = functional.affine_grid(torch.eye(2, 3).expand(n, 2, 3), list(crops.shape), align_corners=False)
    return functional.grid_sample(crops, grid + bend, padding_mode="reflection", align_corners=False)


def _shuffled(crops: Tensor, stored: CropSize) -> Tensor:
    """The middle 24 µm cut into tiles of 4.8 µm that change places."""
    tile = round(4.8 / stored.side_um * stored.pixels)
    first = (stored.pixels - 5 * tile) // 2
    out = crops.clone()
    for k in range(len(crops)):
        middle = crops[k, :, first : first + 5 * tile, first : first + 5 * tile]
        tiles = middle.reshape(3, 5, tile, 5, tile).permute(1, 3, 0, 2, 4).flatten(0, 1)[torch.randperm(25)]
        middle = tiles.reshape(5, 5, 3, tile, tile).permute(2, 0, 3, 1, 4).reshape(middle.shape)
        out[k, :, first : first + 5 * tile, first : first + 5 * tile] = middle
    return out


WAYS = (_larger, _smaller, _coarser, _away, _clump, _smudge, _shuffled)


def make_strange(crops: Tensor, stored: CropSize) -> Tensor:
    """Change crops of cells so that they show none.

    Each crop goes one way, drawn at random: much larger or smaller than the cell is, in pixels too coarse to tell,
    beside the cell, two cells in one, bent as smudges are, or cut into tiles that change places.

    Parameters
    ----------
    crops : (n, 3, S, S) float32 tensor
        From 0 to 1, at least 26 µm wide.
    stored : CropSize
        What they show.

    Returns
    -------
    (n, 3, S, S) float32 tensor
    """
    which = torch.randint(len(WAYS), (len(crops),))
    out = torch.empty_like(crops)
    for k, way in enumerate(WAYS):
        if (some := which == k).any():
            out[some] = way(crops[some], stored)
    return out


def learn_unlikeness(network: nn.Module, recipe: Recipe, ready: Prepared) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train the score of unlikeness of a network that is trained.

    Known cells are those of training and of the recipe's further sets, strange ones are made of them. Both are seen in
    every view of prediction, and once as training disturbs them. The limit lets all but the recipe's share of known
    cells pass, in each of: validation, sets trained on, sets that are only known.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode; only looked at.
    recipe : Recipe
        With a `unlike` above 0.
    ready : Prepared
        Cells.

    Returns
    -------
    dict
        What the card says (`napari_wbc.unlikeness`).
    dict of str to tensor
        What joins the weights.
    """
    names = _watched(network)
    gauge = Gauge([network.get_submodule(name) for name in names], torch.zeros(0), torch.zeros(()))
    rng = np.random.default_rng(recipe.seed)
    rows = ready.split.rows("train")
    rows = np.sort(rng.choice(rows, min(MOST_CELLS, len(rows)), replace=False))
    crops = np.concatenate([ready.crops[rows], ready.extra])
    y = np.concatenate([ready.y[rows], ready.extra_y])
    plain = [_plain(recipe, ready, view) for view in recipe.views or ((),)]

    def disturbed(crops: npt.NDArray[np.uint8], y: npt.NDArray[np.int64]) -> Tensor:
        return disturbed_crops(crops, y, ready, recipe)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        known, strange = (
            np.concatenate([_statistics(gauge, network, look, crops, y, change) for look in (*plain, disturbed)])
            for change in (None, ready.stored)
        )
    weight, bias = fit_regression(known, strange)
    gauge = Gauge(gauge.blocks, weight, bias)
    val = ready.split.rows("val")
    trained_on = ready.extra_weight > 0
    limits = []
    for crops, y in (
        (ready.crops[val], ready.y[val]),
        (ready.extra[trained_on], ready.extra_y[trained_on]),
        (ready.extra[~trained_on], ready.extra_y[~trained_on]),
    ):
        if len(crops):
            seen = np.mean([_statistics(gauge, network, look, crops, y) @ weight.numpy() for look in plain], axis=0)
            limits.append(float(np.quantile(seen + float(bias), 1 - recipe.unlike)))
    above = round(1 / (1 + math.exp(-max(limits))), 6) if limits else 0.5
    return {"blocks": names, "above": above}, {PREFIX + "weight": weight, PREFIX + "bias": bias}


def _watched(network: nn.Module) -> list[str]:
    """Names of up to eight blocks, evenly spread from the first to the last."""
    parts = blocks(network.features)  # type: ignore[arg-type]
    chosen = {round(k) for k in np.linspace(0, len(parts) - 1, MOST_BLOCKS + 1)[1:]}
    names = {part: name for name, part in network.named_modules()}
    return [names[parts[k]] for k in sorted(chosen)]


def _plain(recipe: Recipe, ready: Prepared, view: Sequence[Mapping[str, Any]]) -> Look:
    def look(crops: npt.NDArray[np.uint8], _: npt.NDArray[np.int64]) -> Tensor:
        return apply_steps(plain_crops(crops, ready.stored, recipe.size), (*view, *recipe.preprocessing), recipe.size)

    return look


def _statistics(
    gauge: Gauge,
    network: nn.Module,
    look: Look,
    crops: npt.NDArray[np.uint8],
    y: npt.NDArray[np.int64],
    strange: CropSize | None = None,
    batch: int = 64,
) -> npt.NDArray[np.float32]:
    """What the gauge sees (n, d) of crops, made strange if it is told what they show."""
    found = []
    for start in range(0, len(crops), batch):
        part = np.array(crops[start : start + batch])
        if strange is not None:
            changed = make_strange(torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255, strange)
            part = (changed.permute(0, 2, 3, 1) * 255).round().byte().numpy()
        with torch.inference_mode(), gauge.watching():
            network(look(part, y[start : start + batch]).contiguous(memory_format=torch.channels_last))
        found.append(gauge.statistics().numpy())
    return np.concatenate(found)


def fit_regression(known: npt.NDArray[np.float32], strange: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Weight (d,) and bias () on statistics as they are."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    x = scaler.fit_transform(np.concatenate([known, strange]))
    regression = LogisticRegression(C=STRENGTH, max_iter=500, class_weight="balanced")
    regression.fit(x, np.repeat([False, True], [len(known), len(strange)]))
    weight = regression.coef_[0] / scaler.scale_
    bias = regression.intercept_[0] - (weight * scaler.mean_).sum()
    return torch.tensor(weight, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32)


def _zoomed(crops: Tensor, factor: Tensor) -> Tensor:
    n = len(crops)
    turn = torch.eye(2, 3).expand(n, 2, 3) / factor[:, None, None]
    grid = functional.affine_grid(turn, list(crops.shape), align_corners=False)
    return functional.grid_sample(crops, grid, padding_mode="reflection", align_corners=False)


def _rolled(crop: Tensor, stored: CropSize, low_um: float, high_um: float) -> Tensor:
    angle, way = 2 * math.pi * float(torch.rand(())), float(torch.empty(()).uniform_(low_um, high_um))
    pixels = way / stored.side_um * stored.pixels
    return torch.roll(crop, (round(pixels * math.sin(angle)), round(pixels * math.cos(angle))), (1, 2))

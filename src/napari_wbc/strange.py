"""Crops that show no known cell, and the regression that tells them from crops that do (`napari_wbc.unlikeness`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from .crop import CropSize
from .unlikeness import Gauge

Look = Callable[[Tensor], Tensor]
"""From stored crops (n, 3, S', S'), 0 to 1, to what the network takes."""


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


def fit_gauge(
    network: nn.Module,
    blocks: Sequence[str],
    crops: npt.NDArray[np.uint8],
    stored: CropSize,
    looks: Sequence[Look],
    *,
    strength: float = 0.003,
) -> tuple[Tensor, Tensor]:
    """Train the regression of a `Gauge`.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode; only looked at.
    blocks : sequence of str
        Names of its parts.
    crops : (n, S', S', 3) uint8 array
        Known cells.
    stored : CropSize
        What the crops show.
    looks : sequence of callables
        Each takes all crops, once as they are and once made strange, to the network's input.
    strength : float
        Inverse of the regularisation of scikit-learn's logistic regression on standardised statistics.

    Returns
    -------
    (d,) and () float32 tensors
        Weight and bias.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    gauge = Gauge([network.get_submodule(name) for name in blocks], torch.zeros(0), torch.zeros(()))
    rows: list[npt.NDArray[np.float32]] = []
    strange: list[npt.NDArray[np.bool_]] = []
    for look in looks:
        for changed in (False, True):
            for part in _parts(crops):
                part = make_strange(part, stored) if changed else part
                with torch.inference_mode(), gauge.watching():
                    network(look(part).contiguous(memory_format=torch.channels_last))
                rows.append(gauge.statistics().cpu().numpy())
                strange.append(np.full(len(part), changed))
    scaler = StandardScaler()
    x = scaler.fit_transform(np.concatenate(rows))
    regression = LogisticRegression(C=strength, max_iter=500, class_weight="balanced")
    regression.fit(x, np.concatenate(strange))
    weight = regression.coef_[0] / scaler.scale_
    bias = regression.intercept_[0] - (weight * scaler.mean_).sum()
    return torch.tensor(weight, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32)


def _parts(crops: npt.NDArray[np.uint8], size: int = 64) -> Iterator[Tensor]:
    for start in range(0, len(crops), size):
        yield torch.from_numpy(np.array(crops[start : start + size])).permute(0, 3, 1, 2).float() / 255


def _zoomed(crops: Tensor, factor: Tensor) -> Tensor:
    n = len(crops)
    turn = torch.eye(2, 3).expand(n, 2, 3) / factor[:, None, None]
    grid = functional.affine_grid(turn, list(crops.shape), align_corners=False)
    return functional.grid_sample(crops, grid, padding_mode="reflection", align_corners=False)


def _rolled(crop: Tensor, stored: CropSize, low_um: float, high_um: float) -> Tensor:
    angle, way = 2 * math.pi * float(torch.rand(())), float(torch.empty(()).uniform_(low_um, high_um))
    pixels = way / stored.side_um * stored.pixels
    return torch.roll(crop, (round(pixels * math.sin(angle)), round(pixels * math.cos(angle))), (1, 2))

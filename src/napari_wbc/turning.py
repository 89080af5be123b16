"""What training shows of a stored crop: turned, mirrored, scaled, cut by a border, with more or less cytoplasm."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .crop import CropSize
from .draws import between, rand, randn
from .reactive import outline, with_cytoplasm


def turn(
    crops: Tensor,
    stored: CropSize,
    size: CropSize,
    *,
    rotate: bool = True,
    flip: bool = True,
    zoom: float = 0.0,
    stretch: float = 0.0,
    shift: float = 0.0,
    border: float = 0.0,
    radius_um: Tensor | None = None,
    reactive: Tensor | None = None,
) -> Tensor:
    """Cut what the network sees out of larger crops: turned, mirrored, scaled and off-centre.

    Parameters
    ----------
    crops : (n, S', S', 3) uint8 tensor
        As stored.
    stored, size : CropSize
        What they show, and what is cut out.
    rotate, flip : bool
        Any angle; mirrored or not.
    zoom, stretch, shift : float
        Range of the logarithm of the scale; deviation of the logarithm of the aspect; deviation of the position in
        sides of the stored crop.
    border : float
        Share of the cells that a picture's border cuts: beyond it there is background.
    radius_um, reactive : (n,) tensors, optional
        Radius of the cells, µm, and which of them are given a larger, dented body and wide cytoplasm
        (`napari_wbc.reactive`); of the others half are changed by a little. Cells of radius 0 stay as they are.

    Returns
    -------
    (n, 3, S, S) float32 tensor
        From 0 to 1.
    """
    n = len(crops)
    crops = crops.permute(0, 3, 1, 2).float()
    angle = rand(n) * 2 * math.pi if rotate else torch.zeros(n)
    wide = torch.exp(randn(n) * stretch)
    scale = torch.exp(between([n], -zoom, zoom)) * (size.side_um / stored.side_um)
    mirror = torch.where(rand(n) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    offset = randn(n, 2) * shift
    if border:
        crops, moved = _cut_by_border(crops, stored, border)
        offset = offset + moved
    # Where each pixel is taken from, (x, y): a sum of what its column and its row add.
    axis = (torch.arange(size.pixels) + 0.5) * (2 / size.pixels) - 1
    across = torch.stack([cos * wide * mirror, sin * wide * mirror], 1)[:, None, None] * axis[:, None]
    down = torch.stack([-sin / wide, cos / wide], 1)[:, None, None] * axis[:, None, None] + offset[:, None, None]
    grid = across + down
    if radius_um is not None and reactive is not None:
        _stretch_rims(grid, radius_um / (stored.side_um / 2), reactive)
    seen = functional.grid_sample(crops, grid, padding_mode="reflection", align_corners=False).div_(255)
    if reactive is not None and reactive.any():
        seen[reactive] = with_cytoplasm(seen[reactive], size)
    return seen


_NUCLEAR_PART = 0.8
"""Of the radius of a small lymphocyte is nucleus."""


def _stretch_rims(grid: Tensor, radius: Tensor, reactive: Tensor) -> None:
    """Stretch the rims of cells: where each pixel (n, h, w, 2) is taken from; radii in half sides of the crop."""
    n = len(radius)
    other = ~reactive & (rand(n) < 0.25)
    whole = torch.where(reactive, torch.exp(between([n], 0, 0.3)), torch.exp(randn(n) * 0.06))
    rim = torch.exp(randn(n) * 0.25)
    changed = (reactive | other) & (radius > 0)
    r, whole, rim = (v[changed, None, None] for v in (radius, whole, rim))
    some = grid[changed]
    x, y = some.unbind(3)
    away = (x * x + y * y).sqrt_().clamp_min_(1e-4)
    seen = away / outline(x, y, away, torch.where(reactive[changed], 0.06, 0.02))
    nucleus = _NUCLEAR_PART * r * whole
    cell = nucleus + (1 - _NUCLEAR_PART) * r * whole * rim
    outer = torch.where(seen < cell, _NUCLEAR_PART * r + (seen - nucleus) / (whole * rim), r + seen - cell)
    source = torch.where(seen < nucleus, seen / whole, outer)
    grid[changed] = some * (source / away)[..., None]


def _cut_by_border(crops: Tensor, stored: CropSize, share: float) -> tuple[Tensor, Tensor]:
    """Background beyond a line near the cell, for a share of the crops; and the move that centres what is left."""
    n, pixels = len(crops), crops.shape[-1]
    cut = (rand(n) < share).nonzero()[:, 0]
    if not len(cut):
        return crops, torch.zeros(n, 2)
    direction = rand(len(cut)) * 2 * math.pi
    normal = torch.stack([direction.cos(), direction.sin()], 1)
    unit = stored.side_um / 38.4
    distance = between([len(cut)], -1, 5.5) * unit
    axis = ((torch.arange(pixels) + 0.5) / pixels - 0.5) * stored.side_um
    position = normal[:, 0, None, None] * axis[None, None] + normal[:, 1, None, None] * axis[None, :, None]
    some = crops[cut]
    background = some.flatten(2)[:, :, ::7].quantile(0.85, dim=2)[:, :, None, None]
    crops[cut] = torch.where((position > distance[:, None, None])[:, None], background, some)
    moved = torch.zeros(n, 2)
    moved[cut] = normal * ((distance - 6.5 * unit) / stored.side_um)[:, None]
    return crops, moved

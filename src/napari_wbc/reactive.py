"""Cytoplasm painted around a nucleus, as reactive lymphocytes have it and training data hardly ever."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .augment import mean_of_25, smooth
from .crop import CropSize
from .draws import between, rand, randn, uniform
from .preprocess import DARKEST

_PALE_BLUE = (0.25, 0.20, 0.07)
"""Density in R, G, B over the background (natural logarithm) of the cytoplasm of lymphocytes."""


def with_cytoplasm(crops: Tensor, size: CropSize, nucleus_um: float = 5.0) -> Tensor:
    """Put nuclei into wide, pale blue, agranular cytoplasm with an irregular outline.

    Parameters
    ----------
    crops : (n, 3, S, S) tensor
        From 0 to 1, each with a cell in its middle whose body is mostly nucleus.
    size : CropSize
        Side of the crops, for the scale.
    nucleus_um : float
        Usual radius of the nuclei, µm.

    Returns
    -------
    (n, 3, S, S) tensor
        From 0 to 1. What the new cytoplasm covers is gone: cells touch, but do not overlap.
    """
    n, pixels = len(crops), crops.shape[-1]
    background = crops.flatten(2)[:, :, ::7].quantile(0.9, dim=2)[:, :, None, None].clamp_min(0.05)
    density = (crops / background).clamp(DARKEST, 1).log_().neg_()
    axis = ((torch.arange(pixels) + 0.5) / pixels - 0.5) * size.side_um
    place = between([n, 2, 1, 1], -1.2, 1.2)
    x, y = (axis[None, None] - place[:, 0]).expand(n, pixels, pixels), axis[None, :, None] - place[:, 1]
    away = (x * x + y * y).sqrt_().clamp_min_(1e-4)
    radius = nucleus_um * torch.exp(between([n, 1, 1], 0.15, 0.6))
    inside = torch.sigmoid((radius * outline(x, y, away, torch.full((n,), 0.07)) - away) / 0.2)
    green = mean_of_25(density[:, 1])
    middle = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    darkest = green.masked_fill(middle > nucleus_um, 0).flatten(1).quantile(0.98, dim=1)[:, None, None]
    nucleus = torch.sigmoid((green / darkest.clamp_min(0.1) - 0.55) / 0.05) * torch.sigmoid(
        (1.5 * nucleus_um - middle) / 0.3
    )
    colour = torch.tensor(_PALE_BLUE)[:, None, None] * torch.exp(randn(n, 1, 1, 1) * 0.4 + randn(n, 3, 1, 1) * 0.15)
    cloud = smooth(randn(n, 1, 7, 7), pixels)
    rim = torch.exp(-(((radius - away) / 0.5) ** 2)) * uniform(n, 0, 1)[:, 0] * (rand(n, 1, 1) < 0.5)
    colour = colour * (1 + 0.12 * cloud + rim[:, None])
    around = inside[:, None] * colour + (1 - inside[:, None]) * density
    painted = nucleus[:, None] * density + (1 - nucleus[:, None]) * around
    return (painted.neg_().exp_() * background).clamp_(0, 1)


def outline(x: Tensor, y: Tensor, away: Tensor, depth: Tensor) -> Tensor:
    """Outlines that are not round, as neighbours press them: the radius (n, h, w), about 1, towards x and y.

    `away` is the distance of each pixel, `depth` (n,) the deviation of the radius.
    """
    # Cosines of multiples of the angle by recurrence: an arc tangent and three cosines take five times as long.
    cos, sin = x / away, y / away
    out, of_k, sin_k = torch.ones_like(cos), cos, sin
    for k in (2, 3, 4):
        of_k, sin_k = of_k * cos - sin_k * sin, sin_k * cos + of_k * sin
        part, phase = randn(len(x)) * depth / (k - 1) ** 0.5, rand(len(x)) * 2 * math.pi
        out += of_k * (part * phase.cos())[:, None, None]
        out -= sin_k * (part * phase.sin())[:, None, None]
    return out.clamp_(0.7, 1.4)

"""Disturbances for training: what turns, microscopes, stains, cameras and files do to a cell.

Steps take and return float32 tensors (n, 3, S, S) from 0 to 1, like those of `napari_wbc.preprocess`, and are mixed
with them in a recipe: a disturbance happens before or after a step of the card. They run on training cells only,
after the split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .crop import CropSize
from .preprocess import DARKEST, STEPS, check_parameters, measure_dyes, two_dyes

Disturbance = Callable[..., Tensor]
DISTURBANCES: dict[str, Disturbance] = {}


def register(step: Disturbance) -> Disturbance:
    """Make a disturbance available to recipes under its function's name."""
    DISTURBANCES[step.__name__] = step
    return step


def uniform(n: int, low: float, high: float) -> Tensor:
    """(n, 1, 1, 1)."""
    return torch.empty(n, 1, 1, 1).uniform_(low, high)


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
        Radius of the cells, µm, and which of them are given a larger, dented body and much more cytoplasm, as reactive
        lymphocytes have; of the others half are changed by a little. Cells of radius 0 stay as they are.

    Returns
    -------
    (n, 3, S, S) float32 tensor
        From 0 to 1.
    """
    n = len(crops)
    crops = crops.permute(0, 3, 1, 2).contiguous().float().div_(255)
    angle = torch.rand(n) * 2 * math.pi if rotate else torch.zeros(n)
    wide = torch.exp(torch.randn(n) * stretch)
    scale = torch.exp(torch.empty(n).uniform_(-zoom, zoom)) * (size.side_um / stored.side_um)
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    offset = torch.randn(n, 2) * shift
    if border:
        crops, moved = _cut_by_border(crops, stored, border)
        offset = offset + moved
    rows = [torch.stack([cos * wide * mirror, -sin / wide, offset[:, 0]], 1)]
    rows.append(torch.stack([sin * wide * mirror, cos / wide, offset[:, 1]], 1))
    grid = functional.affine_grid(torch.stack(rows, 1), [n, 3, size.pixels, size.pixels], align_corners=False)
    if radius_um is not None and reactive is not None:
        grid = _with_cytoplasm(grid, radius_um / (stored.side_um / 2), reactive)
    return functional.grid_sample(crops, grid, padding_mode="reflection", align_corners=False)


_NUCLEAR_PART = 0.8
"""Of the radius of a small lymphocyte is nucleus."""


def _with_cytoplasm(grid: Tensor, radius: Tensor, reactive: Tensor) -> Tensor:
    """Stretch the rims of cells: where each pixel (n, h, w, 2) is taken from; radii in half sides of the crop."""
    n = len(radius)
    other = ~reactive & (torch.rand(n) < 0.25)
    whole = torch.where(reactive, torch.exp(torch.empty(n).uniform_(0, 0.3)), torch.exp(torch.randn(n) * 0.06))
    rim = torch.where(reactive, torch.exp(torch.empty(n).uniform_(0, 1.5)), torch.exp(torch.randn(n) * 0.25))
    changed = ((reactive | other) & (radius > 0))[:, None, None]
    r, whole, rim = (v[:, None, None] for v in (radius, whole, rim))
    seen = grid.norm(dim=3) / _dented(grid, torch.where(reactive, 0.08, 0.02))
    nucleus = _NUCLEAR_PART * r * whole
    cell = nucleus + (1 - _NUCLEAR_PART) * r * whole * rim
    outer = torch.where(seen < cell, _NUCLEAR_PART * r + (seen - nucleus) / (whole * rim), r + seen - cell)
    source = torch.where(changed, torch.where(seen < nucleus, seen / whole, outer), seen)
    moved: Tensor = grid * (source / seen.clamp_min(1e-4))[..., None]
    return moved


def _dented(grid: Tensor, depth: Tensor) -> Tensor:
    """Outlines that are not round, as neighbours press them: the radius in each direction, (n, h, w), about 1."""
    angle = torch.atan2(grid[..., 1], grid[..., 0])
    out = torch.ones_like(angle)
    for k in (2, 3, 4):
        phase, part = torch.rand(len(grid)) * 2 * math.pi, torch.randn(len(grid)) * depth / math.sqrt(k - 1)
        out += part[:, None, None] * torch.cos(k * angle + phase[:, None, None])
    return out.clamp(0.7, 1.4)


def _cut_by_border(crops: Tensor, stored: CropSize, share: float) -> tuple[Tensor, Tensor]:
    """Background beyond a line near the cell, for a share of the crops; and the move that centres what is left."""
    n, pixels = len(crops), crops.shape[-1]
    cut = (torch.rand(n) < share).nonzero()[:, 0]
    if not len(cut):
        return crops, torch.zeros(n, 2)
    direction = torch.rand(len(cut)) * 2 * math.pi
    normal = torch.stack([direction.cos(), direction.sin()], 1)
    unit = stored.side_um / 38.4
    distance = torch.empty(len(cut)).uniform_(-1, 5.5) * unit
    axis = ((torch.arange(pixels) + 0.5) / pixels - 0.5) * stored.side_um
    position = normal[:, 0, None, None] * axis[None, None] + normal[:, 1, None, None] * axis[None, :, None]
    some = crops[cut]
    background = some.flatten(2)[:, :, ::7].quantile(0.85, dim=2)[:, :, None, None]
    crops[cut] = torch.where((position > distance[:, None, None])[:, None], background, some)
    moved = torch.zeros(n, 2)
    moved[cut] = normal * ((distance - 6.5 * unit) / stored.side_um)[:, None]
    return crops, moved


@register
def exposure(crops: Tensor, size: CropSize, *, faint: float = 1.0, gamma: float = 0.15, flare: float = 0.12) -> Tensor:
    """Fainter stain or longer exposure, gamma, and light that scatters over the picture."""
    n = len(crops)
    crops = crops.clamp_min(DARKEST).pow(torch.exp(uniform(n, -faint, 0.1 * (faint > 0))))
    crops = crops.pow(torch.exp(torch.randn(n, 1, 1, 1) * gamma))
    light = uniform(n, 0, flare) * (torch.rand(n, 1, 1, 1) < 0.5)
    return crops * (1 - light) + light


@register
def coarse(crops: Tensor, size: CropSize) -> Tensor:
    """Fewer pixels: to 0.4 or 0.6 of the side and back, a tenth of the crops each."""
    crops = crops.clone()
    for factor in (0.4, 0.6):
        some = torch.rand(len(crops)) < 0.1
        if some.any():
            small = functional.interpolate(crops[some], scale_factor=factor, mode="bilinear", antialias=True)
            crops[some] = functional.interpolate(small, size=crops.shape[2:], mode="bicubic").clamp(0, 1)
    return crops


@register
def blur(crops: Tensor, size: CropSize, *, sigma: float = 1.4, share: float = 0.45) -> Tensor:
    """Out of focus: Gaussian of up to `sigma` pixels; fewer of the stronger."""
    from torchvision.transforms.functional import gaussian_blur

    crops = crops.clone()
    amount = torch.rand(len(crops)) / max(share, 1e-6)
    for low, high, part in ((0, 0.45, 0.36), (0.45, 0.78, 0.64), (0.78, 1, 1)):
        some = (amount >= low) & (amount < high)
        if some.any():
            width = part * sigma * float(np.random.uniform(0.7, 1.3))  # noqa: NPY002 - one state to seed
            crops[some] = gaussian_blur(crops[some], [2 * int(2 * width + 0.5) + 1] * 2, [width, width])
    return crops


@register
def noise(crops: Tensor, size: CropSize, *, sigma: float = 0.04, share: float = 0.3) -> Tensor:
    """Sensor noise of up to `sigma`."""
    some = (torch.rand(len(crops), 1, 1, 1) < share) * uniform(len(crops), 0, sigma)
    return (crops + torch.randn_like(crops) * some).clamp(0, 1)


@register
def jpeg(crops: Tensor, size: CropSize, *, low: int = 30, high: int = 90, share: float = 0.2) -> Tensor:
    """Compression of quality `low` to `high`."""
    from torchvision.io import decode_jpeg, encode_jpeg

    crops = crops.clamp(0, 1)
    for k in (torch.rand(len(crops)) < share).nonzero()[:, 0].tolist():
        quality = int(torch.randint(low, high, (1,)))
        crops[k] = decode_jpeg(encode_jpeg((crops[k] * 255).to(torch.uint8), quality)).float() / 255
    return crops


@register
def colour(
    crops: Tensor, size: CropSize, *, brightness: float = 0.2, contrast: float = 0.2, hue: float = 0.05
) -> Tensor:
    """Brightness, contrast and tint of an ordinary colour jitter."""
    n = len(crops)
    crops = crops * (1 + uniform(n, -brightness, brightness))
    mean = crops.mean((1, 2, 3), keepdim=True)
    crops = mean + (crops - mean) * (1 + uniform(n, -contrast, contrast))
    return (crops * (1 + torch.empty(n, 3, 1, 1).uniform_(-hue, hue))).clamp(0, 1)


@register
def stain(crops: Tensor, size: CropSize, *, sigma: float = 0.15) -> Tensor:
    """Gains of the channels in optical density (Tellez et al., Medical Image Analysis 58, 2019, in spirit)."""
    n = len(crops)
    density = -crops.clamp_min(DARKEST).log()
    return (-density * torch.exp(torch.randn(n, 3, 1, 1) * sigma + torch.randn(n, 1, 1, 1) * sigma)).exp()


# Densities in R, G, B of azure B bound to DNA, of eosin, and of what is left, one a column; read off pbc/train.
DYES = torch.tensor([[0.48, 0.25, 0.3], [0.86, 0.80, -0.3], [0.16, 0.55, 0.9]])


@register
def restain(crops: Tensor, size: CropSize, *, strength: float = 1.0) -> Tensor:
    """Other dyes and sensors, in optical density.

    The tone curve of each channel; the share of eosin; gains and mixing of channels, with a blue channel that may be
    nearly blind and a red one that may be faint; grey; shading; a veil over all.
    """
    n, s = len(crops), strength
    density = -crops.clamp_min(1e-7).log()
    dark = torch.tensor([1.2, 2.0, 0.45])[None, :, None, None]
    power = torch.exp(torch.randn(n, 1, 1, 1) * 0.15 * s + torch.randn(n, 3, 1, 1) * 0.15 * s)
    density = dark * (density.clamp_min(1e-4) / dark) ** power
    gains = torch.eye(3) * torch.exp(torch.randn(n, 3, 1) * 0.15 * s) * torch.exp(torch.randn(n, 1, 1) * 0.15 * s)
    gains[:, 2] *= torch.where(torch.rand(n, 1) < 0.5 * s, torch.rand(n, 1) * 1.3, torch.ones(n, 1))
    gains[:, 0] *= torch.exp(torch.randn(n, 1) * 0.25 * s)
    gains = gains + torch.randn(n, 3, 3) * 0.05 * s
    grey = torch.rand(n) < 0.03 * s
    gains[grey] = gains[grey].mean(1, keepdim=True).expand(-1, 3, -1)
    dyes = torch.diag_embed(torch.stack([torch.ones(n), torch.exp(torch.randn(n) * 0.35 * s), torch.ones(n)], 1))
    gains = gains @ (DYES @ dyes @ torch.linalg.inv(DYES))
    density = torch.einsum("nij,njhw->nihw", gains, density)
    shade = functional.interpolate(
        torch.randn(n, 3, 3, 3) * 0.5 + torch.randn(n, 1, 3, 3),
        size=crops.shape[2:],
        mode="bicubic",
        align_corners=True,
    )
    shade = shade * 0.1 * s * uniform(n, 0, 1)
    veil = torch.rand(n, 3, 1, 1) * 0.15 * s * uniform(n, 0, 1) * (torch.rand(n, 1, 1, 1) < 0.5)
    return (-(density + shade - shade.amin((2, 3), keepdim=True) + veil).clamp_min(0)).exp()


@register
def tint(crops: Tensor, size: CropSize, *, each: float = 0.08, all: float = 0.1) -> Tensor:  # noqa: A002
    """Gains in optical density, of each channel and of all: what is left after a stain was normalised."""
    n = len(crops)
    density = -crops.clamp_min(1e-4).log()
    return (-density * torch.exp(torch.randn(n, 3, 1, 1) * each + torch.randn(n, 1, 1, 1) * all)).exp().clamp(0, 1.2)


@register
def two_dyes_unsure(
    crops: Tensor, size: CropSize, *, eosin: float = 0.3, azure: float = 0.1, unseen: float = 0.2
) -> Tensor:
    """`napari_wbc.preprocess.two_dyes` whose nucleus and red cells were measured wrongly by a little, or not seen."""
    n = len(crops)

    def wrong(nucleus: Tensor, red: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        red = torch.where((torch.rand(n) < unseen)[:, None], reference, red)
        nucleus = nucleus * torch.exp(torch.randn(n, 1) * azure + torch.randn(n, 3) * azure / 2)
        return nucleus, red * torch.exp(torch.randn(n, 1) * eosin + torch.randn(n, 3) * 0.07)

    return two_dyes(crops, size, changed=wrong)


@register
def cytoplasm(
    crops: Tensor, size: CropSize, *, eosin: float = 0.6, azure: float = 0.17, outside_um: float = 11.0
) -> Tensor:
    """Give the cell more or less eosin, and more azure, than the red cells around it tell.

    The eosin of a neutrophil's cytoplasm is 0.4 to 2.6 times that of `pbc` where red cells are equal, and its azure up
    to twice as much, in other public sets: a network that has seen one laboratory takes it for granules.

    Parameters
    ----------
    crops : (n, 3, S, S) tensor
        From 0 to 1.
    size : CropSize
        Side of the crops, for the scale.
    eosin : float
        Deviation of the logarithm of the factor, which is kept from 0.22 to 3.3.
    azure : float
        Up to so much of the nucleus's density is added.
    outside_um : float
        Red cells are looked for beyond this radius, µm.
    """
    n = len(crops)
    density, nucleus, red = measure_dyes(crops, size, outside_um=outside_um)
    mix = torch.stack([nucleus, red, torch.linalg.cross(nucleus, red)], 2)
    mix[:, :, 2] /= mix[:, :, 2].norm(dim=1, keepdim=True).clamp_min(1e-6)
    told_apart = torch.linalg.cond(mix / mix.norm(dim=1, keepdim=True).clamp_min(1e-6)) < 12
    mix = torch.where(told_apart[:, None, None], mix, torch.eye(3))
    seen = torch.einsum("ni,nihw->nhw", torch.linalg.inv(mix)[:, 1], density)
    axis = (torch.arange(size.pixels) + 0.5 - size.pixels / 2) * size.side_um / size.pixels
    within = torch.sigmoid((uniform(n, 7, 10)[:, 0] - (axis[:, None] ** 2 + axis[None] ** 2).sqrt()) / 0.5)
    # Glass stays glass: only where something is stained, seen without noise.
    stained = functional.avg_pool2d(density[:, 1:2], 5, 1, 2)[:, 0] / nucleus[:, 1, None, None]
    within = within * ((stained - 0.06) / 0.1).clamp(0, 1) * told_apart[:, None, None]
    factor = torch.exp((torch.randn(n, 1, 1) * eosin).clamp(-1.5, 1.2))
    change = torch.stack([uniform(n, -0.05, azure)[:, 0] * within, (factor - 1) * seen * within], 1)
    change = torch.einsum("nij,njhw->nihw", mix[:, :, :2], change)
    return (crops * (-change).exp()).clamp(0, 1)


@register
def surround(crops: Tensor, size: CropSize) -> Tensor:
    """Put half of the cells into the surroundings of others, fainter or stronger, or into none."""
    n = len(crops)
    axis = (torch.arange(size.pixels) + 0.5 - size.pixels / 2) * size.side_um / size.pixels
    away = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    own = torch.sigmoid((uniform(n, 6.5, 10) - away) / 0.5)
    own = torch.where(torch.rand(n, 1, 1, 1) < 0.5, own, torch.ones(1))
    strength = torch.exp(torch.randn(n, 1, 1, 1) * 0.5) * (torch.rand(n, 1, 1, 1) < 0.8)
    # Densities add; weights are powers.
    return crops.clamp_min(1e-7) ** own * crops[torch.randperm(n)].clamp_min(1e-7) ** (strength * (1 - own))


def check_recipe(steps: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if a step is neither a disturbance nor a preprocessing step."""
    for step in steps:
        name = step.get("step")
        if name == "one_of":
            if not step.get("branches"):
                raise ValueError("step 'one_of' needs branches, each a list of steps")
            for branch in step["branches"]:
                check_recipe(branch)
        elif name in DISTURBANCES or name in STEPS:
            check_parameters(DISTURBANCES.get(name) or STEPS[name], {k: v for k, v in step.items() if k != "of"})
            if not 0 <= float(step.get("of", 1.0)) <= 1:
                raise ValueError(f"step {name!r}: of is {step['of']}, but must be from 0 to 1")
        elif name != "preprocess" and name not in DISTURBANCES and name not in STEPS:
            raise ValueError(f"unknown step {name!r}; known are {', '.join([*DISTURBANCES, *STEPS])}")


def disturb(
    crops: Tensor, steps: Sequence[Mapping[str, Any]], preprocessing: Sequence[Mapping[str, Any]], size: CropSize
) -> Tensor:
    """Run the steps of a recipe.

    Parameters
    ----------
    crops : (n, 3, S, S) float32 tensor
        From 0 to 1.
    steps : sequence of mappings
        ``{"step": name, "of": probability, **parameters}``, where ``of`` (all if not given) says which part of the
        crops a disturbance meets; ``{"step": "preprocess"}`` stands for the card's steps (at the end if not named);
        ``{"step": "one_of", "branches": [[...], [...]]}`` sends each crop through one branch.
    preprocessing : sequence of mappings
        Steps of the card.
    size : CropSize
        Of the crops.

    Returns
    -------
    (n, 3, S, S) float32 tensor
        What the network takes.
    """
    if not any(step["step"] == "preprocess" for step in steps):
        steps = [*steps, {"step": "preprocess"}]
    for step in steps:
        name = step["step"]
        if name == "preprocess":
            crops = disturb(crops, preprocessing, (), size) if preprocessing else crops
            continue
        if name == "one_of":
            branches = step["branches"]
            which = torch.randint(len(branches), (len(crops),))
            out = torch.empty_like(crops)
            for k, branch in enumerate(branches):
                if (some := which == k).any():
                    out[some] = disturb(crops[some], [*branch, {"step": "preprocess"}], (), size)
            crops = out
            continue
        run = DISTURBANCES.get(name) or STEPS[name]
        parameters = {key: value for key, value in step.items() if key not in ("step", "of")}
        share = float(step.get("of", 1.0))
        some = torch.rand(len(crops)) < share
        if some.all():
            crops = run(crops, size, **parameters)
        elif some.any():
            crops = crops.clone()
            crops[some] = run(crops[some], size, **parameters)
    return crops

"""Disturbances for training: what turns, microscopes, stains, cameras and files do to a cell.

Steps take and return float32 tensors (n, 3, S, S) from 0 to 1, like those of `napari_wbc.preprocess`, and are mixed
with them in a recipe: a disturbance happens before or after a step of the card. They run on training cells only,
after the split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .crop import CropSize
from .draws import between, generator, rand, randn, uniform
from .preprocess import (
    DARKEST,
    STEPS,
    advance,
    as_logarithm,
    check_parameters,
    measure_dyes,
    on_logarithm,
    replaced_dyes,
)

Disturbance = Callable[..., Tensor]
DISTURBANCES: dict[str, Disturbance] = {}


def register(step: Disturbance) -> Disturbance:
    """Make a disturbance available to recipes under its function's name."""
    DISTURBANCES[step.__name__] = step
    return step


@register
@on_logarithm(gives=False)
def exposure(crops: Tensor, size: CropSize, *, faint: float = 1.0, gamma: float = 0.15, flare: float = 0.12) -> Tensor:
    """Fainter stain or longer exposure, gamma, and light that scatters over the picture."""
    n = len(crops)
    power = torch.exp(uniform(n, -faint, 0.1 * (faint > 0)) + randn(n, 1, 1, 1) * gamma)
    light = uniform(n, 0, flare) * (rand(n, 1, 1, 1) < 0.5)
    return crops.clamp_min(math.log(DARKEST)).mul_(power).exp_().mul_(1 - light).add_(light)


@register
def coarse(crops: Tensor, size: CropSize) -> Tensor:
    """Fewer pixels: to 0.4 or 0.6 of the side and back, a tenth of the crops each."""
    crops = crops.clone()
    for factor in (0.4, 0.6):
        some = rand(len(crops)) < 0.1
        if some.any():
            small = functional.interpolate(crops[some], scale_factor=factor, mode="bilinear", antialias=True)
            crops[some] = functional.interpolate(small, size=crops.shape[2:], mode="bicubic").clamp(0, 1)
    return crops


@register
def blur(crops: Tensor, size: CropSize, *, sigma: float = 1.4, share: float = 0.45) -> Tensor:
    """Out of focus: Gaussian of up to `sigma` pixels; fewer of the stronger."""
    crops = crops.clone()
    amount = rand(len(crops)) / max(share, 1e-6)
    for low, high, part in ((0, 0.45, 0.36), (0.45, 0.78, 0.64), (0.78, 1, 1)):
        some = (amount >= low) & (amount < high)
        if some.any():
            width = part * sigma * float(between([1], 0.7, 1.3))
            crops[some] = _gaussian(crops[some], width)
    return crops


def _gaussian(crops: Tensor, width: float) -> Tensor:
    """Blur rows, then columns: sums of shifted pictures are twenty times as fast as torchvision's convolution."""
    reach, side = int(2 * width + 0.5), crops.shape[-1]
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width) ** 2)
    weights: list[float] = (bell / bell.sum()).tolist()
    for axis in (3, 2):
        pad = [reach, reach, 0, 0] if axis == 3 else [0, 0, reach, reach]
        padded = functional.pad(crops, pad, mode="reflect")
        crops = padded.narrow(axis, 0, side) * weights[0]
        for k, weight in enumerate(weights[1:], start=1):
            crops.add_(padded.narrow(axis, k, side), alpha=weight)
    return crops


@register
def noise(crops: Tensor, size: CropSize, *, sigma: float = 0.04, share: float = 0.3) -> Tensor:
    """Sensor noise of up to `sigma`."""
    some = rand(len(crops)) < share
    crops = crops.clamp(0, 1)
    noisy = crops[some]
    crops[some] = noisy.add_(randn(*noisy.shape).mul_(uniform(len(noisy), 0, sigma))).clamp_(0, 1)
    return crops


@register
def jpeg(crops: Tensor, size: CropSize, *, low: int = 30, high: int = 90, share: float = 0.2) -> Tensor:
    """Compression of quality `low` to `high`."""
    from torchvision.io import decode_jpeg, encode_jpeg

    crops = crops.clamp(0, 1)
    for k in (rand(len(crops)) < share).nonzero()[:, 0].tolist():
        quality = int(torch.randint(low, high, (1,), generator=generator()))
        crops[k] = decode_jpeg(encode_jpeg((crops[k] * 255).to(torch.uint8), quality)).float() / 255
    return crops


@register
def colour(
    crops: Tensor, size: CropSize, *, brightness: float = 0.2, contrast: float = 0.2, hue: float = 0.05
) -> Tensor:
    """Brightness, contrast and tint of an ordinary colour jitter."""
    n = len(crops)
    light, more = 1 + uniform(n, -brightness, brightness), 1 + uniform(n, -contrast, contrast)
    tint = 1 + between([n, 3, 1, 1], -hue, hue)
    mean = light * crops.flatten(1).mean(1)[:, None, None, None]
    return (crops * (light * more * tint)).add_(mean * (1 - more) * tint).clamp_(0, 1)


@register
@on_logarithm()
def stain(crops: Tensor, size: CropSize, *, sigma: float = 0.15) -> Tensor:
    """Gains of the channels in optical density (Tellez et al., Medical Image Analysis 58, 2019, in spirit)."""
    n = len(crops)
    gain = torch.exp(randn(n, 3, 1, 1) * sigma + randn(n, 1, 1, 1) * sigma)
    return crops.clamp_min(math.log(DARKEST)).mul_(gain)


# Densities in R, G, B of azure B bound to DNA, of eosin, and of what is left, one a column; read off pbc/train.
DYES = torch.tensor([[0.48, 0.25, 0.3], [0.86, 0.80, -0.3], [0.16, 0.55, 0.9]])


@register
@on_logarithm()
def restain(crops: Tensor, size: CropSize, *, strength: float = 1.0) -> Tensor:
    """Other dyes and sensors, in optical density.

    The tone curve of each channel; the share of eosin; gains and mixing of channels, with a blue channel that may be
    nearly blind and a red one that may be faint; grey; shading; a veil over all.
    """
    n, s = len(crops), strength
    dark = torch.tensor([1.2, 2.0, 0.45])[None, :, None, None]
    power = torch.exp(randn(n, 1, 1, 1) * 0.15 * s + randn(n, 3, 1, 1) * 0.15 * s)
    density = crops.neg().clamp_min_(1e-4).pow_(power)
    at_power = (dark ** (1 - power)).flatten(1)  # the rest of dark * (density / dark) ** power
    gains = torch.eye(3) * torch.exp(randn(n, 3, 1) * 0.15 * s) * torch.exp(randn(n, 1, 1) * 0.15 * s)
    gains[:, 2] *= torch.where(rand(n, 1) < 0.5 * s, rand(n, 1) * 1.3, torch.ones(n, 1))
    gains[:, 0] *= torch.exp(randn(n, 1) * 0.25 * s)
    gains = gains + randn(n, 3, 3) * 0.05 * s
    grey = rand(n) < 0.03 * s
    gains[grey] = gains[grey].mean(1, keepdim=True).expand(-1, 3, -1)
    dyes = torch.diag_embed(torch.stack([torch.ones(n), torch.exp(randn(n) * 0.35 * s), torch.ones(n)], 1))
    gains = gains @ (DYES @ dyes @ torch.linalg.inv(DYES))
    density = torch.matmul(gains * at_power[:, None], density.flatten(2)).view(crops.shape)
    shade = smooth(randn(n, 3, 3, 3) * 0.5 + randn(n, 1, 3, 3), crops.shape[-1])
    shade = shade * (0.1 * s * uniform(n, 0, 1))
    veil = rand(n, 3, 1, 1) * 0.15 * s * uniform(n, 0, 1) * (rand(n, 1, 1, 1) < 0.5)
    return density.add_(shade).add_(veil - shade.amin((2, 3), keepdim=True)).clamp_min_(0).neg_()


def smooth(points: Tensor, side: int) -> Tensor:
    """Bicubic interpolation of few points (n, 3, k, k) to a picture: two products with the weight of each of them."""
    k = points.shape[-1]
    corners = torch.eye(k)[:, None, :, None].expand(k, 1, k, 2)
    weights = functional.interpolate(corners, (side, 2), mode="bicubic", align_corners=True)[:, 0, :, 0]
    return weights.T @ points @ weights


@register
@on_logarithm()
def tint(crops: Tensor, size: CropSize, *, each: float = 0.08, all: float = 0.1) -> Tensor:  # noqa: A002
    """Gains in optical density, of each channel and of all: what is left after a stain was normalised."""
    n = len(crops)
    gain = torch.exp(randn(n, 3, 1, 1) * each + randn(n, 1, 1, 1) * all)
    return crops.clamp_min(math.log(1e-4)).mul_(gain).clamp_max_(math.log(1.2))


@register
@on_logarithm(takes=False)
def two_dyes_unsure(
    crops: Tensor, size: CropSize, *, eosin: float = 0.3, azure: float = 0.1, unseen: float = 0.2
) -> Tensor:
    """`napari_wbc.preprocess.two_dyes` whose nucleus and red cells were measured wrongly by a little, or not seen."""
    n = len(crops)

    def wrong(nucleus: Tensor, red: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        red = torch.where((rand(n) < unseen)[:, None], reference, red)
        nucleus = nucleus * torch.exp(randn(n, 1) * azure + randn(n, 3) * azure / 2)
        return nucleus, red * torch.exp(randn(n, 1) * eosin + randn(n, 3) * 0.07)

    return replaced_dyes(crops, size, changed=wrong)


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
    seen = torch.matmul(torch.linalg.inv(mix)[:, 1:2], density.flatten(2)).view(n, *crops.shape[2:])
    axis = (torch.arange(size.pixels) + 0.5 - size.pixels / 2) * size.side_um / size.pixels
    within = _disc(uniform(n, 7, 10)[:, 0], (axis[:, None] ** 2 + axis[None] ** 2).sqrt())
    # Glass stays glass: only where something is stained, seen without noise.
    stained = mean_of_25(density[:, 1]).div_(0.1 * nucleus[:, 1, None, None]).sub_(0.6).clamp_(0, 1)
    within = within.mul_(stained).mul_(told_apart[:, None, None])
    factor = torch.exp((randn(n, 1, 1) * eosin).clamp(-1.5, 1.2))
    change = torch.stack([uniform(n, -0.05, azure)[:, 0] * within, seen.mul_(within).mul_(factor - 1)], 1)
    change = torch.matmul(mix[:, :, :2].neg(), change.flatten(2)).view(crops.shape)
    return change.exp_().mul_(crops).clamp_(0, 1)


def _disc(radius: Tensor, away: Tensor) -> Tensor:
    """1 within a radius (n, 1, 1) and 0 beyond it, with a soft edge of half a micrometre, µm; the logistic function."""
    # torch.sigmoid takes five times as long.
    return away.sub(radius).mul_(2).exp_().add_(1).reciprocal_()


def mean_of_25(values: Tensor) -> Tensor:
    """Mean of each pixel's 5 x 5 neighbours (n, h, w), 0 beyond the border: pooling takes ten times as long."""
    _, h, w = values.shape
    padded = functional.pad(values, [2, 2, 2, 2])
    lines = padded[..., :w] + padded[..., 1 : w + 1]
    for k in (2, 3, 4):
        lines += padded[..., k : w + k]
    total = lines[:, :h] + lines[:, 1 : h + 1]
    for k in (2, 3, 4):
        total += lines[:, k : h + k]
    return total.div_(25)


@register
@on_logarithm()
def surround(crops: Tensor, size: CropSize) -> Tensor:
    """Put half of the cells into the surroundings of others, fainter or stronger, or into none."""
    n = len(crops)
    axis = (torch.arange(size.pixels) + 0.5 - size.pixels / 2) * size.side_um / size.pixels
    away = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    own = _disc(uniform(n, 6.5, 10), away)
    own = torch.where(rand(n, 1, 1, 1) < 0.5, own, torch.ones(1))
    strength = torch.exp(randn(n, 1, 1, 1) * 0.5) * (rand(n, 1, 1, 1) < 0.8)
    # Densities add.
    crops = crops.clamp_min(math.log(1e-7))
    return (own * crops).add_(crops[torch.randperm(n, generator=generator())].mul_(strength * (1 - own)))


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
    return as_logarithm(*_disturbed(crops.clone(), False, steps, preprocessing, size), False)


def _disturbed(
    crops: Tensor,
    logarithm: bool,
    steps: Sequence[Mapping[str, Any]],
    preprocessing: Sequence[Mapping[str, Any]],
    size: CropSize,
) -> tuple[Tensor, bool]:
    """`disturb`, in place, of crops that may be logarithms; so may be the result (`napari_wbc.preprocess.advance`)."""
    for step in steps:
        name = step["step"]
        if name == "preprocess":
            crops, logarithm = _disturbed(crops, logarithm, preprocessing, (), size)
            continue
        if name == "one_of":
            crops, logarithm = _one_of(crops, logarithm, step["branches"], size)
            continue
        run = DISTURBANCES.get(name) or STEPS[name]
        parameters = {key: value for key, value in step.items() if key not in ("step", "of")}
        some = rand(len(crops)) < float(step.get("of", 1.0))
        if some.all():
            crops, logarithm = advance(run, crops, logarithm, size, parameters)
        elif some.any():
            crops[some] = as_logarithm(*advance(run, crops[some], logarithm, size, parameters), logarithm)
    return crops, logarithm


def _one_of(
    crops: Tensor, logarithm: bool, branches: Sequence[Sequence[Mapping[str, Any]]], size: CropSize
) -> tuple[Tensor, bool]:
    """Send each crop through one branch; logarithms if any branch ends in them."""
    which = torch.randint(len(branches), (len(crops),), generator=generator())
    rows = [(which == k).nonzero()[:, 0] for k in range(len(branches))]
    done = [
        (some, *_disturbed(crops[some], logarithm, branch, (), size))
        for some, branch in zip(rows, branches, strict=True)
        if len(some)
    ]
    logarithm = any(each[2] for each in done)
    out = torch.empty_like(crops)
    for some, part, now in done:
        out[some] = as_logarithm(part, now, logarithm)
    return out, logarithm

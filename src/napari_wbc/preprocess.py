"""Named preprocessing steps that a model card records and prediction repeats exactly.

Each step takes and returns the crops, a float32 tensor (n, 3, S, S). The
first input holds 0 to 1; the last output goes into the network. Together the
steps of the shipped model remove what differs between laboratories and is no
property of the cell: the colour of the lamp, the strength of the stain, and
what lies around the cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .crop import CropSize

Step = Callable[..., "Tensor"]
STEPS: dict[str, Step] = {}
DARKEST = 1 / 255
_FAINTEST = 1e-7
"""Nothing transmits less."""


def register(step: Step) -> Step:
    """Make a step available to model cards under its function's name."""
    STEPS[step.__name__] = step
    return step


@dataclass(frozen=True)
class _Logarithmic:
    """A step whose input, or output, is the logarithm of the transmission."""

    run: Step
    takes: bool
    gives: bool


_LOGARITHMIC: dict[Step, _Logarithmic] = {}


def on_logarithm(*, takes: bool = True, gives: bool = True) -> Callable[[Step], Step]:
    """Make a step of one whose input, or output, is the logarithm of the transmission, less the optical density.

    Called by itself it takes and gives transmissions, as every step. In a chain (`advance`) such steps hand the
    logarithm on, since logarithms and exponentials take most of their time.
    """

    def made(inner: Step) -> Step:
        @wraps(inner)
        def step(crops: Tensor, size: CropSize, **parameters: Any) -> Tensor:
            return as_logarithm(inner(as_logarithm(crops, False, takes), size, **parameters), gives, False)

        _LOGARITHMIC[step] = _Logarithmic(inner, takes, gives)
        return step

    return made


def as_logarithm(crops: Tensor, now: bool, wanted: bool) -> Tensor:
    """Turn transmissions into their logarithms or back."""
    if now == wanted:
        return crops
    return crops.clamp_min(_FAINTEST).log_() if wanted else crops.exp()


def advance(
    step: Step, crops: Tensor, logarithm: bool, size: CropSize, parameters: Mapping[str, Any]
) -> tuple[Tensor, bool]:
    """Run a step within a chain: crops and whether they are logarithms, before and after it."""
    inner = _LOGARITHMIC.get(step, _Logarithmic(step, False, False))
    return inner.run(as_logarithm(crops, logarithm, inner.takes), size, **parameters), inner.gives


@register
def white_point(crops: Tensor, size: CropSize, *, share: float = 0.1) -> Tensor:
    """Divide by the colour of the empty background, so that lamps and cameras agree.

    Parameters
    ----------
    crops : (n, 3, S, S) tensor
        From 0 to 1.
    size : CropSize
        Not used.
    share : float
        The background is the mean of this share of the crop's 4 × 4 blocks: the brightest
        but for half as many brighter still (reflections).

    Returns
    -------
    (n, 3, S, S) tensor
        From 0 to 1.
    """
    white = _extreme(crops, block=4, share=share)
    return (crops / white.clamp_min(0.02)).clamp_(0, 1)


@register
@on_logarithm()
def dark_point(crops: Tensor, size: CropSize, *, density: float = 2.0, low: float = 0.4, high: float = 4.0) -> Tensor:
    """Scale the optical density, so that nuclei are equally dark however strong the stain is.

    Parameters
    ----------
    crops : (n, 3, S, S) tensor
        From 0 to 1, with a white background.
    size : CropSize
        Not used.
    density : float
        Density (natural logarithm) in green that the darkest 3 × 3 blocks get: a twentieth of
        the crop's middle, but for half as many darker still.
    low, high : float
        Limits of the factor.

    Returns
    -------
    (n, 3, S, S) tensor
        From 0 to 1.
    """
    n = crops.shape[-1]
    crops = crops.clamp_min(math.log(DARKEST))
    middle = crops[..., n // 4 : n - n // 4, n // 4 : n - n // 4].neg()
    darkest = _extreme(middle, block=3, share=0.05)[:, 1:2]
    factor = (density / darkest.clamp_min(0.05)).clamp(low, high)
    return crops.mul_(factor)


_NUCLEUS, _RED_CELL = (1.34, 2.33, 0.47), (0.21, 0.30, 0.19)
"""Densities in R, G, B of nuclei and of red cells under May-Grünwald-Giemsa: medians over pbc/train."""


@register
@on_logarithm(takes=False)
def two_dyes(
    crops: Tensor,
    size: CropSize,
    *,
    inside_um: float = 7.0,
    outside_um: float = 11.0,
) -> Tensor:
    """Give nuclei and red cells the colours that they have under one stain and camera.

    The optical density is split into the azure of the crop's nucleus, the eosin of the red cells
    around it, and what is left, and put together again with the densities of a reference: a
    stain normalisation in the manner of Ruifrok and Johnston, whose two dyes are read off the two
    things that every smear shows. So a pale nucleus is darkened without making the eosin of
    cytoplasm and red cells stronger, which would turn neutrophils into eosinophils.

    Parameters
    ----------
    crops : (n, 3, S, S) tensor
        From 0 to 1.
    size : CropSize
        Side of the crops, for the scale.
    inside_um : float
        The nucleus is the darkest tenth, in green, within this radius, µm.
    outside_um : float
        Red cells are looked for beyond this radius, µm; without any, those of the reference are taken.

    Returns
    -------
    (n, 3, S, S) tensor
        From 0 to 1.2, with a white background.

    References
    ----------
    .. [1] Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution",
           Analytical and Quantitative Cytology and Histology 23:291-299, 2001.
    """
    return replaced_dyes(crops, size, inside_um=inside_um, outside_um=outside_um)


def replaced_dyes(
    crops: Tensor,
    size: CropSize,
    *,
    inside_um: float = 7.0,
    outside_um: float = 11.0,
    changed: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Return the logarithm of what `two_dyes` gives.

    For training, `changed` takes the densities (n, 3) of nuclei and red cells and those (3,) of the reference's red
    cells, and returns the densities to use.
    """
    import torch

    # MPS has neither quantiles of parts nor inverses in every version of torch; both are a small part of the work.
    density, nucleus, red = measure_dyes(
        crops.cpu() if crops.device.type == "mps" else crops, size, inside_um=inside_um, outside_um=outside_um
    )
    reference, red_reference = torch.tensor(_NUCLEUS).to(density), torch.tensor(_RED_CELL).to(density)
    if changed is not None:
        nucleus, red = changed(nucleus, red, red_reference)
    source = torch.stack([nucleus, red, _across(nucleus, red)], 2)
    target = torch.stack([reference, red_reference, _across(reference, red_reference)], 1)
    matrix = target @ torch.linalg.inv_ex(source).inverse
    # Dyes that cannot be told apart, in a picture without a nucleus, leave the crop as it is.
    usable = torch.isfinite(matrix).all(2).all(1) & (matrix.abs().amax((1, 2)) < 40)
    matrix = torch.where(usable[:, None, None], matrix, torch.eye(3).to(density)).to(crops)
    density = torch.matmul(matrix, density.to(crops).flatten(2)).reshape(crops.shape)
    return density.neg_().clamp_max_(math.log(1.2))


def measure_dyes(
    crops: Tensor, size: CropSize, *, inside_um: float = 7.0, outside_um: float = 11.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the optical density over the background, (n, 3, S, S), and that of nucleus and red cells, (n, 3)."""
    import torch

    n = crops.shape[-1]
    axis = ((torch.arange(n, device=crops.device) + 0.5) / n - 0.5) * size.side_um
    away = (axis[::2, None] ** 2 + axis[None, ::2] ** 2).sqrt().flatten()
    inside, outside = away < inside_um, away > outside_um
    # Every other pixel of every other row, in grey levels, is enough for quantiles and many times faster to count.
    some = crops[:, :, ::2, ::2].flatten(2).mul(255).round_().clamp_(0, 255)
    levels = some.long()
    green = some[:, 1]
    white = _median(levels, green >= _level(levels[:, 1], 0.9)).clamp_min(1) / 255
    nucleus = _median(levels, (green <= _level(levels[:, 1, inside], 0.1)) & inside)
    nucleus = _over(nucleus.clamp_min(1) / 255, white)
    nucleus = nucleus * (0.25 / nucleus[:, 1:2].clamp_min(0.02)).clamp_min(1)
    over = _over(green.clamp_min(1) / 255, white[:, 1:2])
    stained = outside & (over > 0.12) & (over < 0.7 * nucleus[:, 1:2])
    enough = stained.float().mean(1, keepdim=True) > 0.06 * outside.float().mean()
    reference = torch.tensor(_RED_CELL).to(crops)
    red = torch.where(enough, _over(_median(levels, stained).clamp_min(1) / 255, white), reference)
    return _over(crops.clamp_min(DARKEST), white[:, :, None, None]), nucleus, red


def _over(transmission: Tensor, white: Tensor) -> Tensor:
    """Optical density over the background."""
    return transmission.div(white).clamp_max_(1.3).log_().neg_().clamp_max_(2.6)


def _level(levels: Tensor, share: float) -> Tensor:
    """Grey level below which this share of the pixels lies, 0 without any: (n, p) to (n, 1)."""
    import torch

    rows = torch.arange(len(levels), device=levels.device)[:, None] * 256
    return _below(torch.bincount((levels + rows).flatten(), minlength=256 * len(levels)).view(-1, 256), share)


def _median(levels: Tensor, chosen: Tensor) -> Tensor:
    """Median grey level of the chosen pixels: (n, 3, p) and (n, p) to (n, 3)."""
    import torch

    n = len(levels)
    row, pixel = chosen.nonzero(as_tuple=True)
    colours = levels[row, :, pixel] + (row[:, None] * 3 + torch.arange(3, device=levels.device)) * 256
    return _below(torch.bincount(colours.flatten(), minlength=768 * n).view(-1, 256), 0.5).view(n, 3)


def _below(counts: Tensor, share: float) -> Tensor:
    """Number of the count below which this share of all lies: (n, 256) to (n, 1)."""
    import torch

    cumulated = counts.cumsum(1)
    wanted = (cumulated[:, -1:] * share).floor_().clamp_max(cumulated[:, -1:] - 1)
    return torch.searchsorted(cumulated.to(wanted), wanted, right=True).clamp_max_(255)


def _across(first: Tensor, second: Tensor) -> Tensor:
    """Unit vector at right angles to both."""
    import torch

    vector: Tensor = torch.linalg.cross(first, second)
    unit: Tensor = vector / vector.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return unit


@register
@on_logarithm()
def window(crops: Tensor, size: CropSize, *, radius_um: float = 10.0, softness_um: float = 0.6) -> Tensor:
    """Fade the optical density to nothing beyond a radius, so that neighbours do not count.

    Parameters
    ----------
    crops : (n, 3, S, S) tensor
        From 0 to 1, with a white background.
    size : CropSize
        Side of the crops, for the scale.
    radius_um, softness_um : float
        Where half of the density is left, and how soft the edge is, µm.

    Returns
    -------
    (n, 3, S, S) tensor
        From 0 to 1.
    """
    import torch

    n = crops.shape[-1]
    axis = (torch.arange(n, device=crops.device) + 0.5 - n / 2) * (size.side_um / n)
    radius = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    # The logistic function; torch.sigmoid takes five times as long.
    weight = torch.exp((radius - radius_um) / softness_um).add_(1).reciprocal_().to(crops.dtype)
    return crops.clamp_min(math.log(_FAINTEST)).mul_(weight)


@register
def scale_to_unit(crops: Tensor, size: CropSize) -> Tensor:
    """Map 0 to 1 onto -1 to 1."""
    return crops.mul(2).sub_(1)


@register
def imagenet(crops: Tensor, size: CropSize) -> Tensor:
    """Subtract the mean of ImageNet's pixels and divide by their deviation, as torchvision's weights expect."""
    import torch

    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (crops - mean.to(crops)[:, None, None]) / deviation.to(crops)[:, None, None]


@register
def grey(crops: Tensor, size: CropSize) -> Tensor:
    """Three equal channels: the luma of ITU-R BT.601."""
    import torch

    weight = torch.tensor([0.299, 0.587, 0.114]).to(crops)
    return torch.einsum("c,nchw->nhw", weight, crops)[:, None].expand_as(crops).contiguous()


def _extreme(values: Tensor, *, block: int, share: float) -> Tensor:
    """Mean colour of the pooled blocks with the highest mean, less the very highest; (n, 3, 1, 1)."""
    n, colours, h, w = values.shape
    rows, columns = h // block, w // block
    # Rows first, which lie side by side in memory: three times as fast as pooling.
    lines = values[..., : rows * block, :].reshape(n, colours, rows, block, w).unbind(3)
    pixels = _sum(lines)[..., : columns * block].reshape(n, colours, rows, columns, block).unbind(4)
    blocks = _sum(pixels).div_(block * block).flatten(2)
    k = max(1, int(blocks.shape[2] * share))
    chosen = blocks.mean(1).topk(2 * k, dim=1).indices[:, k // 2 :]
    return blocks.gather(2, chosen[:, None].expand(-1, colours, -1)).mean(2).view(n, colours, 1, 1)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """Sum of tensors of one shape, a new one."""
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total


def check_steps(steps: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if a step, or a parameter of one, is unknown."""
    for step in steps:
        if step.get("step") not in STEPS:
            raise ValueError(f"unknown preprocessing step {step.get('step')!r}; known are {', '.join(STEPS)}")
        check_parameters(STEPS[step["step"]], step)


def check_parameters(run: Callable[..., Any], step: Mapping[str, Any]) -> None:
    """Raise ValueError if a step has a parameter that its function does not take by name."""
    from inspect import Parameter, signature

    known = [p.name for p in signature(run).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    for key in step:
        if key not in ("step", *known):
            raise ValueError(f"step {step['step']!r} has no parameter {key!r}; it has {', '.join(known) or 'none'}")


def apply_steps(crops: Tensor, steps: Sequence[Mapping[str, Any]], size: CropSize) -> Tensor:
    """Run the steps of a card.

    Parameters
    ----------
    crops : (n, 3, S, S) tensor
        uint8, or float32 from 0 to 1.
    steps : sequence of mappings
        ``{"step": name, **parameters}`` in order.
    size : CropSize
        The crops' size, for steps that measure in µm.

    Returns
    -------
    (n, 3, S, S) float32 tensor
        What the network takes.
    """
    crops, logarithm = to_unit(crops), False
    for step in steps:
        parameters = {key: value for key, value in step.items() if key != "step"}
        crops, logarithm = advance(STEPS[step["step"]], crops, logarithm, size, parameters)
    return as_logarithm(crops, logarithm, False)


def to_unit(crops: Tensor) -> Tensor:
    """Map uint8 onto 0 to 1, in planes of colour: with interleaved ones the steps are several times slower."""
    import torch

    return crops.contiguous().float().div_(255) if crops.dtype == torch.uint8 else crops

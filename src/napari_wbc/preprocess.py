"""Named preprocessing steps that a model card records and prediction repeats exactly.

Each step takes and returns the crops, a float32 tensor (n, 3, S, S). The
first input holds 0 to 1; the last output goes into the network. Together the
steps of the shipped model remove what differs between laboratories and is no
property of the cell: the colour of the lamp, the strength of the stain, and
what lies around the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .crop import CropSize

Step = Callable[..., "Tensor"]
STEPS: dict[str, Step] = {}
DARKEST = 1 / 255


def register(step: Step) -> Step:
    """Make a step available to model cards under its function's name."""
    STEPS[step.__name__] = step
    return step


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
    absorbed = crops.clamp_min(DARKEST).log_().neg_()
    middle = absorbed[..., n // 4 : n - n // 4, n // 4 : n - n // 4]
    darkest = _extreme(middle, block=3, share=0.05)[:, 1:2]
    factor = (density / darkest.clamp_min(0.05)).clamp(low, high)
    return absorbed.mul_(-factor).exp_()


@register
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
    weight = torch.sigmoid((radius_um - radius) / softness_um).to(crops.dtype)
    # Density times weight is a power of the transmission (Beer and Lambert); a logarithm and an
    # exponential are faster than the power.
    return crops.clamp_min(1e-7).log_().mul_(weight).exp_()


@register
def scale_to_unit(crops: Tensor, size: CropSize) -> Tensor:
    """Map 0 to 1 onto -1 to 1."""
    return crops.mul(2).sub_(1)


def _extreme(values: Tensor, *, block: int, share: float) -> Tensor:
    """Mean colour of the pooled blocks with the highest mean, less the very highest; (n, 3, 1, 1)."""
    from torch.nn import functional

    blocks = functional.avg_pool2d(values, block).flatten(2)
    k = max(1, int(blocks.shape[2] * share))
    chosen = blocks.mean(1).topk(2 * k, dim=1).indices[:, k // 2 :]
    return blocks.gather(2, chosen[:, None].expand(-1, 3, -1)).mean(2)[:, :, None, None]


def check_steps(steps: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if a step is unknown."""
    for step in steps:
        if step.get("step") not in STEPS:
            raise ValueError(f"unknown preprocessing step {step.get('step')!r}; known are {', '.join(STEPS)}")


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
    import torch

    if crops.dtype == torch.uint8:
        crops = crops.float().div_(255)
    for step in steps:
        parameters = {key: value for key, value in step.items() if key != "step"}
        crops = STEPS[step["step"]](crops, size, **parameters)
    return crops

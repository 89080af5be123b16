"""Named preprocessing steps that a model card records and prediction repeats exactly.

Each step takes and returns a float32 tensor of crops (n, 3, S, S). The first
input holds 0 to 1; the last output goes into the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .crop import CropSize

Step = Callable[..., "Tensor"]
STEPS: dict[str, Step] = {}


def register(step: Step) -> Step:
    """Make a step available to model cards under its function's name."""
    STEPS[step.__name__] = step
    return step


@register
def white_point(crops: Tensor, size: CropSize, *, share: float = 0.1) -> Tensor:
    """Divide by the colour of the empty background, so that lamps and cameras agree.

    Parameters
    ----------
    share : float
        The background is the mean of this share of the crop, the brightest
        4 × 4 blocks but for the very brightest half as many (reflections).
    """
    from torch.nn import functional

    blocks = functional.avg_pool2d(crops, 4).flatten(2)
    k = max(1, int(blocks.shape[2] * share))
    brightest = blocks.mean(1).topk(2 * k, dim=1).indices[:, k // 2 :]
    white = blocks.gather(2, brightest[:, None].expand(-1, 3, -1)).mean(2)
    return (crops / white[:, :, None, None].clamp_min(0.02)).clamp(0, 1)


@register
def window(crops: Tensor, size: CropSize, *, radius_um: float, softness_um: float = 0.6) -> Tensor:
    """Fade the optical density to nothing beyond a radius, so that neighbours do not count.

    Parameters
    ----------
    radius_um, softness_um : float
        Where half of the density is left, and how soft the edge is, µm.
    """
    import torch

    n = crops.shape[-1]
    axis = (torch.arange(n, device=crops.device) + 0.5 - n / 2) * (size.side_um / n)
    radius = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    weight = torch.sigmoid((radius_um - radius) / softness_um).to(crops.dtype)
    # Density times weight is a power of the transmission (Beer and Lambert).
    return crops.clamp_min(1 / 255).pow(weight)


@register
def scale_to_unit(crops: Tensor, size: CropSize) -> Tensor:
    """Map 0 to 1 onto -1 to 1."""
    return crops * 2 - 1


def check_steps(steps: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if a step is unknown."""
    for step in steps:
        if step.get("step") not in STEPS:
            raise ValueError(f"unknown preprocessing step {step.get('step')!r}; known are {', '.join(STEPS)}")


def apply_steps(crops: Tensor, steps: Sequence[Mapping[str, Any]], size: CropSize) -> Tensor:
    """Run the steps of a card over uint8 or float crops.

    Parameters
    ----------
    crops : (n, 3, S, S) tensor
        uint8, or float32 from 0 to 1.
    steps : sequence of mappings
        ``{"step": name, **parameters}`` in order.
    size : CropSize
        The crops' size, for steps that measure in µm.
    """
    import torch

    if crops.dtype == torch.uint8:
        crops = crops.float() / 255
    for step in steps:
        parameters = {key: value for key, value in step.items() if key != "step"}
        crops = STEPS[step["step"]](crops, size, **parameters)
    return crops

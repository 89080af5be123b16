"""Named preprocessing steps that a model card records and prediction repeats exactly.

Each step takes and returns the crops, a float32 tensor (n, 3, S, S), and
their masks, (n, 1, S, S). The first input holds 0 to 1; the last output goes
into the network. Together the steps of the shipped model remove what differs
between laboratories and is no property of the cell: the colour of the lamp,
the strength of the stain, and everything around the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .crop import CropSize

Step = Callable[..., "tuple[Tensor, Tensor]"]
STEPS: dict[str, Step] = {}
DARKEST = 1 / 255


def register(step: Step) -> Step:
    """Make a step available to model cards under its function's name."""
    STEPS[step.__name__] = step
    return step


@register
def white_point(crops: Tensor, masks: Tensor, size: CropSize, *, share: float = 0.1) -> tuple[Tensor, Tensor]:
    """Divide by the colour of the empty background, so that lamps and cameras agree.

    Parameters
    ----------
    share : float
        Of the 4 × 4 blocks, ranked by brightness, the first half of this share
        is passed over (reflections), and the mean of the next one and a half
        times this share is the background.
    """
    white = _extreme(crops, block=4, share=share)
    return (crops / white.clamp_min(0.02)).clamp(0, 1), masks


@register
def cell_mask(
    crops: Tensor, masks: Tensor, size: CropSize, *, margin_um: float = 1.25, radius_um: float = 8.0
) -> tuple[Tensor, Tensor]:
    """Widen and soften the masks; where a mask is empty take a disc.

    Parameters
    ----------
    margin_um : float
        How far masks are widened, µm: an outline that is a little too tight must not cut the cell.
    radius_um : float
        Radius of the disc, µm.
    """
    import torch
    from torch.nn import functional

    n = crops.shape[-1]
    pixels_per_um = n / size.side_um
    reach = round(margin_um * pixels_per_um)
    # A square that slides along rows, then along columns, is the square of the outline's widening.
    wide = functional.max_pool2d(masks, (2 * reach + 1, 1), 1, (reach, 0))
    wide = functional.max_pool2d(wide, (1, 2 * reach + 1), 1, (0, reach))
    wide = functional.avg_pool2d(wide, 5, 1, 2, count_include_pad=False)
    axis = (torch.arange(n, device=crops.device) + 0.5 - n / 2) / pixels_per_um
    disc = torch.sigmoid((radius_um - (axis[:, None] ** 2 + axis[None] ** 2).sqrt()) / 0.4)
    unknown = masks.amax((1, 2, 3), keepdim=True) <= 0.5
    return crops, torch.where(unknown, disc.to(masks.dtype), wide)


@register
def dark_point(
    crops: Tensor, masks: Tensor, size: CropSize, *, density: float = 2.0, low: float = 0.4, high: float = 4.0
) -> tuple[Tensor, Tensor]:
    """Scale the optical density, so that nuclei are equally dark however strong the stain is.

    Parameters
    ----------
    density : float
        Density (natural logarithm) in green that the darkest parts of the cell
        get: of the 3 × 3 blocks of the middle half of the crop, the mean of
        those that rank between the darkest 2.5 and 10 %.
    low, high : float
        Limits of the factor.
    """
    n = crops.shape[-1]
    absorbed = -crops.clamp_min(DARKEST).log()
    middle = (absorbed * masks)[..., n // 4 : n - n // 4, n // 4 : n - n // 4]
    darkest = _extreme(middle, block=3, share=0.05)[:, 1:2]
    factor = (density / darkest.clamp_min(0.05)).clamp(low, high)
    return (-absorbed * factor).exp(), masks


@register
def isolate(crops: Tensor, masks: Tensor, size: CropSize) -> tuple[Tensor, Tensor]:
    """Fade the optical density to nothing outside the masks, so that neighbours do not count."""
    # Density times weight is a power of the transmission (Beer and Lambert).
    return crops.clamp_min(1e-7).pow(masks), masks


@register
def scale_to_unit(crops: Tensor, masks: Tensor, size: CropSize) -> tuple[Tensor, Tensor]:
    """Map 0 to 1 onto -1 to 1."""
    return crops * 2 - 1, masks


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


def apply_steps(crops: Tensor, masks: Tensor, steps: Sequence[Mapping[str, Any]], size: CropSize) -> Tensor:
    """Run the steps of a card.

    Parameters
    ----------
    crops : (n, 3, S, S) tensor
        uint8, or float32 from 0 to 1.
    masks : (n, 1, S, S) tensor
        Likewise; all zero where the cell's outline is not known.
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
        crops, masks = crops.float() / 255, masks.float() / 255
    for step in steps:
        parameters = {key: value for key, value in step.items() if key != "step"}
        crops, masks = STEPS[step["step"]](crops, masks, size, **parameters)
    return crops

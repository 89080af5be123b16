"""Networks by name, and the models that ship with the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

NETWORKS: dict[str, Callable[[int], nn.Module]] = {}
DEFAULT_MODEL = "wbc8-mobilenetv2"
_HERE = Path(__file__).parent


def register(builder: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Make a network available to model cards under its builder's name."""
    NETWORKS[builder.__name__] = builder
    return builder


@register
def mobilenet_v2(n_classes: int) -> nn.Module:
    """MobileNetV2, width 1, with torchvision's parameter names.

    References
    ----------
    .. [1] Sandler et al., "MobileNetV2: inverted residuals and linear
           bottlenecks", CVPR 2018.
    """
    from ._mobilenet import MobileNetV2

    return MobileNetV2(n_classes)


def build(name: str, n_classes: int) -> nn.Module:
    """Build a network without weights; ValueError for a name that is not known."""
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known are {', '.join(NETWORKS)}")
    return NETWORKS[name](n_classes)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Merge every batch norm that follows a convolution in an `nn.Sequential` into it.

    The network computes the same in evaluation mode, and faster. The module
    is changed in place, put into evaluation mode and returned.
    """
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    network.eval()
    for block in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for (name, first), (next_name, second) in zip(
            list(block.named_children()), list(block.named_children())[1:], strict=False
        ):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                block.register_module(name, fuse_conv_bn_eval(first, second))
                block.register_module(next_name, nn.Identity())
    return network


def available_models() -> dict[str, Path]:
    """Return the models that ship with the package, name to card file."""
    return {path.stem: path for path in sorted(_HERE.glob("*.json"))}


def find_model(model: str | Path | None = None) -> Path:
    """Return the card file of a model.

    Parameters
    ----------
    model : str or pathlib.Path, optional
        A name from `available_models`, a card file, or a folder that holds
        one card; the default model if not given.

    Raises
    ------
    FileNotFoundError
        If there is none; the message lists what there is.
    """
    shipped = available_models()
    name = DEFAULT_MODEL if model is None else str(model)
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.is_dir() and len(cards := sorted(path.glob("*.json"))) == 1:
        return cards[0]
    if path.is_file():
        return path.with_suffix(".json") if path.suffix == ".safetensors" else path
    raise FileNotFoundError(
        f"no model {name!r}: give the path of a model card (.json, its .safetensors beside it) or one of "
        f"{', '.join(shipped)}"
    )

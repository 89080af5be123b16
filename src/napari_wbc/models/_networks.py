"""Published networks for blood cells, from torchvision and timm, with one kind of head."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


class SeLU6(nn.Module):
    """Scaled exponential linear unit, cut at six.

    ``SeLU6(x) = min(6, λ x)`` for ``x > 0``, ``λ α (eˣ - 1)`` otherwise, with λ and α of SELU (Klambauer et al.,
    "Self-normalizing neural networks", NeurIPS 2017), in place of the block activations as in Muntasa et al. (2025).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        return functional.selu(x).clamp_max(6.0)


class CustomCNN(nn.Sequential):
    """A small convolutional network that is trained from scratch.

    Four times: convolution 3 × 3 (32, 64, 128, 256 channels, padding 1), batch norm, ReLU, max pooling 2 × 2. The
    last maps go to the head. 0.39 million parameters before the head.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (32, 64, 128, 256):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            inputs = outputs
        super().__init__(*layers)


def torchvision_features(name: str, start: str) -> tuple[nn.Module, int]:
    """Feature maps of a torchvision model and how many channels they have."""
    from torchvision import models

    model: Any = models.get_model(name, weights="DEFAULT" if start == "imagenet" else None)
    if hasattr(model, "features"):
        features = model.features
    elif name.startswith("resnet"):
        features = nn.Sequential(*list(model.children())[:-2])
    else:
        raise ValueError(f"{name!r} of torchvision has no feature maps that a head could be put on; use one of timm")
    return features, _channels(features)


def where_from(name: str) -> str:
    """Say where ImageNet weights are downloaded from, and where their file may be put by hand."""
    from torchvision import models

    name = name.removesuffix("_selu6")
    if name not in models.list_models(module=models):
        return "timm downloads them once, and needs a network then"
    url = models.get_model_weights(name).DEFAULT.url
    return (
        f"they are downloaded once from {url}; without a network put that file into {torch.hub.get_dir()}/checkpoints"
    )


class TimmFeatures(nn.Module):
    """The part of a timm model before its pooling; (n, c, h, w) out."""

    def __init__(self, name: str, start: str) -> None:
        super().__init__()
        import timm

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = timm.create_model(name, pretrained=start == "imagenet", num_classes=0, global_pool="")

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps."""
        maps: Tensor = self.model.forward_features(x)
        if maps.ndim == 3:  # tokens of a transformer: (n, t, c)
            return maps.mT[..., None]
        return maps


def timm_features(name: str, start: str) -> tuple[nn.Module, int]:
    """Feature maps of a timm model and how many channels they have."""
    try:
        features = TimmFeatures(name, start)
    except ImportError as error:
        raise ValueError(f"{name!r} needs timm: pip install 'napari-wbc[train]'") from error
    return features, _channels(features, int(features.model.default_cfg.get("input_size", (3, 224, 224))[-1]))


def _channels(features: nn.Module, side: int = 96) -> int:
    features.eval()
    with torch.no_grad():
        return int(features(torch.zeros(1, 3, side, side)).shape[1])


def replace_activations(module: nn.Module, old: tuple[type[nn.Module], ...], new: type[nn.Module]) -> int:
    """Put another activation in place of the old ones, but not in squeeze-and-excitation gates; returns how many."""
    count = 0
    for name, child in module.named_children():
        if isinstance(child, old):
            setattr(module, name, new())
            count += 1
        elif "SqueezeExcitation" not in type(child).__name__:
            count += replace_activations(child, old, new)
    return count


def any_features(name: str, start: str, known: tuple[str, ...]) -> tuple[nn.Module, int]:
    """Feature maps of a model that torchvision or timm knows by name; ValueError if neither does."""
    import torchvision

    # Detection and segmentation models are left out: their builders fetch backbones unasked.
    if name in torchvision.models.list_models(module=torchvision.models):
        return torchvision_features(name, start)
    try:
        import timm
    except ImportError:
        timm = None
    if timm is not None and timm.is_model(name):
        return timm_features(name, start)
    raise ValueError(
        f"unknown network {name!r}; known are {', '.join(known)} and the names of torchvision"
        + (" and timm" if timm else "; pip install 'napari-wbc[train]' for those of timm")
    )


def blocks(features: nn.Module) -> list[nn.Module]:
    """The parts of a network in order, the last nearest to the head; for freezing all but the last few."""
    while not isinstance(features, nn.Sequential) and len(children := list(features.children())) == 1:
        features = children[0]
    parts: list[nn.Module] = []
    for child in features.children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and len(list(child.children())) > 3:
            parts += list(child.children())
        else:
            parts.append(child)
    return [part for part in parts if any(True for _ in part.parameters())]

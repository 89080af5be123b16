"""Networks by name, and the models that ship with the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Builder = Callable[[str], tuple["nn.Module", int]]
"""From ``imagenet`` or ``random`` to feature maps (n, c, h, w) and c."""

NETWORKS: dict[str, Builder] = {}
DEFAULT_MODEL = "wbc8-mobilenetv2"
_HERE = Path(__file__).parent


def register(builder: Builder) -> Builder:
    """Make a network available to model cards under its builder's name."""
    NETWORKS[builder.__name__] = builder
    return builder


@register
def mobilenet_v2(start: str = "random") -> tuple[nn.Module, int]:
    """MobileNetV2, width 1, with torchvision's parameter names.

    References
    ----------
    .. [1] Sandler et al., "MobileNetV2: inverted residuals and linear
           bottlenecks", CVPR 2018.
    """
    from ._mobilenet import mobilenet_features

    features = mobilenet_features()
    if start == "imagenet":
        from ._networks import torchvision_features

        features.load_state_dict(torchvision_features("mobilenet_v2", "imagenet")[0].state_dict())
    return features, 1280


@register
def efficientnet_v2_s(start: str = "random") -> tuple[nn.Module, int]:
    """EfficientNetV2-S (Tan and Le, ICML 2021), of torchvision."""
    return _torchvision("efficientnet_v2_s", start)


@register
def efficientnet_v2_s_selu6(start: str = "random") -> tuple[nn.Module, int]:
    """EfficientNetV2-S with SeLU6 in place of the blocks' SiLU (`SeLU6`)."""
    from torch import nn

    from ._networks import SeLU6, replace_activations

    features, channels = _torchvision("efficientnet_v2_s", start)
    replace_activations(features, (nn.SiLU,), SeLU6)
    return features, channels


@register
def vgg16(start: str = "random") -> tuple[nn.Module, int]:
    """VGG16 (Simonyan and Zisserman, ICLR 2015), of torchvision; its dense layers are replaced by the head."""
    return _torchvision("vgg16", start)


@register
def vgg19(start: str = "random") -> tuple[nn.Module, int]:
    """VGG19 (Simonyan and Zisserman, ICLR 2015), of torchvision; its dense layers are replaced by the head."""
    return _torchvision("vgg19", start)


@register
def resnet50(start: str = "random") -> tuple[nn.Module, int]:
    """ResNet50 (He et al., CVPR 2016), of torchvision."""
    return _torchvision("resnet50", start)


@register
def densenet201(start: str = "random") -> tuple[nn.Module, int]:
    """DenseNet201 (Huang et al., CVPR 2017), of torchvision."""
    return _torchvision("densenet201", start)


@register
def inception_resnet_v2(start: str = "random") -> tuple[nn.Module, int]:
    """Inception-ResNet-v2 (Szegedy et al., AAAI 2017), of timm."""
    from ._networks import timm_features

    return timm_features("inception_resnet_v2", start)


@register
def custom_cnn(start: str = "random") -> tuple[nn.Module, int]:
    """A small network that is trained from scratch (`napari_wbc.models._networks.CustomCNN`)."""
    from ._networks import CustomCNN

    if start == "imagenet":
        raise ValueError("custom_cnn has no ImageNet weights; it starts from random ones (--start random)")
    return CustomCNN(), 256


def _torchvision(name: str, start: str) -> tuple[nn.Module, int]:
    from ._networks import torchvision_features

    return torchvision_features(name, start)


def build(
    name: str, n_classes: int, *, hidden: int = 0, dropout: float = 0.2, start: str = "random", folded: bool = False
) -> nn.Module:
    """Build a network: feature maps, their global mean, and a head.

    Parameters
    ----------
    name : str
        One of `NETWORKS`, or any name of torchvision or timm.
    n_classes : int
        Outputs.
    hidden : int
        Units of a dense layer with ReLU before the classes; 0 for none.
    dropout : float
        Before the classes.
    start : str
        ``imagenet`` (the library's weights, downloaded once) or ``random``.
    folded : bool
        With batch norms merged into their convolutions (`fold_batch_norm`).

    Raises
    ------
    ValueError
        For a name that nobody knows, or weights that cannot be had.
    """
    from ._pooled import Head, Pooled

    features, channels = _features(name, start)
    network: nn.Module = Pooled(features, Head(channels, n_classes, hidden, dropout))
    return fold_batch_norm(network) if folded else network


def _features(name: str, start: str) -> tuple[nn.Module, int]:
    try:
        if name in NETWORKS:
            return NETWORKS[name](start)
        from ._networks import any_features

        return any_features(name, start, tuple(NETWORKS))
    except (OSError, RuntimeError) as error:
        if start != "imagenet":
            raise
        from ._networks import where_from

        raise ValueError(
            f"the ImageNet weights of {name!r} cannot be had ({str(error).splitlines()[0]}): {where_from(name)}; or go "
            "on with --start random, or with a safetensors file of weights"
        ) from error


def normalisation(name: str, start: str) -> str:
    """Name of the preprocessing step that weights expect: ``scale_to_unit`` or ``imagenet``.

    Parameters
    ----------
    name : str
        Network.
    start : str
        ``imagenet`` (those of Inception-ResNet-v2 want -1 to 1), ``random``, or a safetensors file, which may say in
        its metadata under ``input`` that it wants ``x/127.5-1``.
    """
    if start in ("imagenet", "random"):
        return "scale_to_unit" if name.startswith("inception") else "imagenet"
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(start, "pt") as file:
            told = (file.metadata() or {}).get("input", "")
    except (SafetensorError, OSError):
        return "imagenet"  # what is wrong with the file is said where it is loaded
    return "scale_to_unit" if "x/127.5-1" in told.replace(" ", "") else "imagenet"


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


def user_models() -> Path:
    """Return the folder of models that were trained here: ``NAPARI_WBC_MODELS``, or the user's data folder."""
    import os

    from platformdirs import user_data_path

    told = os.environ.get("NAPARI_WBC_MODELS")
    return Path(told) if told else user_data_path("napari-wbc", appauthor=False) / "models"


def available_models() -> dict[str, Path]:
    """Return the models that ship with the package and those trained here, name to card file."""
    own = {path.stem: path for path in sorted(user_models().glob("*.json"))}
    return own | {path.stem: path for path in sorted(_HERE.glob("*.json"))}


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
    if path.is_dir():
        cards = sorted(path.glob("*.json"))
        # The folder of a training run holds other JSON files, too.
        cards = [card for card in cards if card.with_suffix(".safetensors").is_file()] or cards
        if len(cards) == 1:
            return cards[0]
    if path.is_file():
        return path.with_suffix(".json") if path.suffix == ".safetensors" else path
    raise FileNotFoundError(
        f"no model {name!r}: give the path of a model card (.json, its .safetensors beside it) or one of "
        f"{', '.join(shipped)}"
    )

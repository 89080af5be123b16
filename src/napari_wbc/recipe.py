"""Everything that is chosen for a training run; recipes are such choices, one file each."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .augment import check_recipe
from .crop import CropSize
from .preprocess import check_parameters, check_steps
from .turning import turn

RECIPES = Path(__file__).parent / "recipes"
Step = Mapping[str, Any]
BALANCES = ("none", "sampling", "loss")
BATCH_NORMS = ("train", "frozen", "folded")
AVERAGES = ("none", "late", "ema")
SCHEDULES = ("constant", "cosine", "linear")
OPTIMISERS = ("adam", "adamw", "sgd")
FITS = ("cell", "scale", "picture")
NORMALISE = "normalise"
"""Step of a recipe that stands for the normalisation which the weights of the start expect."""


@dataclass(frozen=True)
class Recipe:
    """What a training run does.

    Attributes
    ----------
    network : name of a network (`napari_wbc.models.NETWORKS`, torchvision or timm).
    start : ``imagenet``, ``random``, or a safetensors file with weights under this package's names.
    hidden, dropout : units of a dense layer before the classes (0: none), and dropout.
    free : blocks that learn, counted from the head; -1 is all, 0 the head alone.
    batch_norm : ``train``; ``frozen`` keeps mean and variance of the start; ``folded`` merges them into convolutions.
    fit : ``scale`` shows `side_um` of the picture; ``cell`` shows `margin` times the cell; ``picture`` all.
    side_um, pixels, margin : side of the input in µm and pixels; sides of the cell's box that are shown.
    preprocessing, views : steps of the card, and ways to see a crop before them (`napari_wbc.classifier.ModelCard`);
        ``{step = "normalise"}`` stands for what the weights of the start expect (`napari_wbc.models.normalisation`).
    turn : arguments of `napari_wbc.turning.turn`; empty for none.
    augmentation : steps of training (`napari_wbc.augment.disturb`).
    optimiser, lr, head_lr, weight_decay : Adam, AdamW or SGD with momentum 0.9; `head_lr` 0 takes `lr`.
    schedule, warmup : learning rate over the run; steps in which it rises.
    epochs, batch_size, per_epoch : `per_epoch` cells are drawn an epoch; 0 takes each once.
    balance : ``sampling`` draws rare classes more often, ``loss`` weighs them; by the power `balance_power`.
    label_smoothing, clip : of the cross-entropy; norm at which gradients are cut (0: not).
    average : ``late`` averages weights with the third power of the step, ``ema`` exponentially (0.999).
    keep : ``last`` or ``best`` (by macro-F1 on validation) weights are the model.
    patience : epochs without progress after which training stops; 0 for never.
    copies : training cells are first multiplied to this many a class, undisturbed ones counted; 0 for not (published
        protocols that augment to a fixed number). With a random split, all cells are, before it.
    per_class : at most so many cells of each class are used (0: all).
    seed : equal seeds give equal runs.
    scale : share of data and epochs that is run; of the data, that is of `copies` where they are set.
    reduced : what else was reduced for a trial, in words; it is told wherever results are.
    classes : class names of the data to names of the model; empty for all as they are.
    also : further training data beside the data: name, share of the cells drawn (0: they only say what is no stranger),
        a table of labels in `RECIPES` if the set brings none, and files to leave out.
    prior, prior_strength : shares of the classes that the model expects, and the part of their logarithm that is added.
    threshold : of the card.
    unlike : share of known cells that may be called unlike them (`napari_wbc.unlikeness`); 0 for no such score.
    """

    network: str = "mobilenet_v2"
    start: str = "imagenet"
    hidden: int = 0
    dropout: float = 0.2
    free: int = -1
    batch_norm: str = "frozen"
    fit: str = "scale"
    side_um: float = 28.8
    pixels: int = 128
    margin: float = 1.3
    preprocessing: tuple[Step, ...] = ({"step": "imagenet"},)
    views: tuple[tuple[Step, ...], ...] = ()
    turn: Mapping[str, Any] = field(default_factory=lambda: {"zoom": 0.1, "shift": 0.02})
    augmentation: tuple[Step, ...] = ({"step": "colour"},)
    optimiser: str = "adamw"
    lr: float = 3e-4
    head_lr: float = 0.0
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: int = 50
    epochs: int = 10
    batch_size: int = 64
    per_epoch: int = 0
    balance: str = "none"
    balance_power: float = 0.7
    label_smoothing: float = 0.0
    clip: float = 5.0
    average: str = "none"
    keep: str = "best"
    patience: int = 0
    copies: int = 0
    per_class: int = 0
    seed: int = 0
    scale: float = 1.0
    reduced: str = ""
    classes: Mapping[str, str] = field(default_factory=dict)
    also: tuple[Step, ...] = ()
    prior: Mapping[str, float] = field(default_factory=dict)
    prior_strength: float = 0.0
    threshold: float = 0.5
    unlike: float = 0.0

    def __post_init__(self) -> None:
        def one_of(name: str, choices: tuple[str, ...]) -> None:
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(choices)}")

        def within(name: str, low: float, high: float) -> None:
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} is {value}, but must be from {low:g} to {high:g}")

        for name, choices in (
            ("batch_norm", BATCH_NORMS), ("fit", FITS), ("optimiser", OPTIMISERS), ("schedule", SCHEDULES),
            ("balance", BALANCES), ("average", AVERAGES), ("keep", ("best", "last")),
        ):  # fmt: skip
            one_of(name, choices)
        for name, low, high in (
            ("lr", 1e-9, 10), ("head_lr", 0, 10), ("weight_decay", 0, 1), ("dropout", 0, 0.99), ("epochs", 1, 10_000),
            ("batch_size", 1, 65_536), ("scale", 1e-4, 1), ("label_smoothing", 0, 0.9), ("pixels", 8, 1024),
            ("side_um", 1, 999), ("margin", 0.5, 10), ("hidden", 0, 65_536), ("free", -1, 10_000),
            ("patience", 0, 10_000),
            ("prior_strength", 0, 1), ("threshold", 0, 1), ("per_epoch", 0, 10**9), ("clip", 0, 1e6),
            ("warmup", 0, 10**6),
            ("copies", 0, 10**7), ("per_class", 0, 10**7), ("balance_power", 0, 2), ("unlike", 0, 0.5),
        ):  # fmt: skip
            within(name, low, high)
        for steps in (self.preprocessing, *self.views):
            check_steps([step for step in steps if step.get("step") != NORMALISE])
        check_recipe(self.augmentation)
        turning = {key: value for key, value in self.turn.items() if key not in ("radius_um", "reactive")}
        check_parameters(turn, {"step": "turn"} | turning)
        if self.start == "random" and self.batch_norm != "train":
            raise ValueError("a network that starts from random weights needs batch_norm = 'train'")
        if not all(isinstance(share, float | int) and share > 0 for share in self.prior.values()):
            raise ValueError("prior: every share must be above 0")
        if not all({"name", "share"} <= set(entry) for entry in self.also):
            raise ValueError("also: each entry needs name and share")
        if self.unlike and (self.fit != "scale" or not self.turn):
            raise ValueError("unlike: only crops of a scale that are turned show enough around a cell; set it to 0")
        if not 0 <= sum(float(entry["share"]) for entry in self.also) < 1:
            raise ValueError("also: the shares must be from 0 to below 1 together")

    @property
    def size(self) -> CropSize:
        """What the network sees."""
        cells = {"scale": 0.0, "cell": self.margin, "picture": -1.0}[self.fit]
        return CropSize(self.side_um, self.pixels, cells)

    @property
    def scaled_epochs(self) -> int:
        """Epochs that are run."""
        return max(1, round(self.epochs * self.scale))

    @property
    def scaled_copies(self) -> int:
        """Training cells of each class, copies counted, that are run; 0 for as they are."""
        return max(1, round(self.copies * self.scale)) if self.copies else 0

    @property
    def scaled(self) -> str:
        """How a trial falls short of the recipe; empty if it does not."""
        told = [f"only {self.scale:g} of the data and epochs were run"] if self.scale < 1 else []
        return "; ".join([*told, *([self.reduced] if self.reduced else [])])

    def normalised(self) -> Recipe:
        """The recipe with the normalisation that the weights of its start expect in place of ``normalise``."""
        from .models import normalisation

        step = {"step": normalisation(self.network, self.start)}
        told = tuple(step if s.get("step") == NORMALISE else s for s in self.preprocessing)
        return replace(self, preprocessing=told)

    def but(self, **changes: Any) -> Recipe:
        """The recipe with other values; ValueError for one that is not possible."""
        return replace(self, **typed(changes, "the recipe"))

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def recipes() -> dict[str, Path]:
    """Names and files of the recipes of the package."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def load_recipe(name: str | Path | Mapping[str, Any]) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    name : str, pathlib.Path or mapping
        A name from `recipes`, a TOML file, or the values themselves.

    Raises
    ------
    ValueError
        If there is none, or it says something that is not possible.
    """
    where = "the recipe" if isinstance(name, Mapping) else str(name)
    data = dict(name) if isinstance(name, Mapping) else read_toml(name)
    for key in ("protocol", "stage"):  # `napari_wbc.protocol`
        data.pop(key, None)
    try:
        return Recipe(**typed(data, where))
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error


def typed(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of a recipe as their types want them; ValueError for an unknown key or another type."""
    data = dict(values)
    known = {f.name: f for f in fields(Recipe)}
    unknown = [key for key in data if key not in known]
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(map(repr, unknown))}; a recipe knows {', '.join(known)}")
    default = Recipe()
    for key, value in data.items():
        kind = type(getattr(default, key))
        if kind is tuple and isinstance(value, list):
            value = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in value)
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        data[key] = value
        if not isinstance(value, (kind, Mapping) if kind is dict else kind) or (
            kind is int and isinstance(value, bool)
        ):
            raise ValueError(f"{where}: {key} is {value!r}, but must be of type {kind.__name__}")
    return data


def read_toml(name: str | Path) -> dict[str, Any]:
    """The values of a recipe of the package, or of a TOML file.

    Raises
    ------
    ValueError
        If there is none, or it is not TOML.
    """
    path = recipes().get(str(name), Path(name))
    if not path.is_file():
        raise ValueError(f"no recipe {str(name)!r}: give a TOML file or one of {', '.join(recipes())}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a recipe in TOML: {error}; correct it") from error

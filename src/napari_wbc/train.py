"""Train a network on labelled cells; one folder a run."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from .atomic import DEBRIS, new_file
from .augment import disturb, turn
from .classifier import Classifier, ModelCard, save_model
from .crop import CropSize
from .dataset import Dataset, DatasetError, check, cut_cells, read_dataset
from .models import build
from .preprocess import apply_steps
from .recipe import Recipe
from .split import Split, make_split

if TYPE_CHECKING:
    import lightning as pl

__all__ = ["Prepared", "Trained", "TrainingError", "prepare", "train"]

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is to do."""
HISTORY = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_macro_f1", "lr", "seconds"]
MARGIN = 1.7
"""Crops of a scale are stored with so much around them that they can be turned and zoomed without a border."""


class TrainingError(RuntimeError):
    """Training could not go on; the message says why, what was kept and what to do."""


@dataclass(frozen=True)
class Prepared:
    """Cells, split and crops, ready to train on.

    Parameters
    ----------
    split : Split
        Cells and parts.
    crops : (n, S', S', 3) uint8 array
        Larger than what the network sees.
    stored : CropSize
        What they show.
    y : (n,) int64 array
        Classes, as numbers.
    classes : tuple of str
        Names.
    extra : (m, S', S', 3) uint8 array and (m,) int64 array
        Cells that are only trained on, and a weight of each in `extra_weight`.
    """

    split: Split
    crops: npt.NDArray[np.uint8] = field(repr=False)
    stored: CropSize
    y: npt.NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]
    extra: npt.NDArray[np.uint8] = field(repr=False)
    extra_y: npt.NDArray[np.int64] = field(repr=False)
    extra_weight: npt.NDArray[np.float64] = field(repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Parameters
    ----------
    folder : pathlib.Path
        Of the run.
    card : ModelCard
        Of the model, which lies in it.
    history : pandas.DataFrame
        A row an epoch, columns `HISTORY`.
    stopped : str
        Why training ended before its time; empty if it did not.
    """

    folder: Path
    card: ModelCard
    history: pd.DataFrame
    stopped: str = ""


def prepare(
    data: str | Path | Dataset,
    recipe: Recipe,
    *,
    split: str | None = None,
    split_file: str | Path | None = None,
    val: float = 0.2,
    test: float = 0.0,
    mpp: float | None = None,
    cache: Path | None = None,
    report: Report | None = None,
) -> Prepared:
    """Read, check, split and cut the cells.

    Parameters
    ----------
    data : path or Dataset
        `napari_wbc.dataset.read_dataset`.
    recipe : Recipe
        What is trained.
    split, split_file, val, test : see `napari_wbc.split.make_split`
    mpp : float, optional
        Micrometres per pixel of the pictures.
    cache : pathlib.Path, optional
        Folder to keep the crops in.
    report : callable, optional
        Told how far it is.

    Raises
    ------
    DatasetError
        If there is nothing to train on.
    """
    dataset = data if isinstance(data, Dataset) else read_dataset(data)
    if recipe.classes:
        dataset = dataset.mapped(recipe.classes)
    if recipe.scale < 1:
        dataset = _share_of(dataset, recipe)
    said: Callable[[str], Callable[[int, int], None] | None] = lambda what: (  # noqa: E731
        (lambda done, total: report(what, done, total)) if report else None
    )
    found = check(dataset, said("checking pictures"))
    parts = make_split(found, kind=split, val=val, test=test, seed=recipe.seed, file=split_file)  # type: ignore[arg-type]
    size, stored = recipe.size, _stored(recipe)
    crops = cut_cells(
        found.dataset, size, cache / "crops.npy" if cache else None, stored=stored, mpp=mpp,
        progress=said("cutting cells"),
    )  # fmt: skip
    classes = tuple(recipe.prior) if recipe.prior and set(recipe.prior) >= set(found.dataset.classes) else ()
    classes = classes or found.dataset.classes
    number = {name: k for k, name in enumerate(classes)}
    y = np.asarray(found.dataset.table["class"].map(number), np.int64)
    notes = list(parts.notes)
    if found.dataset.problems:
        notes.append(f"{len(found.dataset.problems)} pictures are left out; see problems.csv")
    extra, extra_y, weight, told = _further(recipe, data, number, size, stored, cache, said)
    return Prepared(parts, crops, stored, y, classes, extra, extra_y, weight, (*notes, *told))


def _share_of(dataset: Dataset, recipe: Recipe) -> Dataset:
    """A share of the cells of each class, eight a class at least."""
    rng = np.random.default_rng(recipe.seed)
    rows: list[int] = []
    for index in dataset.table.groupby(["class", "split"]).groups.values():
        n = min(len(index), max(8, math.ceil(len(index) * recipe.scale)))
        rows += sorted(rng.choice(np.asarray(index), n, replace=False).tolist())
    return Dataset(dataset.name, dataset.table.loc[sorted(rows)].reset_index(drop=True), dataset.problems)


def _stored(recipe: Recipe) -> CropSize:
    """What training keeps of each cell."""
    margin = MARGIN if recipe.fit == "scale" and recipe.turn else 1.0
    pixels = round(recipe.pixels * margin)
    return CropSize(recipe.side_um * margin, pixels, recipe.size.cells)


def _further(
    recipe: Recipe,
    data: str | Path | Dataset,
    number: Mapping[str, int],
    size: CropSize,
    stored: CropSize,
    cache: Path | None,
    said: Callable[[str], Callable[[int, int], None] | None],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.float64], list[str]]:
    """Cells of the recipe's further sets; their shares are of all cells that are drawn."""
    from .dataset import read_table
    from .recipe import RECIPES

    crops = [np.empty((0, stored.pixels, stored.pixels, 3), np.uint8)]
    y, weights, notes = [np.empty(0, np.int64)], [np.empty(0)], []
    for entry in recipe.also:
        root = None if isinstance(data, Dataset) else Path(data).resolve().parent / str(entry["name"])
        if root is None or not root.is_dir():
            notes.append(f"{entry['name']} is not beside the data: trained without it")
            continue
        more = read_table(RECIPES / str(entry["labels"]), root)
        more = Dataset(more.name, more.table[more.table["class"].isin(list(number))].reset_index(drop=True))
        cut = cut_cells(
            more, size, cache / f"{entry['name']}.npy" if cache else None, stored=stored,
            progress=said(f"cutting cells of {entry['name']}"),
        )  # fmt: skip
        labels = np.asarray(more.table["class"].map(dict(number)), np.int64)
        power = np.bincount(labels, minlength=len(number))[labels].astype(float) ** -recipe.balance_power
        crops.append(np.asarray(cut))
        y.append(labels)
        weights.append(float(entry["share"]) * power / power.sum())
        notes.append(f"{len(labels)} cells of {entry['name']} are trained on, too")
    return np.concatenate(crops), np.concatenate(y), np.concatenate(weights), notes


class _Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """Disturbed batches of one epoch, the same whenever that epoch is run."""

    def __init__(self, ready: Prepared, recipe: Recipe, epoch: int = 0, rank: int = 0, world: int = 1) -> None:
        self.ready, self.recipe, self.epoch, self.rank, self.world = ready, recipe, epoch, rank, world
        self.rows = ready.split.rows("train")
        if recipe.copies:
            self.rows = _repeated(self.rows, ready.y, recipe)
        n = recipe.per_epoch or len(self.rows) + len(ready.extra)
        self.n = max(1, math.ceil(n * (recipe.scale if recipe.per_epoch else 1)))

    def __len__(self) -> int:
        return max(1, self.n // self.recipe.batch_size // self.world)

    def order(self) -> npt.NDArray[np.int64]:
        """Numbers of the cells of the epoch; those from the number of crops on are further cells."""
        ready, recipe = self.ready, self.recipe
        rng = np.random.default_rng((recipe.seed, self.epoch))
        everything = np.r_[self.rows, np.arange(len(ready.extra)) + len(ready.crops)]
        if recipe.balance != "sampling" and not recipe.per_epoch:
            order = rng.permutation(everything)
        else:
            y = ready.y[self.rows]
            power = recipe.balance_power if recipe.balance == "sampling" else 0.0
            weight = np.bincount(y, minlength=len(ready.classes))[y].astype(float) ** -power
            weight *= (1 - ready.extra_weight.sum()) / weight.sum()
            order = rng.choice(everything, self.n, p=np.r_[weight, ready.extra_weight])
        size = min(recipe.batch_size, len(order))
        return order[: max(1, len(order) // size) * size].reshape(-1, size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            torch.set_num_threads(1)
        ready, recipe, n = self.ready, self.recipe, len(self.ready.crops)
        size = CropSize(recipe.side_um, recipe.pixels, recipe.size.cells)
        from itertools import islice

        # Each process of a distributed run takes its batches, each of its workers some of them.
        step, first = (worker.num_workers, worker.id) if worker else (1, 0)
        step, first = step * self.world, first * self.world + self.rank
        for k, rows in enumerate(islice(self.order(), first, None, step)):
            seed = hash((recipe.seed, self.epoch, first + k * step)) % 2**31
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                np.random.seed(seed)  # noqa: NPY002 - the state that the disturbances use
                own = rows < n
                crops = np.empty((len(rows), *ready.crops.shape[1:]), np.uint8)
                crops[own] = ready.crops[np.sort(rows[own])][np.argsort(np.argsort(rows[own]))]
                crops[~own] = ready.extra[rows[~own] - n]
                y = np.where(own, ready.y[np.where(own, rows, 0)], 0)
                y[~own] = ready.extra_y[rows[~own] - n]
                x = turn(torch.from_numpy(crops), ready.stored, size, **_turning(recipe, y, ready.classes))
                x = disturb(x, recipe.augmentation, recipe.preprocessing, size)
            yield x.contiguous(memory_format=torch.channels_last), torch.from_numpy(y)


def _turning(recipe: Recipe, y: npt.NDArray[np.int64], classes: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of `turn` for cells of these classes."""
    if not recipe.turn:
        return {"rotate": False, "flip": False}
    told = dict(recipe.turn)
    radius, share = told.pop("radius_um", None), told.pop("reactive", {})
    if radius:
        told["radius_um"] = torch.tensor([float(radius.get(name, 0)) for name in classes])[torch.from_numpy(y)]
        chance = torch.tensor([float(share.get(name, 0)) for name in classes])[torch.from_numpy(y)]
        told["reactive"] = torch.rand(len(y)) < chance
    return told


def _repeated(rows: npt.NDArray[np.int64], y: npt.NDArray[np.int64], recipe: Recipe) -> npt.NDArray[np.int64]:
    """Each class's training cells over and over, as many as the recipe says; epochs disturb each anew."""
    copies = max(1, round(recipe.copies * recipe.scale))
    return np.concatenate([np.resize(rows[y[rows] == k], copies) for k in np.unique(y[rows])])


def _module(recipe: Recipe, weight: Tensor | None, network: nn.Module) -> pl.LightningModule:
    """The network with loss and optimiser, for Lightning."""
    import lightning as pl

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network.to(memory_format=torch.channels_last)
            self.frozen = _freeze(network, recipe)
            self.weight = weight
            self.seen = np.zeros(3)
            self.told: list[tuple[Tensor, Tensor]] = []

        def on_train_batch_start(self, _: Any, k: int) -> None:
            if k == 0:  # dropout of an epoch is the same whether it comes first after a start or not
                torch.manual_seed(recipe.seed * 100_003 + self.current_epoch)

        def on_train_epoch_start(self) -> None:
            self.network.train()
            for part in self.frozen:
                part.eval()
            self.seen = np.zeros(3)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            x, y = batch
            logits = self.network(x)
            weight = self.weight.to(logits) if self.weight is not None else None
            loss = functional.cross_entropy(logits, y, weight, label_smoothing=recipe.label_smoothing)
            self.seen += [len(y) * loss.item(), float((logits.argmax(1) == y).sum()), len(y)]
            if not torch.isfinite(loss):
                raise _NotFiniteError
            return loss

        def on_validation_epoch_start(self) -> None:
            self.told = []

        def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
            x, y = batch
            self.told.append((self.network(x).float(), y))

        def on_validation_epoch_end(self) -> None:
            from sklearn.metrics import f1_score

            logits, y = (torch.cat(parts).cpu() for parts in zip(*self.told, strict=True))
            guess = logits.argmax(1)
            self.result = {
                "val_loss": float(functional.cross_entropy(logits, y)),
                "val_accuracy": float((guess == y).float().mean()),
                "val_macro_f1": float(f1_score(y, guess, average="macro", zero_division=0)),
            }
            self.log("val_macro_f1", self.result["val_macro_f1"])

        def configure_optimizers(self) -> Any:
            return _optimiser(recipe, self.network, int(self.trainer.estimated_stepping_batches))

    return Module()


class _NotFiniteError(Exception):
    """The loss is no number."""


def _freeze(network: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """Freeze what the recipe says; returns the modules that stay in evaluation mode."""
    from .models._networks import blocks

    parts = blocks(network.features)  # type: ignore[arg-type]
    fixed = [] if recipe.free < 0 else parts[: max(0, len(parts) - recipe.free)]
    for part in fixed:
        part.requires_grad_(False)
    if recipe.batch_norm == "frozen":
        fixed += [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    return fixed


def _optimiser(recipe: Recipe, network: nn.Module, steps: int) -> Any:
    head = list(network.classifier.parameters())  # type: ignore[union-attr]
    body = [p for p in network.features.parameters() if p.requires_grad]  # type: ignore[union-attr]
    groups = [{"params": body, "lr": recipe.lr}, {"params": head, "lr": recipe.head_lr or recipe.lr}]
    groups = [group for group in groups if group["params"]]
    kinds: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adam": lambda: torch.optim.Adam(groups, weight_decay=recipe.weight_decay),
        "adamw": lambda: torch.optim.AdamW(groups, weight_decay=recipe.weight_decay),
        "sgd": lambda: torch.optim.SGD(groups, momentum=0.9, weight_decay=recipe.weight_decay),
    }
    optimiser = kinds[recipe.optimiser]()

    def factor(k: int) -> float:
        rise = min(1.0, (k + 1) / recipe.warmup) if recipe.warmup else 1.0
        if recipe.schedule == "cosine":
            return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, k / max(1, steps)))))
        if recipe.schedule == "linear":  # full for the first 70 %, then straight down
            return min(rise, max(0.02, (steps - k) / (0.3 * max(1, steps))))
        return rise

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _network(recipe: Recipe, n_classes: int) -> nn.Module:
    """The network at its start."""
    head: dict[str, Any] = {"hidden": recipe.hidden, "dropout": recipe.dropout}
    if recipe.start in ("imagenet", "random"):
        network = build(recipe.network, n_classes, start=recipe.start, **head)
    else:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(recipe.start)
        except (SafetensorError, OSError, ValueError) as error:
            raise TrainingError(f"{recipe.start}: not a safetensors file of weights ({error})") from error
        network = build(recipe.network, n_classes, **head)
        own = network.state_dict()
        fitting = {k: v.float() for k, v in state.items() if k in own and v.shape == own[k].shape}
        if not any(k.startswith("features") for k in fitting):
            raise TrainingError(f"{recipe.start}: no weights of {recipe.network} in it")
        network.load_state_dict(fitting, strict=False)
    if recipe.batch_norm == "folded":
        from .models import fold_batch_norm

        network = fold_batch_norm(network)
    return network


def train(
    data: str | Path | Dataset,
    recipe: Recipe,
    folder: str | Path,
    *,
    name: str | None = None,
    split: str | None = None,
    split_file: str | Path | None = None,
    val: float = 0.2,
    test: float = 0.0,
    mpp: float | None = None,
    device: str | None = None,
    devices: int = 1,
    nodes: int = 1,
    precision: str = "auto",
    report: Report | None = None,
    install: bool = True,
) -> Trained:
    """Train a network, or go on with a run that was interrupted.

    Parameters
    ----------
    data : path or Dataset
        Labelled cells (`napari_wbc.dataset.read_dataset`).
    recipe : Recipe
        What to do.
    folder : path
        Of the run. It gets ``settings.json`` (every setting), ``split.csv``, ``problems.csv``, ``history.csv``,
        ``curves.png``, ``environment.json`` and the model: card and weights. If it holds a run of the same settings
        that was interrupted, that run goes on and gives the same history as if it had not been.
    name : str, optional
        Of the model; the folder's if not given.
    split, split_file, val, test : see `napari_wbc.split.make_split`
    mpp : float, optional
        Micrometres per pixel of the pictures.
    device : str, optional
        ``cpu``, ``cuda`` or ``mps``; the fastest if not given.
    devices, nodes : int
        Devices on each of so many machines (Lightning's distributed data parallel training).
    precision : str
        ``32``, ``bf16``, ``16``, or ``auto``: bf16 on CUDA, else 32 bits.
    report : callable, optional
        Told how far it is.
    install : bool
        Whether the model joins the list of models (`napari_wbc.models.available_models`).

    Returns
    -------
    Trained

    Raises
    ------
    DatasetError, TrainingError, ValueError
        If there is nothing to learn from, training went wrong, or the recipe is not possible.
    """
    folder = Path(folder)
    if not isinstance(data, Dataset):
        read_dataset(data)  # what is wrong with the data is said before anything else
    settings = json.loads(
        json.dumps(
            {
                "recipe": recipe.to_dict(), "data": data.name if isinstance(data, Dataset) else str(data),
                "split": split, "split_file": split_file and str(split_file), "val": val, "test": test, "mpp": mpp,
            }
        )
    )  # fmt: skip
    _check_folder(folder, settings)
    name = _model_name(name, folder, install=install)
    _check_start(recipe, device, precision)
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / "settings.json") as fresh:
        fresh.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    ready = prepare(
        data, recipe, split=split, split_file=split_file, val=val, test=test, mpp=mpp, cache=folder / "cache",
        report=report,
    )  # fmt: skip
    if recipe.prior_strength and (unknown := set(ready.classes) - set(recipe.prior)):
        raise DatasetError(f"the recipe's prior has no share for {', '.join(sorted(unknown))}")
    _keep(folder, ready)
    torch.manual_seed(recipe.seed)
    network = _network(recipe, len(ready.classes))
    weight = None
    if recipe.balance == "loss":
        n = np.bincount(ready.y[ready.split.rows("train")], minlength=len(ready.classes)).clip(1).astype(float)
        weight = torch.tensor(n**-recipe.balance_power / np.mean(n**-recipe.balance_power), dtype=torch.float32)
    module = _module(recipe, weight, network)
    follower = _fit(folder, recipe, ready, module, device, devices, nodes, precision, report)
    if not follower.first:
        raise SystemExit(0)  # of a distributed run, the first process finishes
    history = pd.DataFrame(follower.rows, columns=HISTORY)
    if "best" not in follower.states:
        raise TrainingError(
            f"the loss was no number in the first epoch: nothing was learnt and nothing is kept. The learning rate "
            f"{recipe.lr:g} may be too high"
        )
    card = _card(name, recipe, ready, history)
    state = follower.states["average" if recipe.average != "none" else recipe.keep]
    if not all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point()):
        state = follower.states["best"]
    card = _finish(folder, card, recipe, ready, state, device, mpp)
    draw_curves(history, folder / "curves.png")
    if install:
        install_model(folder / f"{card.name}.json")
    del ready  # Windows does not remove files that are mapped into memory
    shutil.rmtree(folder / "cache", ignore_errors=True)
    with suppress(OSError):
        (folder / "last.ckpt").unlink()
    return Trained(folder, card, history, follower.stopped)


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """A folder may be new, empty, or hold a run of these settings."""
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder}: a file stands where the folder of the run is needed; choose another")
    if not folder.exists() or not any(p.name not in DEBRIS for p in folder.iterdir()):
        return
    kept = folder / "settings.json"
    if not kept.is_file():
        raise TrainingError(f"{folder}: holds other files; choose a new folder for the run")
    if json.loads(kept.read_text(encoding="utf-8")) != settings:
        raise TrainingError(f"{folder}: holds a run with other settings; choose a new folder, or delete it")
    if (
        not (folder / "last.ckpt").is_file()
        and (folder / "history.csv").is_file()
        and list(folder.glob("*.safetensors"))
    ):
        raise TrainingError(f"{folder}: this run is finished; choose a new folder to train again")


def _model_name(name: str | None, folder: Path, *, install: bool) -> str:
    """A name that is a file's and nobody else's."""
    from .atomic import safe_name
    from .models import available_models, user_models

    wanted = name or folder.resolve().name
    if safe_name(wanted) != wanted or wanted in ("settings", "environment"):  # files of the run
        raise ValueError(f"{wanted!r} is no name for a model; give another with --name")
    there = available_models().get(wanted) if install else None
    if there is not None and there.parent != user_models():
        raise ValueError(f"{wanted!r} is the name of a model that comes with the package; give another with --name")
    if there is not None:
        raise ValueError(f"there is a model {wanted!r} in {there.parent}; delete it, or give another name with --name")
    return wanted


def _check_start(recipe: Recipe, device: str | None, precision: str) -> None:
    """What would fail after minutes of preparing fails now."""
    import lightning  # noqa: F401 - missing without the extra

    _precision(precision, device or "cpu")
    if (device == "cuda" and not torch.cuda.is_available()) or (
        device == "mps" and not torch.backends.mps.is_available()
    ):
        raise ValueError(f"device {device}: cannot be used here; leave --device out")
    _network(recipe, 2)


def _keep(folder: Path, ready: Prepared) -> None:
    """What a run starts from; a run that goes on must start from the same."""
    from .record import versions

    facts = versions() | {"torch threads": str(torch.get_num_threads()), "cuda": str(torch.version.cuda)}
    if (folder / "last.ckpt").is_file() and (folder / "split.csv").is_file():
        kept = (folder / "split.csv").read_bytes().replace(b"\r\n", b"\n")
        if kept != ready.split.table().to_csv(index=False).encode():
            raise TrainingError(
                f"{folder}: the data changed since this run began, and cells would move between training and "
                "validation; choose a new folder"
            )
    with new_file(folder / "environment.json") as fresh:
        fresh.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for file, table in (
        ("split.csv", ready.split.table()),
        ("problems.csv", pd.DataFrame(ready.split.dataset.problems, columns=["file", "problem"])),
    ):
        with new_file(folder / file) as fresh:
            table.to_csv(fresh, index=False)


@dataclass
class _Follower:
    """History and the weights worth keeping; both travel in the checkpoint, so that a run can go on."""

    folder: Path
    recipe: Recipe
    report: Report | None
    rows: list[list[float]] = field(default_factory=list)
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    best: float = -1.0
    waiting: int = 0
    steps: int = 0
    start: float = 0.0
    stopped: str = ""
    first: bool = True

    def average(self, network: nn.Module) -> None:
        """Take this step's weights into the mean."""
        state = network.state_dict()
        self.steps += 1
        if "average" not in self.states:
            self.states["average"] = {name: value.detach().clone() for name, value in state.items()}
            return
        # Late: weights of the third power of the step, so that about the last third of the run counts.
        keep = (
            (1 + self.steps) / (4 + self.steps)
            if self.recipe.average == "late"
            else min(0.999, self.steps / (self.steps + 9))
        )
        for name in state:
            value = self.states["average"][name] = self.states["average"][name].to(state[name].device)
            if value.is_floating_point():
                value.mul_(keep).add_(state[name].detach(), alpha=1 - keep)
            else:
                value.copy_(state[name])

    def end_epoch(self, module: Any, epoch: int) -> bool:
        """Write the history; whether training may stop early."""
        loss, right, n = module.seen
        result = module.result
        rate = module.trainer.optimizers[0].param_groups[0]["lr"]
        row = [epoch + 1, loss / n, right / n, *result.values(), rate, round(time.perf_counter() - self.start, 2)]
        self.rows.append([float(v) for v in row])
        state = {name: value.detach().cpu().clone() for name, value in module.network.state_dict().items()}
        self.states["last"] = state
        if result["val_macro_f1"] > self.best:
            self.best, self.waiting, self.states["best"] = result["val_macro_f1"], 0, state
        else:
            self.waiting += 1
        if module.trainer.is_global_zero:
            with new_file(self.folder / "history.csv") as fresh:
                pd.DataFrame(self.rows, columns=HISTORY).to_csv(fresh, index=False)
        return bool(self.recipe.patience and self.waiting >= self.recipe.patience)


def _fit(
    folder: Path,
    recipe: Recipe,
    ready: Prepared,
    module: pl.LightningModule,
    device: str | None,
    devices: int,
    nodes: int,
    precision: str,
    report: Report | None,
) -> _Follower:
    import logging
    import sys
    import warnings

    import lightning as pl

    from .classifier import best_device

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = device or best_device()
    follower = _Follower(folder, recipe, report)
    total = recipe.scaled_epochs * len(_Batches(ready, recipe))
    # Where processes are not forked, the crops would be copied into the worker.
    workers = 1 if sys.platform == "linux" else 0
    fork: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}

    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> Any:  # anew each epoch, so that its number is right after a restart, too
            batches = _Batches(ready, recipe, len(follower.rows), self.trainer.global_rank, self.trainer.world_size)
            return DataLoader(batches, batch_size=None, **fork)

        def val_dataloader(self) -> Any:
            return DataLoader(_Validation(ready, recipe), batch_size=None)

    class Follow(pl.Callback):  # type: ignore[misc]
        def setup(self, trainer: Any, *_: Any, **__: Any) -> None:
            follower.first = trainer.is_global_zero

        def on_train_epoch_start(self, *_: Any) -> None:
            follower.start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if recipe.average != "none":
                follower.average(module.network)
            if report is not None:
                report(
                    f"epoch {trainer.current_epoch + 1} of {recipe.scaled_epochs}",
                    trainer.global_step, total,
                )  # fmt: skip

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if follower.end_epoch(module, trainer.current_epoch):
                follower.stopped = f"no progress on validation for {recipe.patience} epochs"
                trainer.should_stop = True
            # Written beside and renamed: a kill in between leaves the epoch before.
            trainer.save_checkpoint(folder / "next.ckpt")
            if trainer.is_global_zero:
                (folder / "next.ckpt").replace(folder / "last.ckpt")

        def on_save_checkpoint(self, _trainer: Any, _module: Any, checkpoint: dict[str, Any]) -> None:
            names = ("rows", "states", "best", "waiting", "steps")
            checkpoint["follower"] = {name: getattr(follower, name) for name in names}

        def on_load_checkpoint(self, _trainer: Any, _module: Any, checkpoint: dict[str, Any]) -> None:
            for name, value in checkpoint["follower"].items():
                setattr(follower, name, value)

    trainer = pl.Trainer(
        max_epochs=recipe.scaled_epochs, accelerator={"cuda": "gpu"}.get(device, device), devices=devices,
        num_nodes=nodes, precision=_precision(precision, device), gradient_clip_val=recipe.clip or None, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Follow()],
        num_sanity_val_steps=0, reload_dataloaders_every_n_epochs=1, use_distributed_sampler=False,
    )  # fmt: skip
    last = folder / "last.ckpt"
    interrupt = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer.fit(module, datamodule=Data(), ckpt_path=last if last.is_file() else None, weights_only=True)
        except SystemExit as error:
            # Lightning turns Ctrl-C into an exit and makes further ones void.
            with suppress(ValueError, TypeError):
                signal.signal(signal.SIGINT, interrupt)
            raise KeyboardInterrupt from error
        except _NotFiniteError:
            epoch = len(follower.rows)
            follower.stopped = f"the loss was no number in epoch {epoch + 1}; the weights of epoch {epoch} are kept"
        except RuntimeError as error:
            if "memory" not in str(error).lower():
                raise
            raise TrainingError(
                f"out of memory at batches of {recipe.batch_size}; what was done is kept: run the same command with a "
                "smaller --batch-size in a new folder, or free memory and run it again to go on"
            ) from error
        except OSError as error:
            raise TrainingError(
                f"{folder}: cannot be written ({error.strerror or error}); what was written before is kept. Free some "
                "space and run the same command to go on"
            ) from error
    return follower


def _precision(wanted: str, device: str) -> Any:
    if wanted == "auto":
        return "bf16-mixed" if device == "cuda" else "32-true"
    kinds = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    if wanted not in kinds:
        raise ValueError(f"precision is {wanted!r}, but must be auto, {', '.join(kinds)}")
    return kinds[wanted]


class _Validation(IterableDataset[tuple[Tensor, Tensor]]):
    """The cells of val, undisturbed, in the first of the recipe's views."""

    def __init__(self, ready: Prepared, recipe: Recipe, part: str = "val") -> None:
        self.ready, self.recipe, self.rows = ready, recipe, ready.split.rows(part)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.recipe.size
        for start in range(0, len(self.rows), 128):
            rows = self.rows[start : start + 128]
            crops = plain_crops(self.ready.crops[rows], self.ready.stored, size)
            steps = (*(self.recipe.views[0] if self.recipe.views else ()), *self.recipe.preprocessing)
            yield apply_steps(crops, steps, size), torch.from_numpy(self.ready.y[rows])


def plain_crops(crops: npt.NDArray[np.uint8], stored: CropSize, size: CropSize) -> Tensor:
    """The middle of stored crops as prediction cuts it: (n, 3, S, S) from 0 to 1."""
    x = torch.from_numpy(np.array(crops)).permute(0, 3, 1, 2).float() / 255
    side = size.side_um / stored.side_um * stored.pixels
    margin = round((stored.pixels - side) / 2)
    x = x[:, :, margin : stored.pixels - margin, margin : stored.pixels - margin]
    wanted = (size.pixels, size.pixels)
    return functional.interpolate(x, wanted, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _card(name: str, recipe: Recipe, ready: Prepared, history: pd.DataFrame) -> ModelCard:
    counts = pd.Series(ready.split.part).value_counts()
    head: dict[str, Any] = {"hidden": recipe.hidden, "dropout": recipe.dropout}
    if recipe.batch_norm == "folded":
        head["folded"] = True
    training = {
        "data": ready.split.dataset.name,
        "cells": {part: int(n) for part, n in counts.items()},
        "further cells": len(ready.extra),
        "split": ready.split.kind,
        "notes": list(ready.notes),
        "epochs": len(history),
        "recipe": {key: value for key, value in recipe.to_dict().items() if value not in ((), {}, "")},
    }
    if recipe.scale < 1:
        training["scaled"] = f"only {recipe.scale:g} of the data and epochs were run"
    return ModelCard(
        name, recipe.network, ready.classes, recipe.size, recipe.preprocessing, views=recipe.views, head=head,
        threshold=recipe.threshold,
        description=f"Trained on {ready.split.dataset.name}", training=training,
    )  # fmt: skip


def _finish(
    folder: Path,
    card: ModelCard,
    recipe: Recipe,
    ready: Prepared,
    state: Mapping[str, Tensor],
    device: str | None,
    mpp: float | None,
) -> ModelCard:
    """Add the prior, measure on val and test as prediction cuts and sees them, and write card and weights."""
    from dataclasses import replace

    from sklearn.metrics import accuracy_score, f1_score

    from .count import clopper_pearson

    state = {name: value.cpu() for name, value in state.items()}
    bias = [name for name in state if name.startswith("classifier.") and name.endswith(".bias")][-1]
    if recipe.prior_strength:
        prior = torch.tensor([math.log(recipe.prior[name]) for name in card.classes])
        state[bias] = state[bias] + recipe.prior_strength * prior
    path = folder / f"{card.name}.json"
    save_model(path, card, state)
    classifier = Classifier.load(path, device=device)
    results: list[dict[str, Any]] = []
    for part in ("val", "test"):
        rows = ready.split.rows(part)
        if not len(rows):
            continue
        held = Dataset(ready.split.dataset.name, ready.split.dataset.table.iloc[rows].reset_index(drop=True))
        guess, y = classifier.predict(cut_cells(held, card.crop, mpp=mpp)).argmax(1), ready.y[rows]
        low, high = clopper_pearson(int((guess == y).sum()), len(y))
        name = f"{ready.split.dataset.name}/{part}"
        scaled = {"scaled": recipe.scale} if recipe.scale < 1 else {}
        for what, value, limits in (
            ("accuracy", accuracy_score(y, guess), {"low": round(100 * low, 2), "high": round(100 * high, 2)}),
            ("macro-F1", f1_score(y, guess, average="macro", zero_division=0), {}),
        ):
            results.append(
                {"what": what, "data": name, "n": len(y), "value": round(100 * float(value), 2)} | limits | scaled
            )
    return save_model(path, replace(card, results=tuple(results)), state)


def install_model(card: Path) -> Path:
    """Copy a model into the list of models; returns its new card."""
    from .models import user_models

    target = user_models()
    target.mkdir(parents=True, exist_ok=True)
    for suffix in (".safetensors", ".json"):
        with new_file(target / card.with_suffix(suffix).name) as fresh:
            shutil.copyfile(card.with_suffix(suffix), fresh)
    return target / card.name


def draw_curves(history: pd.DataFrame, file: Path) -> None:
    """Loss and accuracy over the epochs, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, columns, title in (
        (left, ("loss", "val_loss"), "Loss"),
        (right, ("accuracy", "val_accuracy", "val_macro_f1"), "Right"),
    ):
        for column, style in zip(columns, ("-", "-", "--"), strict=False):
            label = {"loss": "training", "accuracy": "training", "val_macro_f1": "validation, macro-F1"}.get(
                column, "validation"
            )
            axes.plot(history["epoch"], history[column], style, label=label, marker="." if len(history) < 40 else None)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with new_file(file) as fresh:
        figure.savefig(fresh, format="png", dpi=130)

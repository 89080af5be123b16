"""The network with its loss and optimiser, and the loop that fits it: Lightning's."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from .atomic import new_file
from .batches import Batches, Validation
from .models import build
from .prepare import Prepared, Report
from .recipe import Recipe

if TYPE_CHECKING:
    import lightning as pl

HISTORY = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_macro_f1", "lr", "seconds"]


class TrainingError(RuntimeError):
    """Training could not go on; the message says why, what was kept and what to do."""


def lightning_module(recipe: Recipe, weight: Tensor | None, network: nn.Module) -> pl.LightningModule:
    """The network with loss and optimiser, for Lightning."""
    import lightning as pl

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network.to(memory_format=torch.channels_last)
            self.frozen = freeze(network, recipe)
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
                raise NotFiniteError
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
            return optimiser_of(recipe, self.network, int(self.trainer.estimated_stepping_batches))

    return Module()


class NothingLearntError(TrainingError):
    """The loss was no number in the first epoch."""


class NotFiniteError(Exception):
    """The loss is no number."""


def freeze(network: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """Freeze what the recipe says; returns the modules that stay in evaluation mode."""
    from .models._networks import blocks

    parts = blocks(network.features)  # type: ignore[arg-type]
    fixed = [] if recipe.free < 0 else parts[: max(0, len(parts) - recipe.free)]
    for part in fixed:
        part.requires_grad_(False)
    if recipe.batch_norm == "frozen":
        fixed += [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    return fixed


def optimiser_of(recipe: Recipe, network: nn.Module, steps: int) -> Any:
    """Optimiser and schedule of a run of so many steps, as Lightning takes them."""
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


def start_network(recipe: Recipe, n_classes: int) -> nn.Module:
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


@dataclass
class Follower:
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


def _batches_of(follower: Follower, ready: Prepared, device: str) -> pl.LightningDataModule:
    """The batches of each epoch, for Lightning."""
    import sys

    import lightning as pl

    recipe = follower.recipe
    # A worker beside a CPU's own training takes a processor from one of its threads, for which the others then wait.
    # Where processes are not forked, the crops would be copied into it.
    workers = 1 if device != "cpu" and sys.platform == "linux" else 0
    fork: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}

    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> Any:  # anew each epoch, so that its number is right after a restart, too
            batches = Batches(ready, recipe, len(follower.rows), self.trainer.global_rank, self.trainer.world_size)
            return DataLoader(batches, batch_size=None, **fork)

        def val_dataloader(self) -> Any:
            return DataLoader(Validation(ready, recipe), batch_size=None)

    return Data()


def _following(follower: Follower, steps: int) -> pl.Callback:
    """What happens after each of the steps of an epoch, and after each epoch."""
    import lightning as pl

    recipe, folder, report = follower.recipe, follower.folder, follower.report

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
                    trainer.global_step, recipe.scaled_epochs * steps,
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

    return Follow()


def fit(
    folder: Path,
    recipe: Recipe,
    ready: Prepared,
    module: pl.LightningModule,
    device: str | None,
    devices: int,
    nodes: int,
    precision: str,
    report: Report | None,
) -> Follower:
    """Fit the network, from the last checkpoint of the folder where there is one.

    Raises
    ------
    TrainingError
        If memory or the disk is full; the message says how to go on.
    KeyboardInterrupt
        After Ctrl-C.
    """
    import logging
    import warnings

    import lightning as pl

    from .classifier import best_device

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = device or best_device()
    follower = Follower(folder, recipe, report)
    trainer = pl.Trainer(
        max_epochs=recipe.scaled_epochs, accelerator={"cuda": "gpu"}.get(device, device), devices=devices,
        num_nodes=nodes, precision=trainer_precision(precision, device), gradient_clip_val=recipe.clip or None,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[_following(follower, len(Batches(ready, recipe)))], num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1, use_distributed_sampler=False,
    )  # fmt: skip
    last = folder / "last.ckpt"
    interrupt = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer.fit(
                module,
                datamodule=_batches_of(follower, ready, device),
                ckpt_path=last if last.is_file() else None,
                weights_only=True,
            )
        except SystemExit as error:
            # Lightning turns Ctrl-C into an exit and makes further ones void.
            with suppress(ValueError, TypeError):
                signal.signal(signal.SIGINT, interrupt)
            raise KeyboardInterrupt from error
        except NotFiniteError:
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


def trainer_precision(wanted: str, device: str) -> Any:
    """Lightning's name of a precision; ValueError for an unknown one."""
    if wanted == "auto":
        return "bf16-mixed" if device == "cuda" else "32-true"
    kinds = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    if wanted not in kinds:
        raise ValueError(f"precision is {wanted!r}, but must be auto, {', '.join(kinds)}")
    return kinds[wanted]

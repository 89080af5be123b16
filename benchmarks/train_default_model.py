"""Train the model that ships with the package.

    python benchmarks/train_default_model.py --data DATA --cache CACHE [--epochs N] [--threads N]

Data: pbc/train of DATA (Acevedo et al., Data in Brief 30:105474, 2020, CC BY 4.0), nothing else. Start:
DATA/weights/mobilenet_v2_imagenet.safetensors. The images are cut once into CACHE; the run writes
its last state there too and resumes from it. No test data are read, except pbc/val for the temperature.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.functional import gaussian_blur

from napari_wbc.classifier import Classifier, ModelCard, save_model
from napari_wbc.crop import CropSize, crop_cells
from napari_wbc.models import build, fold_batch_norm
from napari_wbc.preprocess import DARKEST, STEPS
from napari_wbc.slide import Slide

CLASSES = {
    "neutrophil": "neutrophil",
    "lymphocyte": "lymphocyte",
    "monocyte": "monocyte",
    "eosinophil": "eosinophil",
    "basophil": "basophil",
    "ig": "immature granulocyte",
    "erythroblast": "erythroblast",
    "platelet": "platelet",
}
PBC_MPP = 0.145  # red cells of 7.2 µm are 50 px wide in the images of 256 px
STORED = CropSize(38.4, 192)  # what is cut once; training turns, scales and cuts CROP out of it
CROP = CropSize(24.0, 96)
STEPS_OF_CARD: tuple[dict[str, Any], ...] = (
    {"step": "white_point", "share": 0.1},
    {"step": "dark_point", "density": 2.0, "low": 0.4, "high": 4.0},
    {"step": "window", "radius_um": 10.0, "softness_um": 0.6},
    {"step": "scale_to_unit"},
)
# Densities in R, G, B of azure B bound to DNA, of eosin, and of what is left, one a column; read off pbc/train.
DYES = torch.tensor([[0.48, 0.25, 0.3], [0.86, 0.80, -0.3], [0.16, 0.55, 0.9]])
TWO_CLASSES = ("EO_225902", "BNE_191112")  # one file under two names in two classes
EPOCHS = 10
BATCH = 64
# Training shows the classes in nearly equal measure; blood does not. Rounded shares in adult blood, and the part of
# their log odds that is added to the network's: all of it would hide the rare classes.
ADULT = {
    "neutrophil": 0.6,
    "lymphocyte": 0.3,
    "monocyte": 0.07,
    "eosinophil": 0.03,
    "basophil": 0.01,
    "ig": 0.01,
    "erythroblast": 0.01,
    "platelet": 0.01,
}
PRIOR_STRENGTH = 0.5
# Of the cells of bccd that are above it 87 % are right, of all 81 %; one in six is left to the eye.
THRESHOLD = 0.7


def cut_images(data: Path, split: str, cache: Path) -> tuple[npt.NDArray[np.uint8], pd.DataFrame]:
    """Crops of a split at one physical scale, cut once."""
    table = pd.read_csv(data / "pbc/labels.csv")
    table = table[(table.split == split) & ~table.file.str.contains("|".join(TWO_CLASSES))].reset_index(drop=True)
    file = cache / f"pbc_{split}.npy"
    if not file.exists():
        paths = [data / f"pbc/{split}/{row[2]}/{Path(str(row.file)).name}" for row in table.itertuples()]
        cache.mkdir(parents=True, exist_ok=True)
        with Pool() as pool:
            np.save(file, np.stack(pool.map(cut_image, paths, chunksize=32)))
    return np.load(file), table


def cut_image(path: Path) -> npt.NDArray[np.uint8]:
    image = Slide.open(path).image
    return crop_cells(image, (np.array([image.shape[:2]]) - 1) / 2, PBC_MPP, STORED)[0]


def uniform(n: int, low: float, high: float) -> Tensor:
    return torch.empty(n, 1, 1, 1).uniform_(low, high)


def turn_and_scale(crops: Tensor) -> Tensor:
    """Any rotation, mirrored or not, scale and position a little off, some cells cut by the picture's border."""
    n = len(crops)
    crops = crops.permute(0, 3, 1, 2).float() / 255
    angle, stretch = torch.rand(n) * 2 * math.pi, torch.exp(torch.randn(n) * 0.04)
    scale = torch.exp(torch.empty(n).uniform_(-0.2, 0.2)) * CROP.side_um / STORED.side_um
    mirror = (torch.rand(n) < 0.5).float() * 2 - 1
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = torch.randn(n, 2) * 0.05
    # A border: beyond a line near the cell there is background, and the crop is centred on what is left.
    cut, direction = torch.rand(n) < 0.08, torch.rand(n) * 2 * math.pi
    normal, distance = torch.stack([direction.cos(), direction.sin()], 1), torch.empty(n).uniform_(-1, 5.5)
    axis = (torch.arange(STORED.pixels) + 0.5) * STORED.side_um / STORED.pixels - STORED.side_um / 2
    position = normal[:, 0, None, None] * axis[None, None] + normal[:, 1, None, None] * axis[None, :, None]
    beyond = ((position > distance[:, None, None]) & cut[:, None, None])[:, None]
    background = crops.flatten(2)[:, :, ::7].quantile(0.85, dim=2)[:, :, None, None]
    crops = torch.where(beyond, background, crops)
    shift += torch.where(cut[:, None], normal * ((distance - 6.5) / STORED.side_um)[:, None], torch.zeros(n, 2))
    rows = [torch.stack([cos * stretch * mirror, -sin / stretch, shift[:, 0]], 1)]
    rows.append(torch.stack([sin * stretch * mirror, cos / stretch, shift[:, 1]], 1))
    grid = functional.affine_grid(torch.stack(rows, 1), [n, 3, CROP.pixels, CROP.pixels], align_corners=False)
    return functional.grid_sample(crops, grid, padding_mode="reflection", align_corners=False)


def spoil(crops: Tensor) -> Tensor:
    """What microscopes, cameras and files do: faint stain, flare, gamma, blur, coarse pixels, noise, JPEG."""
    n = len(crops)
    crops = crops.clamp_min(DARKEST).pow(torch.exp(uniform(n, -1.0, 0.1)))
    crops = crops.pow(torch.exp(torch.randn(n, 1, 1, 1) * 0.15))
    flare = uniform(n, 0, 0.12) * (torch.rand(n, 1, 1, 1) < 0.5)
    crops = crops * (1 - flare) + flare
    for factor in (0.4, 0.6):
        some = torch.rand(n) < 0.1
        if some.any():
            small = functional.interpolate(crops[some], scale_factor=factor, mode="bilinear", antialias=True)
            crops[some] = functional.interpolate(small, size=crops.shape[2:], mode="bicubic").clamp(0, 1)
    amount = torch.rand(n)
    for low, high, sigma in ((0, 0.2, 0.5), (0.2, 0.35, 0.9), (0.35, 0.45, 1.4)):
        some = (amount >= low) & (amount < high)
        if some.any():
            width = sigma * float(np.random.uniform(0.7, 1.3))
            crops[some] = gaussian_blur(crops[some], [2 * int(2 * width + 0.5) + 1] * 2, [width, width])
    some = torch.rand(n) < 0.3
    crops[some] += torch.randn_like(crops[some]) * uniform(int(some.sum()), 0, 0.04)
    crops = crops.clamp(0, 1)
    for k in (torch.rand(n) < 0.2).nonzero()[:, 0].tolist():
        encoded = encode_jpeg((crops[k] * 255).to(torch.uint8), int(np.random.randint(30, 90)))
        crops[k] = decode_jpeg(encoded).float() / 255
    return crops


def restain(crops: Tensor) -> Tensor:
    """Other dyes and sensors, in optical density.

    The tone curve of each channel; the share of eosin; gains and mixing of channels, with a blue channel that
    may be nearly blind and a red one that may be faint; grey; shading; a veil over all.
    """
    n = len(crops)
    density = -crops.clamp_min(1e-7).log()
    dark = torch.tensor([1.2, 2.0, 0.45])[None, :, None, None]
    power = torch.exp(torch.randn(n, 1, 1, 1) * 0.15 + torch.randn(n, 3, 1, 1) * 0.15)
    density = dark * (density.clamp_min(1e-4) / dark) ** power
    gains = torch.eye(3) * torch.exp(torch.randn(n, 3, 1) * 0.15) * torch.exp(torch.randn(n, 1, 1) * 0.15)
    gains[:, 2] *= torch.where(torch.rand(n, 1) < 0.5, torch.rand(n, 1) * 1.3, torch.ones(n, 1))
    gains[:, 0] *= torch.exp(torch.randn(n, 1) * 0.25)
    gains = gains + torch.randn(n, 3, 3) * 0.05
    grey = torch.rand(n) < 0.03
    gains[grey] = gains[grey].mean(1, keepdim=True).expand(-1, 3, -1)
    dyes = torch.diag_embed(torch.stack([torch.ones(n), torch.exp(torch.randn(n) * 0.35), torch.ones(n)], 1))
    gains = gains @ (DYES @ dyes @ torch.linalg.inv(DYES))
    density = torch.einsum("nij,njhw->nihw", gains, density)
    shade = functional.interpolate(
        torch.randn(n, 3, 3, 3) * 0.5 + torch.randn(n, 1, 3, 3),
        size=crops.shape[2:],
        mode="bicubic",
        align_corners=True,
    )
    shade = shade * 0.1 * uniform(n, 0, 1)
    veil = torch.rand(n, 3, 1, 1) * 0.15 * uniform(n, 0, 1) * (torch.rand(n, 1, 1, 1) < 0.5)
    return (-(density + shade - shade.amin((2, 3), keepdim=True) + veil).clamp_min(0)).exp()


def surround(crops: Tensor) -> Tensor:
    """Put half of the cells into the surroundings of others, fainter or stronger, or into none."""
    n = len(crops)
    axis = (torch.arange(CROP.pixels) + 0.5 - CROP.pixels / 2) * CROP.side_um / CROP.pixels
    away = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    own = torch.sigmoid((uniform(n, 6.5, 10) - away) / 0.5)
    own = torch.where(torch.rand(n, 1, 1, 1) < 0.5, own, torch.ones(1))
    strength = torch.exp(torch.randn(n, 1, 1, 1) * 0.5) * (torch.rand(n, 1, 1, 1) < 0.8)
    # Densities add; weights are powers.
    return crops.clamp_min(1e-7) ** own * crops[torch.randperm(n)].clamp_min(1e-7) ** (strength * (1 - own))


def training_input(crops: Tensor) -> Tensor:
    """The steps of the card, with the disturbances where they happen in the world."""
    crops = spoil(turn_and_scale(crops))
    for step in STEPS_OF_CARD:
        parameters = {key: value for key, value in step.items() if key != "step"}
        crops = STEPS[step["step"]](crops, CROP, **parameters)
        if step["step"] == "dark_point":
            crops = surround(restain(crops))
    return crops.to(memory_format=torch.channels_last)


class Trainer:
    """MobileNetV2 whose batch norms are folded into their convolutions (the start has them folded already)."""

    def __init__(self, start: Path, steps: int) -> None:
        network = build("mobilenet_v2", len(CLASSES))
        state = {k: v.float() for k, v in load_file(start).items() if not k.startswith("classifier")}
        network.load_state_dict(state, strict=False)
        self.network = fold_batch_norm(network).to(memory_format=torch.channels_last)
        self.average = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.frozen = 3  # edges and colours learnt from a million photographs serve every stain
        groups = [
            {"params": self.network.features[self.frozen :].parameters(), "lr": 5e-4},
            {"params": self.network.classifier.parameters(), "lr": 2e-3},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.02)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda k: min(1.0, (k + 1) / 50, max(0.02, (steps - k) / (0.3 * steps)))
        )
        self.done = 0

    def step(self, x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            x = self.network.features[: self.frozen](x)
        features = self.network.features[self.frozen :](x).mean((2, 3))
        logits = self.network.classifier[1](functional.dropout(features, 0.3))
        loss = functional.cross_entropy(logits, y, label_smoothing=0.05)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5)
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        # About the last third of the way: results on other laboratories swing from epoch to epoch, the mean does not.
        decay = (1 + self.done) / (4 + self.done)
        for name, value in self.network.state_dict().items():
            self.average[name].mul_(decay).add_(value, alpha=1 - decay)
        return loss.item()

    def save(self, path: Path, epoch: int) -> None:
        parts = (self.network, self.optimizer, self.schedule)
        torch.save(
            {"epoch": epoch, "done": self.done, "average": self.average, "parts": [p.state_dict() for p in parts]}, path
        )

    def load(self, path: Path) -> int:
        saved = torch.load(path, weights_only=True)
        for part, state in zip((self.network, self.optimizer, self.schedule), saved["parts"], strict=True):
            part.load_state_dict(state)
        self.average, self.done = saved["average"], saved["done"]
        return int(saved["epoch"])


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """Disturbed batches of an epoch; rare classes more often, but not as often as the common ones."""

    def __init__(self, crops: npt.NDArray[np.uint8], y: npt.NDArray[np.int64], n: int, seed: int) -> None:
        self.crops, self.y, self.n, self.seed = crops, y, n, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        torch.manual_seed(self.seed)
        np.random.seed(self.seed)
        weight = 1 / np.bincount(self.y)[self.y] ** 0.7
        chosen = np.random.choice(len(self.y), self.n // BATCH * BATCH, p=weight / weight.sum())
        for k in chosen.reshape(-1, BATCH):
            yield training_input(torch.from_numpy(self.crops[k])), torch.from_numpy(self.y[k])


def unfolded(average: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state under torchvision's names: convolutions without bias, batch norms that only add it."""
    state = build("mobilenet_v2", len(CLASSES)).state_dict()
    names = list(state)
    for k, name in enumerate(names):
        if name.endswith("running_var"):  # eps is taken off, so that folding gives back the very weights
            stem = name.removesuffix("running_var")
            convolution = names[k - 4].removesuffix("weight")
            state[stem + "weight"].fill_(1)
            state[stem + "running_mean"].fill_(0)
            state[name].fill_(1)
            state[stem + "bias"] = average[convolution + "bias"]
            state[convolution + "weight"] = average[convolution + "weight"]
    return state | {name: average[name] for name in ("classifier.1.weight", "classifier.1.bias")}


def temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature with the least cross-entropy."""
    values = torch.linspace(0.3, 4, 371)
    return float(values[torch.stack([functional.cross_entropy(logits / t, y) for t in values]).argmin()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "src/napari_wbc/models/wbc8-mobilenetv2"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--per-epoch", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    crops, table = cut_images(args.data, "train", args.cache)
    y = table["class"].map(list(CLASSES).index).to_numpy()
    trainer = Trainer(args.data / "weights/mobilenet_v2_imagenet.safetensors", args.epochs * (args.per_epoch // BATCH))
    checkpoint = args.cache / "last.pt"
    first = trainer.load(checkpoint) if checkpoint.exists() else 0
    for epoch in range(first, args.epochs):
        start = time.perf_counter()
        data = Batches(crops, y, args.per_epoch, args.seed + epoch)
        losses = [trainer.step(x, target) for x, target in DataLoader(data, batch_size=None, num_workers=1)]
        trainer.save(checkpoint, epoch + 1)
        print(
            f"epoch {epoch + 1}/{args.epochs} loss {np.mean(losses):.3f} {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    finish(args, trainer)


def finish(args: argparse.Namespace, trainer: Trainer) -> None:
    """Set the prior and the temperature, and write card and weights."""
    average = trainer.average
    average["classifier.1.bias"] += PRIOR_STRENGTH * torch.tensor([math.log(ADULT[name]) for name in CLASSES])
    training = {
        "data": "pbc/train: 12,815 images of 8 classes, CellaVision DM96, May Grünwald-Giemsa, Hospital Clinic of Barcelona "
        "(Acevedo et al., Data in Brief 30:105474, 2020, CC BY 4.0)",
        "start": "MobileNetV2 trained on ImageNet (google-coral/test_data, Apache-2.0)",
        "command": f"python benchmarks/train_default_model.py --data DATA --cache CACHE --epochs {args.epochs} "
        f"--per-epoch {args.per_epoch} --seed {args.seed}",
        "prior": f"{PRIOR_STRENGTH} of the log of these shares is added to the logits: {json.dumps(ADULT)}",
        "temperature": "least cross-entropy on pbc/val under the disturbances of training, but at least 1: other "
        "laboratories give no reason to be surer",
    }
    card = ModelCard(
        args.out.name, "mobilenet_v2", tuple(CLASSES.values()), CROP, STEPS_OF_CARD, threshold=THRESHOLD,
        description="White blood cells of peripheral blood smears, eight classes", licence="BSD-3-Clause; see NOTICE",
        training=training,
    )  # fmt: skip
    state = unfolded(average)
    save_model(args.out, card, state)
    classifier = Classifier.load(args.out.with_suffix(".json"), device="cpu")
    crops, table = cut_images(args.data, "val", args.cache)
    y = torch.from_numpy(table["class"].map(list(CLASSES).index).to_numpy(copy=True))
    with torch.inference_mode():
        x = [training_input(torch.from_numpy(crops[k : k + BATCH])) for k in range(0, len(y), BATCH)]
        logits = torch.cat([classifier.network(part) for part in x])
    card = ModelCard(**{**vars(card), "temperature": max(1.0, round(temperature(logits, y), 2))})
    save_model(args.out, card, state)
    print(
        f"accuracy on disturbed pbc/val {100 * (logits.argmax(1) == y).float().mean():.1f} %, temperature {card.temperature}"
    )


if __name__ == "__main__":
    main()

"""Print the speed of training as a share of the bare network's, taken in one run.

    python benchmarks/training.py [--cells N]

Bare: forward, backward and step of the same network on tensors that are ready. Ours: an epoch of `napari_wbc.train`
with its decoding, augmentation, history and checkpoint, but without the first reading of the pictures, on copies of
the test cells, by the recipes `wbc` and `wbc8`. Both in turns, and the fastest of each counts: other programs only ever
add to a time. The load says whether the machine was idle: more than the number of cores is not.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch.nn import functional

from napari_wbc.allocator import keep_blocks
from napari_wbc.dataset import Dataset
from napari_wbc.engine import optimiser_of, start_network
from napari_wbc.models import build
from napari_wbc.recipe import Recipe, load_recipe
from napari_wbc.train import train

CROPS = Path(__file__).parents[1] / "tests/data/crops"


def bare(recipe: Recipe, n: int) -> float:
    """Crops per second of the network alone."""
    network = start_network(recipe, 8).to(memory_format=torch.channels_last).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and recipe.batch_norm != "train":
            module.eval()
    blocks = list(network.features)
    for block in blocks[: len(blocks) - recipe.free] if recipe.free >= 0 else []:
        block.requires_grad_(False)
    optimiser = optimiser_of(recipe, network, 100)["optimizer"]
    size = recipe.batch_size
    x = torch.rand(size, 3, recipe.pixels, recipe.pixels).to(memory_format=torch.channels_last)
    y = torch.randint(8, (size,))

    def step() -> None:
        loss = functional.cross_entropy(network(x), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimiser.step()

    step()
    start = time.perf_counter()
    for _ in range(max(1, n // size)):
        step()
    return max(1, n // size) * size / (time.perf_counter() - start)


def ours(recipe: Recipe, n: int) -> float:
    """Crops per second of the second epoch of a run."""
    files = sorted(CROPS.glob("*/*.jpg"))
    rows = [
        {"file": str(f), "class": f.parent.name, "split": "val" if k % 3 == 0 else "train"} for k, f in enumerate(files)
    ]
    data = Dataset("cells", pd.DataFrame(rows))
    with tempfile.TemporaryDirectory() as folder:
        done = train(
            data, recipe.but(epochs=2, per_epoch=n, balance="sampling"), Path(folder) / "run", mpp=0.145, device="cpu",
            install=False,
        )  # fmt: skip
        return n // recipe.batch_size * recipe.batch_size / float(done.history["seconds"].iloc[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2560)
    args = parser.parse_args()
    keep_blocks()  # as training does: both shall have it
    start = Path(tempfile.mkdtemp()) / "start.safetensors"  # any weights will do
    save_file(build("mobilenet_v2", 8).state_dict(), start)
    for name in ("wbc", "wbc8"):
        recipe = load_recipe(name).but(start=str(start), classes={}, also=(), prior={}, prior_strength=0.0)
        alone, whole = np.max([(bare(recipe, args.cells), ours(recipe, args.cells)) for _ in range(3)], axis=0)
        print(
            f"{name}: {recipe.network}, {recipe.pixels} px: bare {alone:.0f} crops/s, training {whole:.0f} crops/s, "
            f"{100 * whole / alone:.0f} % (80 % or more wanted); load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()

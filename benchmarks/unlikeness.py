"""Compare scores of unlikeness: leukaemic cells of all_taleqani against the cells of bccd.

    python benchmarks/unlikeness.py --data DATA [--model MODEL] [--fields 90] [--cells 200]

The default model was trained without bccd. Where *half known* stands, half of the cells of bccd are among those that
the score knows, and the other half is tested; the mean of both ways is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.progress import track
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from napari_wbc.classifier import Classifier
from napari_wbc.crop import CropSize, crop_cells
from napari_wbc.dataset import read_dataset
from napari_wbc.dataset_pictures import cut_cells
from napari_wbc.models._networks import blocks
from napari_wbc.pipeline import analyse, crop_scale, run
from napari_wbc.preprocess import apply_steps
from napari_wbc.slide import Slide
from napari_wbc.strange import fit_regression, make_strange
from napari_wbc.unlikeness import Gauge

Array = npt.NDArray[np.float32]
Score = Callable[[list[Array]], npt.NDArray[Any]]
MARGIN = 1.7


class Looker:
    """Statistics of eight blocks, last features and logits of crops that are cut wide."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        parts = blocks(classifier.network.features)  # type: ignore[arg-type]
        chosen = sorted({round(k) for k in np.linspace(0, len(parts) - 1, 9)[1:]})
        self.gauges = [Gauge([parts[k]], torch.zeros(0), torch.zeros(())) for k in chosen]
        size = classifier.card.crop
        self.wide = CropSize(size.side_um * MARGIN, round(size.pixels * MARGIN))

    def __call__(self, crops: npt.NDArray[np.uint8], *, strange: bool = False) -> list[Array]:
        """One array (n, d) a block, then (n, c) features, then (n, k) logits; views are averaged."""
        card, found = self.classifier.card, []
        first = (self.wide.pixels - card.crop.pixels) // 2
        middle = slice(first, first + card.crop.pixels)
        for start in range(0, len(crops), 64):
            x = torch.from_numpy(np.array(crops[start : start + 64])).permute(0, 3, 1, 2).float() / 255
            x = make_strange(x, self.wide) if strange else x
            with torch.inference_mode():
                views = [
                    self._view(apply_steps(x[..., middle, middle].clone(), steps, card.crop)) for steps in card.ways
                ]
            found.append([np.mean(parts, axis=0) for parts in zip(*views, strict=True)])
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _view(self, x: torch.Tensor) -> list[Array]:
        from contextlib import ExitStack

        network = self.classifier.network
        with ExitStack() as stack:
            for gauge in self.gauges:
                stack.enter_context(gauge.watching())
            features = network.embed(x.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
        logits = network.classifier(features)  # type: ignore[operator]
        return [*(g.statistics().numpy() for g in self.gauges), features.numpy(), logits.numpy()]


def cells_of(files: list[Path], size: CropSize) -> npt.NDArray[np.uint8]:
    crops = []
    for file in track(files, "cutting"):
        found = run(analyse(Slide.open(file)))
        inside = ~found.cells.table["at_border"].to_numpy()
        if inside.any():
            mpp = crop_scale(found.appearance, found.cells)
            crops.append(crop_cells(found.slide.image, found.cells.centroids[inside], mpp, size))
    return np.concatenate(crops)


def unit(values: Array) -> Array:
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=str(Path(__file__).with_name("wbc8-without-bccd.json")))
    parser.add_argument("--fields", type=int, default=90, help="fields of each stage")
    parser.add_argument("--cells", type=int, default=200, help="cells of each class of pbc/train")
    args = parser.parse_args()
    look = Looker(Classifier.load(args.model, device="cpu"))
    torch.manual_seed(0)
    pbc = read_dataset(args.data / "pbc").of_split("train")
    rng = np.random.default_rng(0)
    groups = pbc.table.groupby("class").indices.values()
    rows = np.sort(np.concatenate([rng.choice(rows, min(args.cells, len(rows)), replace=False) for rows in groups]))
    pbc = pbc.rows(rows)
    wide = np.asarray(cut_cells(pbc, look.wide, mpp=0.145))
    table = pd.read_csv(args.data / "all_taleqani/labels.csv")
    stages = [table[table["class"] == name].sample(args.fields, random_state=0) for name in ("early", "pre", "pro")]
    fields = [args.data / "all_taleqani" / str(file) for file in pd.concat(stages)["file"]]
    single = pd.read_csv(args.data / "bccd/labels.csv").query("single")["image"]
    home, blasts = look(wide), look(cells_of(fields, look.wide))
    raw = cells_of([args.data / "bccd/images" / str(file) for file in single], look.wide)
    bccd, strange_home, strange_bccd = look(raw), look(wide, strange=True), look(raw, strange=True)
    halves = np.arange(len(bccd[0])) * 2 // len(bccd[0])
    y = pbc.table["class"].astype("category").cat.codes.to_numpy()

    def show(name: str, *ways: Score, tested: tuple[slice | npt.NDArray[np.bool_], ...] = (slice(None),)) -> None:
        told = []
        for rate, some in zip(ways, tested, strict=True):
            known, sent = rate(bccd)[some], rate(blasts)
            auc = roc_auc_score(np.repeat([0, 1], [len(known), len(sent)]), np.concatenate([known, sent]))
            told.append((auc, (sent > np.quantile(known, 0.95)).mean()))
        auc, share = np.mean(told, axis=0)
        print(f"| {name} | {auc:.2f} | {100 * share:.0f} % |", flush=True)

    def nearest(half: int | None = None) -> Score:
        reference = np.concatenate([home[-2], *([] if half is None else [bccd[-2][halves == half]])])
        return lambda seen: -(unit(seen[-2]) @ unit(reference).T).max(axis=1)

    def distance(seen: list[Array]) -> npt.NDArray[np.floating]:
        x = unit(home[-2])
        means = np.stack([x[y == k].mean(axis=0) for k in np.unique(y)])
        precision = LedoitWolf().fit(x - means[y]).precision_
        return np.min([np.einsum("ni,ij,nj->n", d := unit(seen[-2]) - mean, precision, d) for mean in means], axis=0)

    def regression(which: slice, half: int | None = None) -> Score:
        def join(parts: list[Array]) -> Array:
            return np.concatenate(parts[:-2][which], axis=1)

        some = [] if half is None else [join(bccd)[halves == half]]
        other = [] if half is None else [join(strange_bccd)[halves == half]]
        weight, bias = fit_regression(np.concatenate([join(home), *some]), np.concatenate([join(strange_home), *other]))
        return lambda seen: join(seen) @ weight.numpy() + float(bias)

    print(f"{len(blasts[0])} leukaemic cells, {len(bccd[0])} of bccd, {len(home[0])} of pbc/train")
    print("| score | AUROC | blasts sent away |\n|---|---:|---:|")
    softmax = lambda seen: torch.from_numpy(seen[-1]).softmax(1).max(1).values.numpy()  # noqa: E731
    show("1 - highest probability", lambda seen: -softmax(seen))
    show("energy", lambda seen: -torch.from_numpy(seen[-1]).logsumexp(1).numpy())
    show("nearest neighbour of the last features", nearest())
    show("Mahalanobis distance of the last features", distance)
    show("regression against strange crops, last block", regression(slice(7, 8)))
    show("regression, eight blocks", regression(slice(0, 8)))
    others = (halves != 0, halves != 1)
    show("half known: nearest neighbour", nearest(0), nearest(1), tested=others)
    for name, which in (("last four blocks", slice(4, 8)), ("first four", slice(0, 4)), ("eight", slice(0, 8))):
        show(f"half known: regression, {name}", regression(which, 0), regression(which, 1), tested=others)


if __name__ == "__main__":
    main()

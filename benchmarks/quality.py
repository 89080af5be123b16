"""Measure what the package promises, on labelled public data.

    python benchmarks/quality.py --data DATA [--model MODEL] [--markdown FILE] [--card FILE]

Every row states its data, n, the value and 95 % limits: Clopper-Pearson for
shares, the normal approximation of the mean for Dice and a bootstrap over
images for macro-F1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import segmentation_rows as segmentation
from rich.console import Console
from rich.progress import track

from napari_wbc.cells import UNIDENTIFIED
from napari_wbc.classifier import Classifier, ModelCard
from napari_wbc.count import clopper_pearson
from napari_wbc.crop import crop_cells
from napari_wbc.pipeline import ASSUMED_CELL_UM, analyse, run
from napari_wbc.single import classify_crops
from napari_wbc.slide import Slide

PBC_MPP = 0.145  # 36.5 µm across an image of 256 px: red cells of 7.2 µm are 50 px wide there

NAMES = {"ig": "immature granulocyte"}
FIVE = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")


@dataclass(frozen=True)
class Row:
    what: str
    data: str
    n: int
    value: float
    low: float
    high: float
    reach: float | None = None

    @property
    def reached(self) -> str:
        return "" if self.reach is None else "yes" if self.value >= self.reach else "NO"


def share(what: str, data: str, right: npt.NDArray[np.bool_], reach: float | None = None) -> Row:
    hits, n = int(right.sum()), len(right)
    low, high = clopper_pearson(hits, n)
    return Row(what, data, n, 100 * hits / n, 100 * low, 100 * high, reach)


def macro_f1(what: str, truth: npt.NDArray[Any], found: npt.NDArray[Any], reach: float | None) -> Row:
    from sklearn.metrics import f1_score

    value = f1_score(truth, found, average="macro")
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(truth), size=len(truth)) for _ in range(400)]
    low, high = np.percentile([f1_score(truth[i], found[i], average="macro") for i in draws], [2.5, 97.5])
    return Row(what, "pbc/val", len(truth), 100 * value, 100 * low, 100 * high, reach)


def pbc_val(data: Path, classifier: Classifier) -> Iterator[Row]:
    table = pd.read_csv(data / "pbc/labels.csv")
    table = table[table.split == "val"]
    paths = [data / f"pbc/val/{row[2]}/{Path(str(row.file)).name}" for row in table.itertuples()]
    truth = table["class"].replace(NAMES).to_numpy()
    for mpp, how, targets in ((PBC_MPP, "", (98.5, 98.0)), (None, ", scale measured in each crop", (None, None))):
        results = track(classify_crops(paths, classifier, mpp), f"pbc/val{how}", len(paths))
        found = np.array([classifier.card.classes[result.probabilities.argmax()] for result in results])
        yield share(f"8 classes, accuracy{how}", "pbc/val", found == truth, targets[0])
        yield macro_f1(f"8 classes, macro-F1{how}", truth, found, targets[1])


def bccd_fields(data: Path, classifier: Classifier) -> Iterator[Row]:
    """Field in, class of the found cell out: the largest cell whose centre is in the white cell's box."""
    table = pd.read_csv(data / "bccd/labels.csv")
    table = table[table.single]
    best, decided, of_five = [], [], []
    for row in track(list(table.itertuples()), "bccd, end to end"):
        result = run(analyse(Slide.open(data / "bccd/images" / str(row.image)), classifier))
        boxes = segmentation.voc(data / "bccd/annotations" / f"{str(row.image)[:-4]}.xml", "WBC")
        x0, y0, x1, y1 = boxes[0]
        cells = result.cells.table
        cells = cells[cells["centroid-0"].between(y0, y1) & cells["centroid-1"].between(x0, x1)]
        cells = cells.sort_values("area", ascending=False)
        if cells.empty:
            names = ["not found"] * 3
        else:
            p = cells.iloc[0][[f"p_{name}" for name in classifier.card.classes]].astype(float)
            names = [p.idxmax()[2:], cells.iloc[0]["class"], p[[f"p_{name}" for name in FIVE]].idxmax()[2:]]
        for values, name in zip((best, decided, of_five), names, strict=True):
            values.append(name)
    truth = table["types"].to_numpy()
    yield share("class right, end to end (all 8 classes)", "bccd, single-cell fields", np.array(best) == truth, 85)
    yield share("— among five classes", "bccd, single-cell fields", np.array(of_five) == truth)
    yield from _above_threshold("bccd, single-cell fields", np.array(decided), truth)


def _above_threshold(data: str, decided: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Iterator[Row]:
    given = ~np.isin(decided, [UNIDENTIFIED, "not found"])
    yield share("— given a class at the default threshold", data, given)
    if given.any():
        yield share("— right among those given a class", data, (decided == truth)[given])


def masked_cells(data: Path, dataset: int, classifier: Classifier, reach: float | None = None) -> Iterator[Row]:
    """Centre and scale from the mask.

    Each picture is scaled so that the median cell of the data set, of known area in pixels, is
    `ASSUMED_CELL_UM` wide: small cells stay small.
    """
    table = pd.read_csv(data / "segmentation_wbc/classes.csv")
    table = table[table.dataset == dataset]
    images, centres, diameters = [], [], []
    for row in table.itertuples():
        folder = data / f"segmentation_wbc/dataset{dataset}"
        images.append(Slide.open(folder / "images" / str(row.file)).image)
        rows, columns = np.nonzero(segmentation.read(folder / "masks" / str(row.file))[..., 0])
        centres.append((rows.mean(), columns.mean()))
        diameters.append(2 * np.sqrt(len(rows) / np.pi))
    truth = table["class"].to_numpy()
    for how, widths in (("median", np.full(len(table), np.median(diameters))), ("each", np.array(diameters))):
        crops = [
            crop_cells(image, np.array([centre]), ASSUMED_CELL_UM / width, classifier.card.crop)[0]
            for image, centre, width in zip(images, centres, widths, strict=True)
        ]
        p = classifier.predict(np.stack(crops))
        found = np.asarray(classifier.card.classes)[p.argmax(1)]
        five = [classifier.card.classes.index(name) for name in FIVE]
        name = f"segmentation_wbc dataset{dataset}"
        yield share(
            f"class right on given cells, scale from the {how} mask",
            name,
            found == truth,
            reach if how == "median" else None,
        )
        yield share("— among five classes", name, np.array(FIVE)[p[:, five].argmax(1)] == truth)


def bcisc(data: Path, classifier: Classifier) -> Iterator[Row]:
    table = pd.read_csv(data / "bcisc_sample/boxes.csv")
    short = {name[:4]: name for name in FIVE} | {"baso": "basophil", "eosi": "eosinophil"}
    right = []
    for row in table.itertuples():
        cells = run(analyse(Slide.open(data / "bcisc_sample" / str(row.image)), classifier)).cells.table
        inside = cells[cells["centroid-0"].between(row.y0, row.y1) & cells["centroid-1"].between(row.x0, row.x1)]
        p = inside[[f"p_{name}" for name in classifier.card.classes]]
        right.append(len(inside) > 0 and p.iloc[0].idxmax()[2:] == short[row[2]])
    yield share("class right, end to end (all 8 classes)", "bcisc_sample", np.array(right))


def cells_found(data: Path) -> Iterator[Row]:
    found = segmentation.bccd(data)
    for what, reach in (("recall", 99), ("precision", 97)):
        row = found[what]
        yield Row(
            f"white cells found, {what}", "bccd", row["n"], *(100 * row[k] for k in ("value", "low", "high")), reach
        )
    for dataset, nucleus, cell in ((1, 93, 85), (2, 95, 92)):
        row = segmentation.masks(data, dataset)
        for part, reach in (("nucleus", nucleus), ("cell", cell)):
            mean, half = 100 * row[part]["mean"], 100 * row[part]["half width 95 %"]
            yield Row(f"Dice of the {part}, mean (×100)", row["row"], row["n"], mean, mean - half, mean + half, reach)
    row = segmentation.fields_rbc(data)
    yield share(
        "fields without a white cell left empty",
        "fields_rbc",
        np.arange(row["fields"]) >= row["fields with one"]["hits"],
    )


def rows(data: Path, classifier: Classifier, *, segment: bool = True) -> Iterator[Row]:
    if segment:
        yield from cells_found(data)
    yield from pbc_val(data, classifier)
    yield from bccd_fields(data, classifier)
    yield from masked_cells(data, 2, classifier, 80)
    yield from masked_cells(data, 1, classifier)
    yield from bcisc(data, classifier)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    parser.add_argument("--card", type=Path, help="write the results on classes into this model card too")
    parser.add_argument("--classes-only", action="store_true", help="leave the rows on segmentation out")
    args = parser.parse_args()
    lines = ["| what | data | n | value | 95 % limits | reach | reached |", "|---|---|---:|---:|---|---:|---|"]
    console = Console(width=170)
    console.print(lines[0])
    results = []
    for row in rows(args.data, Classifier.load(args.model), segment=not args.classes_only):
        if "accuracy" in row.what or "F1" in row.what or "class right" in row.what:
            values = {key: round(getattr(row, key), 2) for key in ("value", "low", "high")}
            results.append({"what": row.what, "data": row.data, "n": row.n, **values})
        reach = "" if row.reach is None else f"{row.reach:g}"
        lines.append(
            f"| {row.what} | {row.data} | {row.n} | {row.value:.1f} | {row.low:.1f}–{row.high:.1f} | {reach} | {row.reached} |"
        )
        console.print(lines[-1])
    if args.card:
        card = ModelCard.from_json(args.card.read_text(encoding="utf-8"))
        args.card.write_text(replace(card, results=tuple(results)).to_json(), encoding="utf-8")
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

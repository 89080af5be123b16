"""Measure what the package promises, on labelled public data.

    python benchmarks/quality.py --data DATA [--model MODEL] [--markdown FILE] [--card FILE]

Every row states its data, n, the value and 95 % limits: Clopper-Pearson for
shares, the normal approximation of the mean for Dice and a bootstrap over
images for macro-F1, calibration, rejection and the score of unlikeness.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import segmentation_rows as segmentation
from rich.console import Console
from rich.progress import track

from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.classifier import Classifier, ModelCard
from napari_wbc.count import clopper_pearson
from napari_wbc.crop import crop_cells
from napari_wbc.evaluate import calibration_error
from napari_wbc.pipeline import ASSUMED_CELL_UM, analyse, run
from napari_wbc.single import classify_crops
from napari_wbc.slide import Slide

PBC_MPP = 0.145  # 36.5 µm across an image of 256 px: red cells of 7.2 µm are 50 px wide there

NAMES = {"ig": "immature granulocyte"}
WITHOUT_BCCD = Path(__file__).with_name("wbc8-without-bccd.json")
"""The shipped model before bccd joined its training; nothing else of it is as good."""
FIVE = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")


@dataclass(frozen=True)
class Row:
    what: str
    data: str
    n: int
    value: float
    low: float
    high: float
    reach: tuple[float, ...] = ()
    """One after the other."""
    most: bool = False
    """Whether it is the most that the value may be."""

    @property
    def reached(self) -> str:
        said = (self.value <= reach if self.most else self.value >= reach for reach in self.reach)
        return ", ".join("yes" if yes else "NO" for yes in said)


def share(what: str, data: str, right: npt.NDArray[np.bool_], reach: tuple[float, ...] = ()) -> Row:
    hits, n = int(right.sum()), len(right)
    low, high = clopper_pearson(hits, n)
    return Row(what, data, n, 100 * hits / n, 100 * low, 100 * high, reach)


@dataclass(frozen=True)
class Judged:
    """True class and probabilities of the cells of one set; a cell that was not found has none."""

    truth: npt.NDArray[Any]
    p: npt.NDArray[np.float64]
    classes: tuple[str, ...]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        return np.asarray((np.asarray(self.classes)[self.p.argmax(1)] == self.truth) & (self.p.max(1) > 0))

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Judged:
        return Judged(self.truth[rows], self.p[rows], self.classes)

    def macro_f1(self) -> float:
        from sklearn.metrics import f1_score

        found = np.where(self.p.max(1) > 0, np.asarray(self.classes, dtype=object)[self.p.argmax(1)], "not found")
        present = sorted(set(self.truth))
        return 100 * float(f1_score(self.truth, found, labels=present, average="macro", zero_division=0))

    def ece(self) -> float:
        return 100 * calibration_error(self.p.max(1), self.right)

    def at_rejection(self, share: float = 0.05) -> float:
        kept = np.argsort(-self.p.max(1), kind="stable")[: round(len(self.p) * (1 - share))]
        return 100 * float(self.right[kept].mean())


def bootstrap(
    what: str,
    data: str,
    sets: Sequence[Judged],
    measure: Callable[[Sequence[Judged]], float],
    reach: tuple[float, ...] = (),
    *,
    most: bool = False,
) -> Row:
    """Cells of each set are drawn with replacement, 400 times."""
    rng = np.random.default_rng(0)
    drawn = [[s[rng.integers(len(s.p), size=len(s.p))] for s in sets] for _ in range(400)]
    low, high = np.percentile([measure(some) for some in drawn], [2.5, 97.5])
    return Row(what, data, sum(len(s.p) for s in sets), measure(sets), low, high, reach, most)


def pooled(sets: Sequence[Judged]) -> Judged:
    return Judged(np.concatenate([s.truth for s in sets]), np.concatenate([s.p for s in sets]), sets[0].classes)


def trust(home: Judged, away: Sequence[Judged]) -> Iterator[Row]:
    """What the probabilities are worth, and what another laboratory costs."""
    elsewhere = "segmentation_wbc"
    yield bootstrap("calibration error (ECE, ×100)", "pbc/val", [home], lambda s: s[0].ece(), (1,), most=True)
    yield bootstrap("calibration error (ECE, ×100)", elsewhere, away, lambda s: pooled(s).ece(), (5,), most=True)
    yield bootstrap(
        "accuracy with the least sure 5 % rejected", elsewhere, away, lambda s: pooled(s).at_rejection(), (97,)
    )
    yield bootstrap(
        "macro-F1 (mean over the classes), points lost from the laboratory of the training (pbc/val) to others, on average (×100)", elsewhere, [home, *away],
        lambda s: s[0].macro_f1() - float(np.mean([other.macro_f1() for other in s[1:]])), (8,), most=True,
    )  # fmt: skip


def leukaemia(data: Path, classifier: Classifier, known: npt.NDArray[np.float64]) -> Iterator[Row]:
    """Blasts, never trained on, against the cells of bccd, which are known. `known` is the unlikeness of these."""
    from sklearn.metrics import roc_auc_score

    table = pd.read_csv(data / "all_taleqani/labels.csv")
    table = table[(table.split == "test") & table["class"].isin(["early", "pre", "pro"])]
    found: list[float] = []
    for file in track(table["file"].tolist(), "all_taleqani, test"):
        cells = run(analyse(Slide.open(data / "all_taleqani" / file), classifier)).cells.table
        found += cells.loc[~cells["at_border"], "unlikeness"].tolist()
    blasts, known = np.array(found), known[np.isfinite(known)]
    if not len(known) or not np.isfinite(blasts).any():
        return
    name, rng = "all_taleqani/test early, pre, pro against bccd", np.random.default_rng(0)

    def auc(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
        return 100 * float(roc_auc_score(np.repeat([0, 1], [len(a), len(b)]), np.concatenate([a, b])))

    def sent(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
        return 100 * float((b > np.quantile(a, 0.95)).mean())

    drawn = [(rng.choice(known, len(known)), rng.choice(blasts, len(blasts))) for _ in range(400)]
    for what, measure, reach in (
        ("unlikeness, AUROC (×100)", auc, (95,)), ("— blasts unidentified where 5 % of bccd's are", sent, (80,)),
    ):  # fmt: skip
        low, high = np.percentile([measure(a, b) for a, b in drawn], [2.5, 97.5])
        yield Row(what, name, len(blasts) + len(known), measure(known, blasts), low, high, reach)
    yield share("— blasts more unlike than the card allows", name, blasts > classifier.card.unlike_above)


def pbc_val(data: Path, classifier: Classifier, judged: dict[str, Judged]) -> Iterator[Row]:
    table = pd.read_csv(data / "pbc/labels.csv")
    table = table[table.split == "val"]
    paths = [data / f"pbc/val/{row[2]}/{Path(str(row.file)).name}" for row in table.itertuples()]
    truth = table["class"].replace(NAMES).to_numpy()
    for mpp, how, targets in (
        (PBC_MPP, "", ((98.5, 99), (98, 98.8))),
        (None, ", scale measured in each crop", ((), ())),
    ):
        results = track(classify_crops(paths, classifier, mpp), f"pbc/val{how}", len(paths))
        set_ = Judged(truth, np.stack([result.probabilities for result in results]), classifier.card.classes)
        judged.setdefault("pbc/val", set_)
        yield share(f"8 classes, accuracy{how}", "pbc/val", set_.right, targets[0])
        yield bootstrap(f"8 classes, macro-F1{how}", "pbc/val", [set_], lambda s: s[0].macro_f1(), targets[1])


def bccd_fields(
    data: Path, classifier: Classifier, unlikeness: list[float], how: str, reach: tuple[float, ...] = ()
) -> Iterator[Row]:
    """Field in, class of the found cell out: the largest cell whose centre is in the white cell's box."""
    table = pd.read_csv(data / "bccd/labels.csv")
    table = table[table.single]
    decided, given = [], []
    for row in track(list(table.itertuples()), "bccd, end to end"):
        result = run(analyse(Slide.open(data / "bccd/images" / str(row.image)), classifier))
        boxes = segmentation.voc(data / "bccd/annotations" / f"{str(row.image)[:-4]}.xml", "WBC")
        x0, y0, x1, y1 = boxes[0]
        cells = result.cells.table
        cells = cells[cells["centroid-0"].between(y0, y1) & cells["centroid-1"].between(x0, x1)]
        cells = cells.sort_values("area", ascending=False)
        decided.append("not found" if cells.empty else str(cells.iloc[0]["class"]))
        columns = [f"p_{name}" for name in classifier.card.classes]
        given.append(np.zeros(len(columns)) if cells.empty else cells.iloc[0][columns].to_numpy(float))
        if not cells.empty:
            unlikeness.append(float(cells.iloc[0]["unlikeness"]))
    name = f"bccd, single-cell fields ({how})"
    judged = Judged(table["types"].to_numpy(), np.stack(given), classifier.card.classes)
    yield from among(name, judged, "class right, end to end (all 8 classes)", reach)
    yield from _above_threshold(name, np.array(decided), judged.truth)


def among(data: str, set_: Judged, what: str, reach: tuple[float, ...]) -> Iterator[Row]:
    """All classes, and the likeliest of the five that the sets have."""
    yield share(what, data, set_.right, reach)
    five = [set_.classes.index(name) for name in FIVE]
    only = Judged(set_.truth, set_.p[:, five], FIVE)
    yield share("— among five classes", data, only.right)


def _above_threshold(data: str, decided: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Iterator[Row]:
    given = ~np.isin(decided, [UNIDENTIFIED, "not found"])
    yield share("— given a class at the default threshold", data, given)
    if given.any():
        yield share("— right among those given a class", data, (decided == truth)[given])


def masked_cells(
    data: Path, dataset: int, classifier: Classifier, judged: dict[str, Judged], reach: tuple[float, ...] = ()
) -> Iterator[Row]:
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
    for how, widths in (("the median", np.full(len(table), np.median(diameters))), ("each", np.array(diameters))):
        crops = [
            crop_cells(image, np.array([centre]), ASSUMED_CELL_UM / width, classifier.card.crop)[0]
            for image, centre, width in zip(images, centres, widths, strict=True)
        ]
        name = f"segmentation_wbc dataset{dataset}"
        set_ = Judged(truth, classifier.predict(np.stack(crops)).astype(float), classifier.card.classes)
        judged.setdefault(name, set_)
        what = f"class right on given cells, scale from {how} mask"
        yield from among(name, set_, what, reach if how == "the median" else ())


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
    for what, reach in (("recall", (99,)), ("precision", (97,))):
        row = found[what]
        yield Row(
            f"white cells found, {what}", "bccd", row["n"], *(100 * row[k] for k in ("value", "low", "high")), reach
        )
    for dataset, nucleus, cell in ((1, (93,), (85,)), (2, (95,), (92,))):
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
    judged: dict[str, Judged] = {}
    unlikeness: list[float] = []
    yield from pbc_val(data, classifier, judged)
    yield from bccd_fields(data, Classifier.load(WITHOUT_BCCD), [], "trained without bccd", (85, 93, 96))
    yield from bccd_fields(data, classifier, unlikeness, "trained on bccd: no test")
    yield from masked_cells(data, 2, classifier, judged, (80, 92, 96))
    yield from masked_cells(data, 1, classifier, judged, (88, 92))
    yield from bcisc(data, classifier)
    home, *away = judged.values()
    yield from trust(home, away)
    yield from leukaemia(data, classifier, np.array(unlikeness))


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
        if any(word in row.what for word in ("accuracy", "F1", "class right", "ECE", "unlikeness", "blasts")):
            values = {key: round(getattr(row, key), 2) for key in ("value", "low", "high")}
            results.append({"what": row.what, "data": row.data, "n": row.n, **values})
        reach = ("≤ " if row.most and row.reach else "") + ", ".join(f"{value:g}" for value in row.reach)
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

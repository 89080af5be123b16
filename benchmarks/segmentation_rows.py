"""How well white cells are found and outlined, on fields with boxes and cells with masks.

``python benchmarks/segmentation_rows.py DATA [--every N]`` prints every row as JSON. Each
function takes the data folder and returns one dictionary (or one per source or class);
``every`` measures every n-th image only, for a quick look.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage as ndi
from scipy.optimize import linear_sum_assignment
from scipy.stats import beta

from napari_wbc.segment import Segmentation, segment

Box = tuple[float, float, float, float]
Row = dict[str, Any]


def proportion(hits: int, n: int) -> Row:
    """Share with its Clopper-Pearson 95 % limits."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "hits": 0, "n": 0}
    low = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    return {"value": hits / n, "low": float(low), "high": float(high), "hits": hits, "n": n}


def read(path: Path) -> npt.NDArray[np.uint8]:
    """RGB image, uint8 (H, W, 3)."""
    return np.asarray(Image.open(path).convert("RGB"))


def centroids(found: Segmentation) -> list[tuple[float, float]]:
    """(row, column) of each cell."""
    n = int(found.labels.max())
    return ndi.center_of_mass(found.labels > 0, found.labels, range(1, n + 1)) if n else []


def match(points: Sequence[tuple[float, float]], boxes: Sequence[Box]) -> int:
    """Largest number of one-to-one pairs with the point (row, column) inside the box (x0, y0, x1, y1)."""
    if not points or not boxes:
        return 0
    inside = np.array([[x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in boxes] for y, x in points])
    rows, columns = linear_sum_assignment(inside, maximize=True)
    return int(inside[rows, columns].sum())


def voc(path: Path, name: str) -> list[Box]:
    """Boxes (x0, y0, x1, y1) of one class in a VOC file."""
    boxes = []
    for item in ET.parse(path).getroot().iter("object"):
        if item.findtext("name") == name:
            values = [float(item.findtext(f"bndbox/{key}") or "nan") for key in ("xmin", "ymin", "xmax", "ymax")]
            boxes.append((values[0], values[1], values[2], values[3]))
    return boxes


def _scales(found: Iterable[Segmentation]) -> Row:
    by_source: dict[str, int] = defaultdict(int)
    values = []
    for item in found:
        by_source[item.appearance.mpp_source] += 1
        if np.isfinite(item.appearance.mpp):
            values.append(item.appearance.mpp)
    spread = np.percentile(values, [5, 25, 50, 75, 95]).round(4).tolist() if values else []
    return {"percentiles 5 25 50 75 95": spread, "sources": dict(by_source)}


def _detection(pairs: Iterable[tuple[Segmentation, list[Box]]]) -> Row:
    hits = n_boxes = n_found = 0
    seen = []
    for found, boxes in pairs:
        points = centroids(found)
        hits += match(points, boxes)
        n_boxes += len(boxes)
        n_found += len(points)
        seen.append(found)
    return {
        "fields": len(seen),
        "recall": proportion(hits, n_boxes),
        "precision": proportion(hits, n_found),
        "false per field": (n_found - hits) / max(len(seen), 1),
        "mpp": _scales(seen),
    }


def bccd(data: Path, every: int = 1) -> Row:
    """Detection in whole fields (bccd), centroid inside box."""
    files = sorted((data / "bccd/images").glob("*.jpg"))[::every]
    row = _detection((segment(read(f)), voc(data / "bccd/annotations" / f"{f.stem}.xml", "WBC")) for f in files)
    return {"row": "bccd", **row}


def bccd_scale(data: Path, every: int = 1) -> Row:
    """mpp found over mpp from the red cell boxes (full ones, at least 3 a field, 7.2 µm)."""
    ratios = []
    for f in sorted((data / "bccd/images").glob("*.jpg"))[::every]:
        boxes = voc(data / "bccd/annotations" / f"{f.stem}.xml", "RBC")
        whole = [b for b in boxes if min(b[:2]) > 3 and b[2] < 637 and b[3] < 477]
        sides = [side for x0, y0, x1, y1 in whole for side in (x1 - x0, y1 - y0)]
        look = segment(read(f)).appearance
        if len(sides) >= 6 and np.isfinite(look.mpp):
            ratios.append(look.mpp / (7.2 / statistics.median(sides)))
    spread = np.percentile(ratios, [5, 25, 50, 75, 95]).round(3).tolist()
    return {"row": "bccd scale over box scale", "n": len(ratios), "percentiles 5 25 50 75 95": spread}


def dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks; 1 if both are empty."""
    total = int(a.sum() + b.sum())
    return 1.0 if total == 0 else 2 * int((a & b).sum()) / total


def masks(data: Path, dataset: int, every: int = 1) -> Row:
    """Dice of nucleus and whole cell (segmentation_wbc), of the cell that overlaps most."""
    dices: dict[str, list[float]] = {"nucleus": [], "cell": []}
    found_all = []
    for f in sorted((data / f"segmentation_wbc/dataset{dataset}/images").glob("*.png"))[::every]:
        truth = np.asarray(Image.open(f.parents[1] / "masks" / f.name).convert("L"))
        found = segment(read(f))
        found_all.append(found)
        counts = np.bincount(found.labels[truth > 0], minlength=2)[1:]
        best = int(counts.argmax()) + 1
        dices["nucleus"].append(dice(found.nuclei == best, truth == 255) if counts.any() else 0.0)
        dices["cell"].append(dice(found.labels == best, truth > 0) if counts.any() else 0.0)
    row: Row = {"row": f"segmentation_wbc dataset{dataset}", "n": len(found_all)}
    for part, values in dices.items():
        half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
        row[part] = {"mean": float(np.mean(values)), "half width 95 %": half, "median": float(np.median(values))}
    row["missed"] = sum(v == 0 for v in dices["cell"])
    row["mpp"] = _scales(found_all)
    return row


def fields_rbc(data: Path, every: int = 1) -> Row:
    """False cells in fields without a white cell."""
    found = [segment(read(f)) for f in sorted((data / "fields_rbc").glob("*.jpg"))[::every]]
    false = [int(item.labels.max()) for item in found]
    return {
        "row": "fields_rbc",
        "fields": len(found),
        "false cells": sum(false),
        "fields with one": proportion(sum(v > 0 for v in false), len(found)),
        "mpp": _scales(found),
    }


def bcisc(data: Path, every: int = 1) -> Row:
    """Detection in large fields with a bright spot (bcisc_sample)."""
    boxes: dict[str, list[Box]] = defaultdict(list)
    with (data / "bcisc_sample/boxes.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            boxes[line["image"]].append((float(line["x0"]), float(line["y0"]), float(line["x1"]), float(line["y1"])))
    files = sorted(boxes)[::every]
    return {"row": "bcisc_sample", **_detection((segment(read(data / "bcisc_sample" / f)), boxes[f]) for f in files)}


def txl(data: Path, source: str, every: int = 1) -> Row:
    """Detection in single-cell views (txl; its boxes are incomplete at borders)."""

    def pairs() -> Iterator[tuple[Segmentation, list[Box]]]:
        with (data / "txl/index.csv").open(newline="") as file:
            files = sorted(line["file"] for line in csv.DictReader(file) if line["source"] == source)[::every]
        for name in files:
            rgb = read(data / "txl" / name)
            h, w = rgb.shape[:2]
            boxes: list[Box] = []
            for line in (data / "txl/labels" / f"{Path(name).stem}.txt").read_text().splitlines():
                kind, x, y, bw, bh = (float(v) for v in line.split())
                if kind == 0:
                    boxes.append(((x - bw / 2) * w, (y - bh / 2) * h, (x + bw / 2) * w, (y + bh / 2) * h))
            yield segment(rgb), boxes

    return {"row": f"txl {source}", **_detection(pairs())}


def pbc(data: Path, sample: int = 40) -> Row:
    """Share of single-cell images (pbc/val) with a cell at the centre, by class."""
    share, found_all = {}, []
    for folder in sorted((data / "pbc/val").iterdir()):
        files = sorted(folder.glob("*.jpg"))
        files = files[:: max(1, len(files) // sample)][:sample]
        hits = 0
        for f in files:
            found = segment(read(f))
            found_all.append(found)
            h, w = found.labels.shape
            points = centroids(found)
            hits += any(abs(y - h / 2) < h / 6 and abs(x - w / 2) < w / 6 for y, x in points)
        share[folder.name] = proportion(hits, len(files))
    return {"row": "pbc val, cell at the centre", "classes": share, "mpp": _scales(found_all)}


def speed(data: Path, repeats: int = 15) -> Row:
    """Milliseconds for one 640x480 field with the scale measured, one core."""
    images = [read(f) for f in sorted((data / "bccd/images").glob("*.jpg"))[::60]]
    images += [read(f) for f in sorted((data / "fields_rbc").glob("*.jpg"))[::10]]
    times, busy = [], []
    for i in range(repeats * 2):
        rgb = images[i % len(images)]
        start, start_cpu = time.perf_counter(), time.process_time()
        segment(rgb)
        if i >= 5:
            times.append((time.perf_counter() - start) * 1e3)
            busy.append((time.process_time() - start_cpu) * 1e3)
    row = {"row": "speed 640x480, ms", "median": statistics.median(times), "max": max(times), "n": len(times)}
    return {**row, "processor time, median": statistics.median(busy)}


def main() -> None:
    """Print the rows asked for."""
    rows: dict[str, Callable[[Path, int], Row]] = {
        "bccd": bccd,
        "bccd_scale": bccd_scale,
        "fields_rbc": fields_rbc,
        "bcisc": bcisc,
        "dataset1": lambda data, every: masks(data, 1, every),
        "dataset2": lambda data, every: masks(data, 2, every),
        "txl_pbc": lambda data, every: txl(data, "pbc", every),
        "txl_raabin": lambda data, every: txl(data, "raabin", every),
        "pbc": lambda data, every: pbc(data, max(1, 40 // every)),
        "speed": lambda data, every: speed(data, max(5, 15 // every)),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--rows", nargs="+", choices=sorted(rows), default=list(rows))
    arguments = parser.parse_args()
    for name in arguments.rows:
        print(json.dumps(rows[name](arguments.data, arguments.every)), flush=True)


if __name__ == "__main__":
    main()

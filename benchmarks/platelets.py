"""Compare the estimate of platelets with boxes that people drew, on fields of three laboratories.

Run ``python benchmarks/platelets.py --data FOLDER``; ``FOLDER`` holds ``bccd`` and ``txl`` (sources: docs/quality.md).
The rule was found on 24 pictures of bccd and 26 of pbc in txl; those are left out. A platelet is found where a body lies
in a box, or half a µm beside it. The count per mm² is what the estimate rests on.
"""

import argparse
import csv
import xml.etree.ElementTree as ET
from pathlib import Path

from napari_wbc.cells import measure
from napari_wbc.platelets import FIELD_MM2, MOST_MPP, PER_UL, platelets_in
from napari_wbc.segment import segment
from napari_wbc.slide import Slide


def bccd(folder):
    """Yield pictures and boxes (top, left, bottom, right) of platelets."""
    files = sorted((folder / "images").glob("*.jpg"))
    seen = set(files[::6][:24])
    for path in files:
        if path not in seen:
            root = ET.parse(folder / "annotations" / f"{path.stem}.xml").getroot()
            yield path, [[float(o.find("bndbox").find(k).text) for k in ("ymin", "xmin", "ymax", "xmax")]
                         for o in root.iter("object") if o.find("name").text == "Platelets"]  # fmt: skip


def txl(folder, source):
    """Yield pictures and boxes of one of its sources."""
    with (folder / "index.csv").open() as file:
        names = [row["file"] for row in csv.DictReader(file) if row["source"] == source]
    used = 26 if source == "pbc" else 0
    for name in names:
        path = next(folder.rglob(Path(name).name))
        height, width = Slide.open(path).shape
        notes = next(folder.rglob(path.with_suffix(".txt").name)).read_text().splitlines()
        rows = [list(map(float, line.split())) for line in notes if line.startswith("2 ")]
        if rows and used > 0:
            used -= 1
            continue
        yield path, [[(y - h / 2) * height, (x - w / 2) * width, (y + h / 2) * height, (x + w / 2) * width]
                     for _, x, y, w, h in rows]  # fmt: skip


def count(pictures):
    """Return found and right ones, boxes and area of all pictures whose scale can be measured."""
    n = right = drawn = left_out = 0
    area = 0.0
    for path, boxes in pictures:
        image = Slide.open(path).image
        found = segment(image)
        mpp = found.appearance.mpp
        if not mpp <= MOST_MPP:
            left_out += 1
            continue
        cells = measure(found.labels, found.nuclei, slide="", mpp=mpp).table
        own = cells[[f"bbox-{k}" for k in range(4)]].to_numpy(float)
        points, free = platelets_in(image, mpp), [list(box) for box in boxes]
        points = [p for p in points if not ((own[:, :2] <= p) & (p <= own[:, 2:])).all(axis=1).any()]
        n, drawn, area = n + len(points), drawn + len(boxes), area + image[..., 0].size * mpp**2 / 1e6
        slack = 0.5 / mpp
        for y, x in points:
            hit = next(
                (b for b in free if b[0] - slack <= y <= b[2] + slack and b[1] - slack <= x <= b[3] + slack), None
            )
            if hit is not None:
                free.remove(hit)
                right += 1
    return n, right, drawn, area, left_out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--most", type=int, default=10_000, help="pictures of each set")
    options = parser.parse_args()
    sets = {"bccd": bccd(options.data / "bccd")}
    sets |= {f"txl, {source}": txl(options.data / "txl", source) for source in ("pbc", "raabin")}
    print("| fields of | mm² | boxes | found | of the boxes | in a box | per µL by boxes | by the estimate |")
    print("|---|---|---|---|---|---|---|---|")
    for name, pictures in sets.items():
        pictures = list(pictures)[: options.most]
        n, right, drawn, area, left_out = count(pictures)
        each = PER_UL * FIELD_MM2 / area
        print(f"| {name} ({len(pictures) - left_out}) | {area:.2f} | {drawn} | {n} | {100 * right / max(1, drawn):.0f} % | "
              f"{100 * right / max(1, n):.0f} % | {each * drawn:,.0f} | {each * n:,.0f} |")  # fmt: skip

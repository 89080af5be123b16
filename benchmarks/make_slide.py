"""Tile real smear fields into a synthetic whole slide of any size, with its truth table.

    python benchmarks/make_slide.py slide.tif --data DATA --size 32768 24576 --cells 280 --mpp 0.0725

The suffix chooses the format: ``.tif`` a pyramidal JPEG-tiled TIFF, ``.svs`` the same laid out as Aperio does (with
thumbnail, label and macro image), ``.ome.tif`` an OME-TIFF with SubIFDs, ``.ome.zarr`` an OME-Zarr (``--ngff 0.4`` or
``0.5``). ``<slide>.truth.csv`` lists every white cell. Files and table say that they are synthetic: such a slide
measures software, it is no smear of any person.

Fields with white cells come from bccd and bcisc_sample, the film between them from fields_rbc (which shows none). Every
field is brought to one scale (measured from its red cells) and to one flat, white light, as a scanner gives it; red cells to one colour; half of
the cells lie on seams of the tiles on purpose. Memory: a row of tiles and the fields, whatever the size of the slide.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import xml.etree.ElementTree as ET
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

from napari_wbc import scale
from napari_wbc.appearance import appearance

SYNTHETIC = "SYNTHETIC slide tiled from fields of public data sets; not a smear of any person"
LIGHT = np.array([238.0, 236.0, 240.0])
ZONES = ("monolayer", "glass", "thick part", "feathered edge", "out of focus", "pen")
BCISC = {"baso": "basophil", "eosi": "eosinophil", "lymp": "lymphocyte", "mono": "monocyte", "neut": "neutrophil"}


@dataclass(frozen=True)
class Box:
    """A white cell in a field: top, left, bottom, right in its pixels."""

    box: tuple[float, float, float, float]
    name: str


@dataclass(frozen=True)
class Field:
    """A field at the scale of the slide, and its white cells."""

    name: str
    image: np.ndarray = field(repr=False)
    cells: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of a field, set into a row at column ``left``."""

    left: int
    width: int
    source: int
    top_in: int
    left_in: int


def flat(image: np.ndarray) -> np.ndarray:
    """Take the light of the microscope out of a field."""
    small = scale.resample(image, (240, 320))
    light = scale.light(scale.background(small), image.shape[:2]) - 1
    return np.clip(image / np.maximum(light, 20) * LIGHT, 0, 255).astype(np.uint8)


def measured(paths: list[Path]) -> tuple[float, np.ndarray]:
    """µm per pixel and density of the red cells of a source: medians of some fields."""
    looks = [appearance(np.asarray(Image.open(path).convert("RGB"))) for path in paths[:12]]
    looks = [look for look in looks if look.mpp_source == "red cells"]
    return float(np.median([look.mpp for look in looks])), np.median([look.red for look in looks], axis=0)


def stained(image: np.ndarray, red: np.ndarray) -> np.ndarray:
    """Bring the red cells of a flat field to a colour, for a smear has one stain."""
    own = np.array(appearance(image).red)
    if not own.any():
        return image
    share = np.minimum((image.astype(np.float32) + 1) / (LIGHT + 1), 1) ** np.clip(red / np.maximum(own, 0.02), 0.3, 3)
    return np.clip(share * LIGHT, 0, 255).astype(np.uint8)


def resized(image: np.ndarray, factor: float) -> np.ndarray:
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def load(data: Path, mpp: float, most: int, rng: np.random.Generator) -> tuple[list[Field], list[Field]]:
    """Fields with white cells and fields without, at most so many of each."""
    labels = pd.read_csv(data / "bccd/labels.csv")
    labels = labels[labels["single"]].sample(frac=1, random_state=int(rng.integers(2**31)))
    paths = [data / "bccd/images" / name for name in labels["image"]]
    with_cells = []
    found, red = measured(paths)
    factor = found / mpp
    for path, name in zip(paths, labels["types"], strict=True):
        boxes = []
        for entry in ET.parse(data / "bccd/annotations" / f"{path.stem}.xml").iter("object"):
            if entry.findtext("name") == "WBC":
                edges = [float(entry.findtext(f"bndbox/{k}") or 0) for k in ("ymin", "xmin", "ymax", "xmax")]
                boxes.append(Box(tuple(factor * edge for edge in edges), name))
        # A cell that the field cuts is no fair question.
        if all(b.box[0] > 2 and b.box[1] > 2 and b.box[2] < 478 * factor and b.box[3] < 638 * factor for b in boxes):
            with_cells.append(
                Field(path.stem, resized(flat(np.asarray(Image.open(path).convert("RGB"))), factor), tuple(boxes))
            )
        if len(with_cells) == most:
            break
    for row in pd.read_csv(data / "bcisc_sample/boxes.csv").to_dict("records"):
        path = data / "bcisc_sample" / row["image"]
        image = np.asarray(Image.open(path).convert("RGB"))
        factor = appearance(image).mpp / mpp
        edges = tuple(factor * row[k] for k in ("y0", "x0", "y1", "x1"))
        with_cells.append(
            Field(path.stem, resized(stained(flat(image), red), factor), (Box(edges, BCISC[row["class"]]),))
        )
    paths = sorted((data / "fields_rbc").glob("*.jpg"))[:most]
    factor = measured(paths)[0] / mpp
    fillers = []
    for path in paths:
        image = stained(flat(np.asarray(Image.open(path).convert("RGB"))), red)
        # Pointers and scale bars lie in the lower right corner.
        fillers.append(Field(path.stem, resized(image[:400, :480], factor)))
    return with_cells, fillers


class Smear:
    """The slide before it is written: any part of it can be drawn.

    Parameters
    ----------
    size : (columns, rows) of level 0
    cells : how many fields with white cells to set in
    """

    def __init__(
        self, data: Path, size: tuple[int, int], cells: int, mpp: float, *, tile: int = 512, seed: int = 0,
        most: int = 64, zones: bool = False,
    ) -> None:  # fmt: skip
        self.width, self.height, self.mpp, self.tile, self.zones = size[0], size[1], mpp, tile, zones
        rng = np.random.default_rng(seed)
        self.with_cells, self.fillers = load(data, mpp, most, rng)
        self.fields = [*self.with_cells, *self.fillers]
        bccd = self.with_cells[0].image.shape
        self.pitch, self.piece = int(0.8 * bccd[0]), bccd[1]
        self.rows: list[list[Piece]] = []
        self.truth: list[dict[str, Any]] = []
        n_rows = -(-self.height // self.pitch)
        # Whole pieces only: the last row and column may be cut.
        slots = [
            (r, c) for r in range(self.height // self.pitch) for c in range(self.width // (self.piece + tile) or 1)
        ]
        picked = sorted(rng.choice(len(slots), min(cells, len(slots)), replace=False))
        wanted: dict[int, list[int]] = {}
        for slot in picked:
            wanted.setdefault(slots[slot][0], []).append(slots[slot][1])
        if cells > len(slots):
            raise SystemExit(f"{cells} fields with cells do not fit; {len(slots)} do: make the slide larger")
        for row in range(n_rows):
            self.rows.append(self._row(row, wanted.get(row, []), rng))

    def _row(self, row: int, columns: list[int], rng: np.random.Generator) -> list[Piece]:
        pieces: list[Piece] = []
        cursor, y = 0, row * self.pitch
        for column in columns:
            source = int(rng.integers(len(self.with_cells)))
            chosen = self.with_cells[source]
            box = chosen.cells[0].box
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            height, width = chosen.image.shape[:2]
            slack = max(0, height - self.pitch)
            lowest, highest = max(0, int(np.ceil(box[2])) + 2 - self.pitch), min(slack, int(box[0]) - 2)
            top = int(np.clip(middle[0] - self.pitch / 2, 0, slack))
            left_in = int(np.clip(middle[1] - self.piece / 2, 0, max(0, width - self.piece)))
            left = column * (self.piece + self.tile)
            if len(self.truth) % 2:  # on a seam, in both directions where the slack allows
                seam = round((y + middle[0] - top) / self.tile) * self.tile
                wish = int(y + middle[0] - seam)
                top = wish if lowest <= wish <= highest else top
                left = int(-(-(left + middle[1] - left_in) // self.tile) * self.tile - middle[1] + left_in)
            left = min(max(left, cursor), max(cursor, self.width - self.piece))
            pieces += self._fill(cursor, left, rng)
            piece = Piece(left, min(self.piece, width - left_in), source, top, left_in)
            pieces.append(piece)
            self._note(piece, y, chosen)
            cursor = piece.left + piece.width
        return pieces + self._fill(cursor, self.width, rng)

    def _fill(self, start: int, stop: int, rng: np.random.Generator) -> list[Piece]:
        pieces = []
        while start < stop:
            k = int(rng.integers(len(self.fillers)))
            height, width = self.fillers[k].image.shape[:2]
            take = min(width, stop - start)
            top, left = int(rng.integers(max(1, height - self.pitch))), int(rng.integers(width - take + 1))
            pieces.append(Piece(start, take, len(self.with_cells) + k, top, left))
            start += take
        return pieces

    def _note(self, piece: Piece, y: int, chosen: Field) -> None:
        for cell in chosen.cells:
            top, left, bottom, right = cell.box
            inside = (max(top, piece.top_in), max(left, piece.left_in),
                      min(bottom, piece.top_in + self.pitch, piece.top_in + self.height - y),
                      min(right, piece.left_in + piece.width, piece.left_in + self.width - piece.left))  # fmt: skip
            if inside[2] - inside[0] < 3 or inside[3] - inside[1] < 3:
                continue
            edges = [v + (y - piece.top_in if k % 2 == 0 else piece.left - piece.left_in) for k, v in enumerate(inside)]
            centre = ((edges[0] + edges[2]) / 2, (edges[1] + edges[3]) / 2)
            whole = (bottom - top) * (right - left)
            self.truth.append({
                "centroid-0": round(centre[0], 1), "centroid-1": round(centre[1], 1),
                **{f"bbox-{k}": round(v) for k, v in enumerate(edges)},
                "class": cell.name, "field": chosen.name,
                "cut": bool((inside[2] - inside[0]) * (inside[3] - inside[1]) < 0.98 * whole),
                "on_seam": bool(any(edges[k] // self.tile != edges[k + 2] // self.tile for k in (0, 1))),
                "zone": self.zone(*centre), "synthetic": True,
            })  # fmt: skip

    def zone(self, y: float, x: float) -> str:
        """Which part of the smear a place lies in."""
        if not self.zones:
            return "monolayer"
        x, y = x / self.width, y / self.height
        if not (0.05 < x < 0.95 and 0.05 < y < 0.95):
            return "glass"
        if x < 0.2:
            return "thick part"
        if x > 0.85:
            return "feathered edge"
        if 0.3 < x < 0.42 and 0.6 < y < 0.9:
            return "out of focus"
        return "pen" if 0.6 < x < 0.75 and 0.45 < y < 0.5 else "monolayer"

    @cached_property
    def _starts(self) -> list[list[int]]:
        return [[piece.left for piece in row] for row in self.rows]

    def strip(self, top: int, bottom: int) -> np.ndarray:
        """Rows ``top`` to ``bottom`` of level 0, (rows, width, 3) uint8."""
        if not self.zones:
            return self._bare(top, bottom)
        margin = int(6 / self.mpp)
        first = max(0, top - margin)
        image = self._bare(first, min(bottom + margin, self.height))
        y = np.arange(first, first + len(image)) / self.height
        for name in ZONES[1:]:
            x = [
                x
                for x in np.arange(64) / 64 + 1 / 128
                if any(self.zone(v * self.height, x * self.width) == name for v in y[::8])
            ]
            if x:
                self._disturb(image, image.copy(), name, y, first)
        return np.ascontiguousarray(image[top - first : bottom - first])

    def _disturb(self, image: np.ndarray, before: np.ndarray, name: str, y: np.ndarray, first: int) -> None:
        step = max(1, int(12 / self.mpp))
        for left in range(0, self.width, step):
            columns = slice(left, min(left + step, self.width))
            middle = (columns.start + columns.stop) / 2
            rows = np.array([self.zone(v * self.height, middle) == name for v in y])
            if not rows.any():
                continue
            part = image[:, columns][rows]
            if name == "glass":
                part = np.broadcast_to(LIGHT, part.shape)
            elif name == "thick part":
                for k in (2, 3, 5, 7):  # cells upon cells
                    part = part * (np.roll(before, self.piece // k, axis=1)[:: 1 - 2 * (k % 2), columns][rows] / LIGHT)
            elif name == "feathered edge":
                # A cell in six stays, the rest is film.
                keep = ((left // step) * 7919 + ((np.flatnonzero(rows) + first) // step) * 104729) % 6 == 0
                part = np.where(keep[:, None, None], part, LIGHT)
            elif name == "pen":
                part = part * np.array([0.12, 0.28, 0.62])
            else:
                margin = int(6 / self.mpp)
                wide = image[:, max(0, columns.start - margin) : columns.stop + margin]
                soft = np.asarray(Image.fromarray(wide).filter(ImageFilter.GaussianBlur(2.5 / self.mpp)))
                start = columns.start - max(0, columns.start - margin)
                part = soft[:, start : start + columns.stop - columns.start][rows]
            image[np.flatnonzero(rows), columns] = np.clip(part, 0, 255).astype(np.uint8)

    def _bare(self, top: int, bottom: int) -> np.ndarray:
        out = np.empty((bottom - top, self.width, 3), np.uint8)
        for row in range(top // self.pitch, min(-(-bottom // self.pitch), len(self.rows))):
            y = row * self.pitch
            first, last = max(top, y), min(bottom, y + self.pitch)
            for piece in self.rows[row]:
                image = self.fields[piece.source].image
                # A field lower than the row is turned over at its edge.
                lines = (np.arange(first, last) - y + piece.top_in) % (2 * len(image))
                lines = np.minimum(lines, 2 * len(image) - 1 - lines)
                columns = slice(piece.left, min(piece.left + piece.width, self.width))
                out[first - top : last - top, columns] = image[
                    lines, piece.left_in : piece.left_in + columns.stop - columns.start
                ]
        return out

    def region(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """A part of level 0, as it was before compression."""
        return self.strip(top, bottom)[:, left:right]

    def fields_of(self) -> Iterator[tuple[Piece, int]]:
        """Pieces with white cells and their rows' tops."""
        for k, row in enumerate(self.rows):
            for piece in row:
                if piece.source < len(self.with_cells):
                    yield piece, k * self.pitch

    def piece_at(self, y: int, x: int) -> Piece:
        row = y // self.pitch
        return self.rows[row][bisect_right(self._starts[row], x) - 1]


class Levels:
    """Strips of every level, finest first; coarser levels wait on disk until it is their turn."""

    def __init__(self, smear: Smear, factor: int, folder: Path) -> None:
        self.smear, self.factor, self.folder = smear, factor, folder
        self.shapes = [(smear.height, smear.width)]
        while max(self.shapes[-1]) > 1024:
            self.shapes.append(tuple(-(-n // factor) for n in self.shapes[-1]))

    def strips(self, level: int) -> Iterator[np.ndarray]:
        """Rows of tiles of a level, each at most a tile high."""
        (height, width), tile = self.shapes[level], self.smear.tile
        below = (self.folder / f"{level + 1}.raw").open("wb") if level + 1 < len(self.shapes) else None
        above = None if level == 0 else (self.folder / f"{level}.raw").open("rb")
        for top in range(0, height, tile):
            rows = min(tile, height - top)
            if above is None:
                strip = self.smear.strip(top, top + rows)
            else:
                strip = np.fromfile(above, np.uint8, rows * width * 3).reshape(rows, width, 3)
            if below is not None:
                reduced(strip, self.factor).tofile(below)
            yield strip
        for file in (below, above):
            if file is not None:
                file.close()

    def tiles(self, level: int) -> Iterator[np.ndarray]:
        """Square tiles, those at the edge filled up."""
        tile = self.smear.tile
        for strip in self.strips(level):
            padded = np.pad(strip, ((0, tile - len(strip)), (0, -strip.shape[1] % tile), (0, 0)), mode="edge")
            for left in range(0, padded.shape[1], tile):
                yield np.ascontiguousarray(padded[:, left : left + tile])


def reduced(strip: np.ndarray, factor: int) -> np.ndarray:
    rows, columns = (-(-n // factor) * factor for n in strip.shape[:2])
    strip = np.pad(strip, ((0, rows - strip.shape[0]), (0, columns - strip.shape[1]), (0, 0)), mode="edge")
    total = np.zeros((rows // factor, columns // factor, 3), np.uint16)
    for dy in range(factor):
        for dx in range(factor):
            total += strip[dy::factor, dx::factor]
    return ((total + factor * factor // 2) // (factor * factor)).astype(np.uint8)


def write_tiff(path: Path, levels: Levels, quality: int) -> None:
    import tifffile

    smear = levels.smear
    ome, svs = path.name.endswith((".ome.tif", ".ome.tiff")), path.suffix == ".svs"
    how = {"tile": (smear.tile, smear.tile), "compression": "jpeg", "compressionargs": {"level": quality}}
    how |= {"photometric": "rgb", "dtype": "uint8"} | ({} if svs else {"resolutionunit": "CENTIMETER"})
    with tifffile.TiffWriter(path, bigtiff=True, ome=ome) as tiff:
        for k, (height, width) in enumerate(levels.shapes):
            mpp = smear.mpp * smear.width / width
            extra: dict[str, Any] = {"resolution": (1e4 / mpp, 1e4 / mpp)}
            if ome and k == 0:
                sizes = {f"PhysicalSize{a}": mpp for a in "XY"} | {f"PhysicalSize{a}Unit": "µm" for a in "XY"}
                extra |= {
                    "subifds": len(levels.shapes) - 1,
                    "metadata": {"axes": "YXS", "Name": path.name, "Description": SYNTHETIC, **sizes},
                }
            elif svs:
                text = f"Aperio Image Library v0\r\n{smear.width}x{smear.height} [0,0 {width}x{height}] ({smear.tile}x{smear.tile}) JPEG/RGB Q={quality}"
                extra = {
                    "description": f"{text}|AppMag = 40|MPP = {smear.mpp}|Title = {SYNTHETIC}",
                    "metadata": None,
                    "subfiletype": 0,
                }
            else:
                extra |= {"description": SYNTHETIC if k == 0 else None, "metadata": None, "subfiletype": int(k > 0)}
            if ome and k:
                extra |= {"subfiletype": 1, "metadata": None}
            tiff.write(levels.tiles(k), shape=(height, width, 3), **how, **extra)
            if svs and k == 0:
                _associated(tiff, smear, "thumbnail")
        if svs:
            _associated(tiff, smear, "label")
            _associated(tiff, smear, "macro")


def _associated(tiff: Any, smear: Smear, name: str) -> None:
    picture = Image.new("RGB", (400, 300), tuple(int(v) for v in LIGHT))
    text = "Aperio Image Library v0\r\n"
    if name == "thumbnail":
        text += f"{smear.width}x{smear.height} -> 400x300 - |AppMag = 40|MPP = {smear.mpp}"
    else:
        ImageDraw.Draw(picture).text((20, 20), "SYNTHETIC\nName of nobody", fill="black")
        text += f"{name} 400x300"
    kind = {"label": 1, "macro": 9}.get(name, 0)
    tiff.write(
        np.asarray(picture), photometric="rgb", compression="jpeg", rowsperstrip=16 * 19, description=text,
        metadata=None, subfiletype=kind,
    )  # fmt: skip


def write_zarr(path: Path, levels: Levels, version: str) -> None:
    import zarr

    smear, old = levels.smear, version == "0.4"
    root = zarr.open_group(str(path), mode="w", zarr_format=2 if old else 3)
    for k, (height, width) in enumerate(levels.shapes):
        chunks = (3, smear.tile, smear.tile)
        more = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if old else {}
        array = root.create_array(str(k), shape=(3, height, width), chunks=chunks, dtype="uint8", **more)
        for n, strip in enumerate(levels.strips(k)):
            array[:, n * smear.tile : n * smear.tile + len(strip)] = np.moveaxis(strip, -1, 0)
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "yx")]
    sets = []
    for k, (height, width) in enumerate(levels.shapes):
        steps = [1.0, smear.mpp * smear.height / height, smear.mpp * smear.width / width]
        sets.append({"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": steps}]})
    scales = [{"name": SYNTHETIC, "axes": axes, "datasets": sets} | ({"version": "0.4"} if old else {})]
    root.attrs.update({"multiscales": scales} if old else {"ome": {"version": "0.5", "multiscales": scales}})


def write_slide(path: Path, smear: Smear, *, factor: int = 4, quality: int = 85, ngff: str = "0.5") -> Path:
    """Write a slide in the format of its suffix, and its truth table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        levels = Levels(smear, factor, Path(folder))
        if path.name.endswith(".zarr"):
            write_zarr(path, levels, ngff)
        else:
            write_tiff(path, levels, quality)
    truth = path.with_name(path.name + ".truth.csv")
    with truth.open("w", newline="") as stream:
        writer = csv.DictWriter(
            stream, list(smear.truth[0]) if smear.truth else ["centroid-0", "centroid-1", "synthetic"]
        )
        writer.writeheader()
        writer.writerows(smear.truth)
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(8192, 8192), metavar=("COLUMNS", "ROWS"))
    parser.add_argument("--cells", type=int, default=100, help="fields with white cells")
    parser.add_argument("--mpp", type=float, default=0.25)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--factor", type=int, default=4, help="from level to level")
    parser.add_argument("--quality", type=int, default=85, help="of the JPEG tiles")
    parser.add_argument("--ngff", choices=("0.4", "0.5"), default="0.5")
    parser.add_argument("--zones", action="store_true", help="with glass, thick part, feathered edge, pen and blur")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    smear = Smear(args.data, tuple(args.size), args.cells, args.mpp, tile=args.tile, seed=args.seed, zones=args.zones)
    truth = write_slide(args.slide, smear, factor=args.factor, quality=args.quality, ngff=args.ngff)
    print(f"{args.slide}: {len(smear.truth)} white cells, {sum(t['on_seam'] for t in smear.truth)} on seams; {truth}")


if __name__ == "__main__":
    main()

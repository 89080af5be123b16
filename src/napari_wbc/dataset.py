"""Labelled cells to train and judge networks on, in whatever form they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .class_names import UNIDENTIFIED

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
COLUMNS = ("file", "class", "group", "split", "y0", "x0", "y1", "x1", "mask", "mpp")
"""A row a cell: its picture; class; patient or slide ("" if unknown); given split; box in pixels (NaN: the whole
picture shows one cell); or a picture of its mask; µm per pixel (NaN if unknown)."""
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MOST_CLASSES = 1000
MOST_PIXELS = 250_000_000


class DatasetError(ValueError):
    """The data cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Labelled cells.

    Parameters
    ----------
    name : str
        Of the folder or table.
    table : pandas.DataFrame
        A row a cell; columns `COLUMNS`.
    problems : tuple of (str, str)
        File and what is wrong with it; such files are left out.
    root : pathlib.Path or None
        Folder or table that they were read from.
    """

    name: str
    table: pd.DataFrame = field(repr=False)
    problems: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    root: Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for column in COLUMNS:
            if column not in self.table:
                missing = "" if column in ("file", "class", "group", "split", "mask") else np.nan
                self.table[column] = missing
        if self.table.empty:
            seen = "; ".join(f"{file}: {text}" for file, text in self.problems[:3])
            raise DatasetError(
                f"{self.name}: no labelled picture found{f' ({seen})' if seen else ''}; give a folder with one folder "
                "a class, a CSV with the columns file and class, or a folder with boxes or masks (see the "
                "documentation on training)"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in order of the alphabet."""
        return tuple(sorted(self.table["class"].unique()))

    def __len__(self) -> int:
        return len(self.table)

    def summary(self) -> pd.DataFrame:
        """Cells of each class and given split, and how many groups they come from."""
        split = self.table["split"].replace("", "no split")
        counts = pd.crosstab(self.table["class"], split)
        counts["all"] = counts.sum(axis=1)
        groups = self.table[self.table["group"] != ""].groupby("class")["group"].nunique()
        counts["groups"] = groups.reindex(counts.index).fillna(0).astype(int)
        return counts

    def mapped(self, classes: Mapping[str, str]) -> Dataset:
        """The same cells under other class names; classes that map to "" or are not named are left out.

        Raises
        ------
        DatasetError
            If a named class is not there.
        """
        unknown = set(classes) - set(self.classes)
        if unknown:
            raise DatasetError(
                f"{self.name}: there is no class {', '.join(map(repr, sorted(unknown)))}; there are "
                f"{', '.join(self.classes)}"
            )
        table = self.table.assign(**{"class": self.table["class"].map(dict(classes)).fillna("")})
        return replace(self, table=table[table["class"] != ""].reset_index(drop=True))

    def of_split(self, split: str) -> Dataset:
        """The cells of one given split."""
        return replace(self, table=self.table[self.table["split"] == split].reset_index(drop=True))

    def rows(self, rows: npt.NDArray[np.int64]) -> Dataset:
        """The cells of these numbers, in this order."""
        return replace(self, table=self.table.iloc[rows].reset_index(drop=True))


def read_dataset(path: str | Path) -> Dataset:
    """Read labelled cells, whatever form they come in.

    Parameters
    ----------
    path : str or pathlib.Path
        One of

        - a folder with one folder a class (ImageFolder), perhaps below ``train``, ``val`` and ``test``; crops that
          ``napari-wbc crop`` wrote keep their slides as groups, and corrected ones their corrected class;
        - a CSV file, or a folder with ``labels.csv``: columns ``file`` and ``class``; ``group`` (patient or slide),
          ``split`` and ``mpp`` where known;
        - a folder with ``images``, VOC boxes in ``annotations`` and ``labels.csv`` (columns ``image``, ``types``),
          types of whole pictures: only pictures with one white cell and one type are used;
        - a folder with ``images`` and ``masks`` of the same names (0 background, 128 cytoplasm, 255 nucleus of the
          one cell in the middle) and ``classes.csv`` (columns ``file``, ``class``) in it or beside it.

    Returns
    -------
    Dataset

    Raises
    ------
    DatasetError
        If there is nothing to learn from; the message says what to do.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    if path.is_file():
        found = read_table(path, path.parent)
    elif (path / "annotations").is_dir() and (path / "images").is_dir():
        found = _from_boxes(path)
    elif (path / "masks").is_dir() and (path / "images").is_dir():
        found = _from_masks(path)
    elif (path / "labels.csv").is_file():
        found = read_table(path / "labels.csv", path)
    else:
        found = _from_folders(path)
    return replace(found, root=path)


def join(datasets: Sequence[Dataset]) -> Dataset:
    """The cells of several sets in one; their groups stay apart, and their own splits are kept."""
    tables = [
        d.table.assign(group=d.table["group"].where(d.table["group"] == "", d.name + "/" + d.table["group"]))
        for d in datasets
    ]
    problems = tuple(problem for d in datasets for problem in d.problems)
    return Dataset("+".join(d.name for d in datasets), pd.concat(tables, ignore_index=True), problems)


def _read_csv(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, ValueError, OSError) as error:
        raise DatasetError(f"{path}: not a readable CSV table ({error}); save it as CSV in UTF-8") from error
    missing = [name for name in needed if name not in table]
    if missing:
        raise DatasetError(
            f"{path}: column {', '.join(map(repr, missing))} is missing; it has {', '.join(map(repr, table.columns))}"
        )
    return table


def read_table(path: Path, root: Path) -> Dataset:
    """Cells of a CSV table whose files lie below `root`: columns file, class, and where given group, split, mpp and
    the box x0, y0, x1, y1.

    Raises
    ------
    DatasetError
        If the table cannot be read or names no picture that is there.
    """
    table = _read_csv(path, ("file", "class"))
    problems: list[tuple[str, str]] = []
    rows = []
    for row in table.to_dict("records"):
        file, name = row["file"].strip(), row["class"].strip()
        found = _find(root, file, name, row.get("split", "").strip())
        if not name or name == UNIDENTIFIED:
            problems.append((file, "no class"))
        elif found is None:
            problems.append((file, "no such file"))
        elif fault := _fault(row):
            problems.append((file, fault))
        else:
            rows.append({**row, "file": str(found), "class": name})
    known = [column for column in COLUMNS[2:] if column in table and column != "mask"]
    result = pd.DataFrame(rows, columns=["file", "class", *known])
    if "split" in result:
        result["split"] = result["split"].map(lambda v: SPLITS.get(str(v).strip().lower(), ""))
    for column in set(known) & {"mpp", "x0", "y0", "x1", "y1"}:
        result[column] = pd.to_numeric(result[column], errors="coerce")
    return Dataset(root.name if path.name == "labels.csv" else path.stem, result, tuple(problems))


def _fault(row: Mapping[Any, Any]) -> str:
    """What is wrong with the box or the scale of a row; empty if nothing is."""
    from .single import PLAUSIBLE_MPP

    def number(key: str) -> float:
        try:
            return float(row[key])
        except ValueError:
            return np.nan

    told = [key for key in ("x0", "y0", "x1", "y1") if row.get(key, "").strip()]
    if told:
        if len(told) < 4 or not all(np.isfinite(number(key)) for key in told):
            return "its box needs the four numbers x0, y0, x1, y1"
        if number("x1") - number("x0") < 1 or number("y1") - number("y0") < 1:
            return "its box is empty"
    if row.get("mpp", "").strip() and not PLAUSIBLE_MPP[0] <= number("mpp") <= PLAUSIBLE_MPP[1]:
        return f"mpp is {row['mpp']}, but must be from {PLAUSIBLE_MPP[0]} to {PLAUSIBLE_MPP[1]} µm per pixel"
    return ""


def _find(root: Path, file: str, name: str, split: str) -> Path | None:
    """The file beside the table, or where trees of splits and classes keep it."""
    if not file or "\0" in file:
        return None
    with suppress(OSError):  # a name that is too long for a file
        for candidate in (root / file, root / split / name / Path(file).name):
            if candidate.is_file():
                return candidate
    return None


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _from_folders(path: Path) -> Dataset:
    slides = _slides_of_crops(path)
    rows, problems = [], []
    top = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    splits = {p: SPLITS[p.name.lower()] for p in top if p.name.lower() in SPLITS}
    roots = [(p, splits[p]) for p in splits] if splits and len(splits) == len(top) else [(path, "")]
    for root, split in roots:
        for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
            if folder.name in (UNIDENTIFIED, "unclassified"):
                problems.append((folder.name, "cells without a class are left out"))
                continue
            rows += [
                {"file": str(file), "class": folder.name, "split": split, "group": slides.get(_within(file, path), "")}
                for file in _pictures(folder)
            ]
    if len({row["class"] for row in rows}) > MOST_CLASSES:
        raise DatasetError(f"{path}: more than {MOST_CLASSES} folders with pictures; give one folder a class")
    return Dataset(path.name, pd.DataFrame(rows, columns=["file", "class", "split", "group"]), tuple(problems))


def _within(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _slides_of_crops(path: Path) -> dict[str, str]:
    """Slides of crops that ``napari-wbc crop`` wrote, by file."""
    from .crop_folder import TABLE
    from .tables import exact

    if not (path / TABLE).is_file():
        return {}
    table = _read_csv(path / TABLE, ("file", "slide"))
    by_name = dict(zip(table["file"].map(exact), table["slide"], strict=True))
    # Corrected crops lie in another class's folder now; their names are still theirs.
    names = {Path(file).name: slide for file, slide in by_name.items()}
    return by_name | {_within(p, path): names[p.name] for p in _pictures(path) if p.name in names}


def _from_boxes(path: Path) -> Dataset:
    """VOC boxes with types of whole pictures (BCCD)."""
    labels = _read_csv(path / "labels.csv", ("image", "types"))
    rows, problems = [], []
    for row in labels.to_dict("records"):
        stem = Path(row["image"]).stem
        types = [t.strip().lower() for t in row["types"].split(";") if t.strip()]
        image = next((p for p in (path / "images").glob(f"{_literal(stem)}.*") if p.suffix.lower() in SUFFIXES), None)
        if image is None:
            problems.append((row["image"], "no such picture"))
            continue
        try:
            boxes = _white_cell_boxes(path / "annotations" / f"{stem}.xml")
        except (OSError, ValueError) as error:
            problems.append((row["image"], f"its boxes cannot be read: {error}"))
            continue
        if len(types) != 1 or len(boxes) != 1:
            problems.append((row["image"], f"{len(boxes)} white cells and {len(types)} types: not used"))
            continue
        x0, y0, x1, y1 = boxes[0]
        rows.append({"file": str(image), "class": types[0], "y0": y0, "x0": x0, "y1": y1, "x1": x1})
    return Dataset(path.name, pd.DataFrame(rows, columns=["file", "class", "y0", "x0", "y1", "x1"]), tuple(problems))


def _literal(stem: str) -> str:
    import glob

    return glob.escape(stem)


def _white_cell_boxes(file: Path) -> list[tuple[float, float, float, float]]:
    from xml.parsers import expat

    if file.stat().st_size > 10_000_000:
        raise ValueError("more than 10 MB of boxes")
    stack: list[str] = []
    boxes: list[dict[str, str]] = []
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ValueError("it declares entities, which are not read")

    def start(name: str, _: dict[str, str]) -> None:
        stack.append(name)
        if name == "object":
            boxes.append({})

    def end(_: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        if boxes and "object" in stack and stack[-1] in ("name", "xmin", "ymin", "xmax", "ymax"):
            boxes[-1][stack[-1]] = boxes[-1].get(stack[-1], "") + data

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(file.read_bytes(), True)
    except expat.ExpatError as error:
        raise ValueError(str(error)) from error
    white = [box for box in boxes if box.get("name", "").strip().upper() == "WBC"]
    try:
        found = [tuple(float(box[k]) for k in ("xmin", "ymin", "xmax", "ymax")) for box in white]
    except KeyError as error:
        raise ValueError(f"a box without {error}") from error
    if not all(np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1] for box in found):
        raise ValueError("a box that is empty or no number")
    return found  # type: ignore[return-value]


def _from_masks(path: Path) -> Dataset:
    """Pictures of one cell with masks of nucleus and cytoplasm (segmentation_WBC)."""
    table_path = next((p for p in (path / "classes.csv", path.parent / "classes.csv") if p.is_file()), None)
    if table_path is None:
        raise DatasetError(f"{path}: classes.csv is missing, in it or beside it: columns file and class")
    table = _read_csv(table_path, ("file", "class"))
    if "dataset" in table:
        table = table[table["dataset"].isin({path.name, path.name.removeprefix("dataset")})]
    rows, problems = [], []
    for row in table.to_dict("records"):
        image, mask = (path / kind / Path(row["file"]).name for kind in ("images", "masks"))
        if not row["class"].strip():
            problems.append((row["file"], "no class"))
            continue
        if not image.is_file() or not mask.is_file():
            problems.append((row["file"], "no such picture or mask"))
            continue
        rows.append({"file": str(image), "class": row["class"], "mask": str(mask), "group": row.get("group", "")})
    return Dataset(path.name, pd.DataFrame(rows, columns=["file", "class", "mask", "group"]), tuple(problems))

"""Results back into napari: a folder of results, one of its files, or a whole run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .record import FORMAT

if TYPE_CHECKING:
    from napari.layers import Labels

LayerTuple = tuple[Any, dict[str, Any], str]
Reader = Callable[[Any], "list[LayerTuple | Labels]"]
# More pictures than this at once are no use in a viewer.
MAX_FIELDS = 12
_TABLES = ("cells.csv", "cells.parquet")
_RESULTS = (*_TABLES, "cells.geojson", "labels.tif")
_MARK = "napari-wbc"


def get_reader(path: Any) -> Reader | None:
    """Return a reader for results of this package, None for everything else.

    Parameters
    ----------
    path : str or list of str
        A folder with ``cells.csv`` (or ``cells.parquet``) and ``labels.tif``,
        one of these files beside the others, a table of cells by itself, or
        a run's folder or ``run.json``.

    Returns
    -------
    callable or None
        Takes the path, returns layer data tuples, and label images as layers, which they must be to be outlines.
    """
    if not isinstance(path, str | Path):
        return None
    try:
        return _reader_for(Path(path))
    except (OSError, ValueError):  # not readable, not a legal name: not ours
        return None


def _reader_for(path: Path) -> Reader | None:
    folder = path if path.is_dir() else path.parent
    if (path.is_dir() or path.name in _RESULTS) and _has_results(folder):
        return _read_folder
    run = path / "run.json" if path.is_dir() else path
    if run.name == "run.json" and run.is_file() and FORMAT in _head(run):
        return _read_run
    if path.is_file() and _is_table(path):
        return _read_table
    return None


def _has_results(folder: Path) -> bool:
    names = {name for name in (*_TABLES, "labels.tif", "slide.json") if (folder / name).is_file()}
    return bool(names & {"labels.tif", "slide.json"}) and bool(names & set(_TABLES))


def _head(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(2000).decode("utf-8", "replace")


def _is_table(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _is_header(_head(path).partition("\n")[0].lstrip("\ufeff").replace('"', "").split(","))
    if suffix == ".geojson":
        return "FeatureCollection" in (head := _head(path)) and f'"{_MARK}"' in head
    if suffix == ".parquet":
        from pyarrow.parquet import read_schema

        try:
            return _is_header(read_schema(path).names)
        # pyarrow raises whatever a broken file makes it raise.
        except Exception:  # noqa: BLE001
            return False
    return False


def _is_header(names: list[str]) -> bool:
    return {"slide", "label", "centroid-0", "centroid-1"} <= set(names)


def _read_folder(path: Any) -> list[LayerTuple | Labels]:
    path = Path(path)
    return _layers(path if path.is_dir() else path.parent)


def _read_table(path: Any) -> list[LayerTuple | Labels]:
    from ._widgets._layers import layers_of
    from .export import read_cells

    return list(layers_of(read_cells(path), None, Path(path).stem))


def _read_run(path: Any) -> list[LayerTuple | Labels]:
    from .export import ExportError

    path = Path(path)
    run = path / "run.json" if path.is_dir() else path
    try:
        inputs = json.loads(run.read_text("utf-8"))["inputs"]
        names = [Path(entry["result"]).name for entry in inputs if entry["result"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(f"{run}: damaged or cut short ({error}); open the folders of results one by one") from error
    folders = [run.parent / name for name in names if _has_results(run.parent / name)]
    if len(folders) > MAX_FIELDS:
        warnings.warn(
            f"the run has {len(folders)} pictures; the first {MAX_FIELDS} are opened, open other folders one by one",
            stacklevel=2,
        )
    if not folders:
        raise ExportError(f"{run}: none of its folders of results is there; annotate the pictures again")
    return [
        _one_of(layer, folder, seen=folder == folders[0])
        for folder in folders[:MAX_FIELDS]
        for layer in _layers(folder, folder.name)
    ]


def _one_of(layer: LayerTuple | Labels, folder: Path, *, seen: bool) -> LayerTuple | Labels:
    """Mark a layer as one of a picture of a run; one picture is seen at a time, since they lie on each other."""
    from ._widgets._source import OfRun

    if isinstance(layer, tuple):
        attributes = layer[1]
        shown = attributes.get("visible", True)
        attributes["visible"] = seen and shown
        attributes.setdefault("metadata", {})[OfRun.KEY] = OfRun(folder.absolute(), shown)
    else:
        layer.visible = seen
        layer.metadata[OfRun.KEY] = OfRun(folder.absolute())
    return layer


def _layers(folder: Path, name: str = "") -> list[LayerTuple | Labels]:
    from ._widgets._layers import Shared, layers_of
    from .export import read_results

    results = read_results(folder)
    slide = _slide(results.image) if results.image is not None and results.labels is None else []
    place: dict[str, Any] = (
        {name: slide[0][1][name] for name in ("scale", "units") if name in slide[0][1]} if slide else {}
    )
    extent = slide[0][0][0].shape[:2] if slide else None
    layers = list(layers_of(results.cells, results.labels, name, place.get("scale", (1.0, 1.0)), extent))
    for _, attributes, _ in layers:
        attributes.update(place)
        ours = attributes.setdefault("metadata", {}).setdefault(_MARK, {})
        # So that a review writes its decisions where the results are.
        ours.update(folder=str(folder.absolute()), read=Shared(results.cells))
        if results.image is not None:  # so that a picture can be drawn again when corrected cells are saved
            ours["picture"] = str(results.image)
    if results.image is not None and results.labels is not None:
        slide = _picture(results.image, results.labels.shape, name)
    return [*slide, *map(_outlined, layers)]


def _outlined(layer: LayerTuple) -> LayerTuple | Labels:
    """Show cells as outlines, which hide nothing of them; the attributes of a label image cannot say so."""
    from napari.layers import Labels

    from ._widgets._layers import draw_outlines

    data, attributes, kind = layer
    if kind != "labels":
        return layer
    labels = Labels(data, **attributes)
    draw_outlines(labels, data.shape)
    return labels


def _slide(path: Path) -> list[LayerTuple]:
    """Return the slide, on which the cells are laid."""
    from ._slide_reader import read_slide
    from .slide import ImageError

    try:
        return read_slide(path)
    except (ImageError, OSError):  # it has gone bad since; the results are still good
        return []


def _picture(path: Path, shape: tuple[int, ...], name: str) -> list[LayerTuple]:
    from .slide import ImageError, Slide

    try:
        image = Slide.open(path).image
    except (ImageError, OSError):  # it has gone bad since; the results are still good
        return []
    if image.shape[:2] != shape:
        return []
    return [(image, {"name": name or path.name, "rgb": True, "metadata": {"path": str(path)}}, "image")]

"""What is kept of a slide of a batch: made wherever there is room, written by the one who holds the folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .cells import COLUMNS, PROBABILITY_PREFIX, Cells
from .count import differential
from .export import BATCH_FOLDER, write_results

if TYPE_CHECKING:
    from .pipeline import Analysis

_THUMBNAIL = 1024
_TYPES = {"str": "string", "bool": "bool", "int64": "int64", "float64": "float64"}


@dataclass(frozen=True)
class Made:
    """The results of a slide as bytes.

    Parameters
    ----------
    facts : dict
        As `facts_of` gives them.
    part : bytes
        As `part_of` gives it.
    files : dict of str to bytes
        Of the folder of results, by their paths in it.
    """

    facts: dict[str, Any]
    part: bytes = field(repr=False)
    files: dict[str, bytes] = field(repr=False)

    @classmethod
    def of(cls, analysis: Analysis, ome_labels: bool) -> Made:
        """Make the results of a slide."""
        with TemporaryDirectory(prefix="napari-wbc-") as scratch:
            folder = write_results(
                analysis, Path(scratch) / "results", also=lambda fresh: also(analysis, fresh, ome_labels)
            )
            found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
        return cls(facts_of(analysis), part_of(analysis.cells), files)


def facts_of(analysis: Analysis) -> dict[str, Any]:
    """Return what the record of a finished slide says of its results."""
    look, rows = analysis.appearance, differential(analysis.cells).to_dict("records")
    return {
        "cells": len(analysis.cells), "mpp": look.mpp, "mpp_source": look.mpp_source,
        "notes": list(analysis.notes), "threshold": analysis.threshold,
        "counts": {row["class"]: {key: row[key] for key in ("n", "value", "low", "high")} for row in rows},
    }  # fmt: skip


def part_of(cells: Cells) -> bytes:
    """Return the cells of one slide as a part of a data set: one without rows has the same types as the others."""
    import pyarrow as pa
    from pyarrow import parquet

    types = {name: _TYPES[column.dtype] for name, column in COLUMNS.items() if name != "slide"}
    types |= {PROBABILITY_PREFIX + name: "float64" for name in cells.classes}
    schema = pa.schema([(name, pa.type_for_alias(alias)) for name, alias in types.items()])
    buffer = BytesIO()
    table = pa.Table.from_pandas(cells.table[list(types)], schema=schema, preserve_index=False)
    parquet.write_table(table.replace_schema_metadata(None), buffer)
    return buffer.getvalue()


def also(analysis: Analysis, folder: Path, ome_labels: bool) -> None:
    """Write what a batch keeps beyond what `napari_wbc.export.write_results` writes."""
    from .density import density, density_map
    from .ome_labels import write_ome_labels
    from .picture import dotted

    slide = analysis.slide
    image = slide.thumbnail(_THUMBNAIL)
    step = slide.shape[1] / image.shape[1]
    dotted(image, analysis.cells, step).save(folder / "thumbnail.png", compress_level=2)
    if analysis.whole is not None:
        per_mm2, _ = density(analysis.cells, slide.shape, analysis.appearance.mpp)
        density_map(image, per_mm2).save(folder / "density.png", compress_level=2)
    if ome_labels:
        write_ome_labels(analysis, folder / BATCH_FOLDER)

"""The commands that read results: ``report`` and ``export``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .console import ALL_FAILED, USAGE, need, say, stop, told
from .words import plural

if TYPE_CHECKING:
    from .case import Case

Results = Annotated[Path, typer.Argument(help="Folder of results: of one picture, or of a run.", show_default=False)]
Image = Annotated[Path | None, typer.Option(help="Where the picture is now (or its folder), if it was moved.")]


@contextmanager
def _errors() -> Iterator[None]:
    """Turn what results and pictures can be wrong with into a message and an exit code."""
    from .cells import CellsError
    from .slide import ImageError

    try:
        with told():
            yield
    except (CellsError, ImageError, OSError) as error:
        stop(str(error), ALL_FAILED)
    except ValueError as error:  # what the user entered
        stop(str(error), USAGE)


def report(
    results: Results,
    output: Annotated[
        Path, typer.Option("--output", "-o", show_default=False, help="File to write: .html, .json or .csv.")
    ],
    slide_id: Annotated[str, typer.Option(help="As it shall stand in the report.")] = "",
    patient_id: Annotated[str, typer.Option(help="As it shall stand in the report.")] = "",
    wbc: Annotated[
        str, typer.Option(metavar="NUMBER", help="White cells per µL, for absolute counts: 6.4 × 10⁹/L is 6400.")
    ] = "",
    count: Annotated[
        Literal["100", "200", "400", "all"] | None,
        typer.Option(help="White cells to count, spread evenly over the smear; as in the review if not given."),
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, max=200, help="Cells of each class to show.")] = 16,
    ranges: Annotated[Path | None, typer.Option(help="Reference ranges of your own, TOML.")] = None,
    image: Image = None,
    json: Annotated[bool, typer.Option("--json", help="Write the same as JSON beside it.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Write the same as CSV beside it.")] = False,
) -> None:
    """Write the report of a smear: differential, who reviewed what, the cells themselves, the model, in one file.

    The page needs nothing else, opens in any browser and prints to A4. It is preliminary until no cell is
    unidentified and the review is signed.
    """
    from .reference import load_ranges, parse_wbc
    from .report import SUFFIXES, Asked, write_report

    if output.suffix.lower() not in SUFFIXES:
        stop(f"{output}: give a file that ends in {', '.join(SUFFIXES)}", USAGE)
    need(results, image, ranges)
    also = [suffix for suffix, wanted in ((".json", json), (".csv", csv)) if wanted]
    with _errors():
        target: Any = int(count) if count and count != "all" else count
        asked = Asked(slide_id, patient_id, parse_wbc(wbc), target, per_class, load_ranges(ranges))
        made = write_report(results, output, asked, image=image, also=also)
    if output.suffix.lower() == ".html":
        for note in made.pictures.missing:
            say(f"Note: {note}", error=True)
    if made.content["together"]:
        say(f"Note: {made.content['together']}")
    reasons, signed = made.content["preliminary"], made.content["signature"]
    if reasons:
        say(f"Preliminary: {'; '.join(reasons)}")
    if signed:
        say(f"Signed by {signed['name']}" + (f", with {signed['unseen']}" if signed["unseen"] else ""))
    files = dict.fromkeys([output, *(output.with_suffix(suffix) for suffix in also)])
    say(f"Report in {', '.join(map(str, files))}")
    say("Research use only.")


def export(
    results: Results,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            help="x.geojson for QuPath, x.json for COCO, or a folder for crops by class (ImageFolder).",
        ),
    ],
    image: Image = None,
    reviewed: Annotated[bool, typer.Option("--reviewed", help="Only cells that somebody reviewed.")] = False,
    side_um: Annotated[float | None, typer.Option(help="Side of a crop, µm; the model's own if not given.")] = None,
    pixels: Annotated[int | None, typer.Option(min=1, max=4096, help="Side of a crop, pixels; likewise.")] = None,
) -> None:
    """Write the cells of results for other programs: QuPath, COCO, or crops that train reads.

    The class of a cell is the one that counts: a reviewer's where somebody decided, else the model's.
    """
    from .case import check_outside, read_case
    from .coco import write_coco

    suffix = output.suffix.lower()
    if suffix not in (".geojson", ".json", ""):
        stop(f"{output}: give a file that ends in .geojson (QuPath) or .json (COCO), or a folder (crops)", USAGE)
    need(results, image)
    with _errors():
        case = read_case(results, image)
        check_outside(case, output)
        if reviewed:
            pictures = (
                replace(p, cells=p.cells.where((p.cells.table["class_reviewed"] != "").to_numpy()))
                for p in case.pictures
            )
            case = replace(case, pictures=tuple(pictures))
        left_out = 0
        if suffix == ".geojson":
            _write_geojson(case, output)
        elif suffix == ".json":
            left_out = write_coco(case, output)
        else:
            left_out = _write_crops(case, output, side_um, pixels)
    n = len(case.cells)
    say(f"{plural(n - left_out, 'cell')} of {plural(len(case.pictures), 'picture')} in {output}")
    if left_out:
        say(f"Note: left out, without outline or scale: {plural(left_out, 'cell')}")
    say("Research use only.")


def _write_geojson(case: Case, output: Path) -> None:
    from .atomic import new_file
    from .geojson import to_geojson

    if len(case.pictures) > 1:
        stop(
            f"{case.folder}: holds results of {len(case.pictures)} pictures, and QuPath opens the cells of one; give "
            f"one of their folders, such as {case.pictures[0].folder}",
            USAGE,
        )
    picture = case.pictures[0]
    with new_file(output) as fresh:
        fresh.write_text(to_geojson(picture.cells, picture.rings), encoding="utf-8")


def _write_crops(case: Case, output: Path, side_um: float | None, pixels: int | None) -> int:
    import numpy as np
    import numpy.typing as npt

    from .classifier import ModelCard
    from .crop import CropSize
    from .crop_folder import check_crop_folder, write_crops
    from .models import find_model
    from .whole import crop_slide

    check_crop_folder(output)
    own = ModelCard.from_json(find_model().read_text(encoding="utf-8")).crop
    try:
        size = CropSize(side_um if side_um is not None else own.side_um, pixels or own.pixels)
    except ValueError as error:
        stop(str(error), USAGE)
    scaled = np.isfinite(case.cells.table["mpp"].to_numpy())
    crops: list[npt.NDArray[np.uint8]] = []
    for k, picture in enumerate(case.pictures):
        rows = np.flatnonzero(scaled & (case.of == k))
        if len(rows):
            mpp = case.cells.table["mpp"].to_numpy()[rows]
            crops.extend(crop_slide(picture.slide, case.cells.centroids[rows], mpp, size))
    write_crops(crops, case.cells.where(scaled), output, mpp=size.side_um / size.pixels)
    return int((~scaled).sum())

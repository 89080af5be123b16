"""The command line: ``napari-wbc annotate slides/ -o results``."""

from __future__ import annotations

import math
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import cli_batch, cli_report, cli_search, cli_train
from .cli_shared import Device, Everywhere, Megapixels, Model, Threshold
from .console import (
    USAGE,
    Mpp,
    Run,
    bar,
    load_classifier,
    print_differential,
    print_table,
    result_line,
    say,
    stop,
    told,
)
from .inputs import printable
from .piped import serve_program
from .words import plural

_CODES = (
    "Exit codes: 0 all went well, 1 everything failed, 2 wrong usage, 3 some files failed (the others are done), "
    "130 stopped with Ctrl-C."
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find, classify and count white blood cells in stained smears. Research use only.",
    epilog=_CODES,
)


Images = Annotated[list[str], typer.Argument(help="Files, folders (with all in them) and patterns such as '*.png'.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that were corrected, too.")]


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console of Windows that knows no µ must not end the run
            stream.reconfigure(errors="replace")
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from .record import versions

        say(f"napari-wbc {versions()['napari-wbc']}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")] = False,
    progress: Annotated[
        Literal["bar", "json"],
        typer.Option(
            help="json, for programs that run dataset, train or evaluate: lines of JSON on standard error in place of "
            "a bar; and the command stops when its standard input closes."
        ),
    ] = "bar",
) -> None:
    if progress == "json":
        serve_program()


@app.command(epilog=_CODES)
def annotate(
    images: Images,
    output: Output,
    model: Model = None,
    mpp: Mpp = None,
    threshold: Threshold = None,
    device: Device = None,
    max_megapixels: Megapixels = 250.0,
    everywhere: Everywhere = False,
    overwrite: Overwrite = False,
) -> None:
    """Find, classify and count the white cells of pictures and whole slides.

    Each picture gets a folder with its cells (CSV, Parquet, GeoJSON for QuPath), labels and an
    annotated picture. differential.csv counts each picture and all together; run.json says how.
    Results that you corrected are kept and counted: the picture is not analysed then, and fails.
    """
    from .keep import ResultFolders
    from .record import Settings, count_run

    run = Run("annotate", images, Settings(mpp, threshold, max_megapixels, everywhere))
    classifier = load_classifier(model, device)
    run.work(classifier, ResultFolders(output, overwrite=overwrite))
    with told():
        if run.counted:
            blocks, pooled = count_run(run.counted)
            run.keep(output, classifier.card, blocks)
            print_differential(pooled, len(run.counted), sum(len(outcome.cells or ()) for outcome in run.counted))
        else:
            run.keep(output, classifier.card, None)
    run.end(f"Results in {output}")


@app.command(epilog=_CODES)
def segment(
    images: Images,
    output: Output,
    mpp: Mpp = None,
    max_megapixels: Megapixels = 250.0,
    overwrite: Overwrite = False,
) -> None:
    """Find and measure the white cells of pictures, without classes: labels.tif and cells.csv for each."""
    from .keep import ResultFolders
    from .record import Settings

    run = Run("segment", images, Settings(mpp, None, max_megapixels))
    run.work(None, ResultFolders(output, ("cells.csv", "labels.tif"), overwrite=overwrite))
    with told():
        run.keep(output, None, None)
    cells = sum(len(outcome.cells or ()) for outcome in run.done)
    say(f"{plural(cells, 'cell')} in {plural(len(run.done), 'picture')}")
    run.end(f"Results in {output}")


@app.command(epilog=_CODES)
def crop(
    images: Images,
    output: Output,
    side_um: Annotated[float | None, typer.Option(help="Side of a crop, µm; the model's own if not given.")] = None,
    pixels: Annotated[int | None, typer.Option(min=1, max=4096, help="Side of a crop, pixels; likewise.")] = None,
    model: Annotated[str | None, typer.Option(help="Model that sorts the crops; 'none' leaves them unsorted.")] = None,
    mpp: Mpp = None,
    threshold: Threshold = None,
    device: Device = None,
    max_megapixels: Megapixels = 250.0,
) -> None:
    """Cut out the white cells of pictures, all at one scale, into a folder for each class (ImageFolder)."""
    from .classifier import ModelCard
    from .crop import CropSize
    from .keep import CropFolder
    from .models import find_model
    from .record import Settings, pool

    run = Run("crop", images, Settings(mpp, threshold, max_megapixels))
    classifier = None if model == "none" else load_classifier(model, device)
    card = classifier.card if classifier else ModelCard.from_json(find_model().read_text(encoding="utf-8"))
    try:
        size = CropSize(side_um if side_um is not None else card.crop.side_um, pixels or card.crop.pixels)
    except ValueError as error:
        stop(str(error), USAGE)
    folder = CropFolder(output, size)
    run.work(classifier, folder)
    result = f"{plural(len(folder.crops), 'crop')} in {output}"
    if run.done:
        with told():
            if not folder.finish(pool(run.done), stopped=run.stopped):
                result = f"Nothing written: the crops of an earlier run stay in {output}"
    run.end(result)


@app.command(epilog=_CODES)
def classify(
    crops: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")] = Path("predictions.csv"),
    mpp: Mpp = None,
    model: Model = None,
    threshold: Threshold = None,
    device: Device = None,
) -> None:
    """Classify pictures of any size that each show one cell in their middle."""
    import pandas as pd

    from .atomic import check_writable, new_file
    from .record import SCALE_WORDS, Settings
    from .single import classify_crops
    from .tables import to_csv

    run = Run("classify", crops, Settings(mpp, threshold))
    classifier = load_classifier(model, device)
    with told():
        check_writable(output.parent)
    rows: list[dict[str, Any]] = [{"file": item.input.slide, "error": item.error} for item in run.missing]
    results = classify_crops([item.path for item in run.inputs], classifier, mpp, threshold=threshold)
    for result in bar(results, run.inputs):
        row = {"file": printable(result.path), "class": result.name, "probability": result.probability}
        values = result.probabilities.tolist() or [math.nan] * len(classifier.card.classes)
        row |= {f"p_{name}": value for name, value in zip(classifier.card.classes, values, strict=True)}
        row |= {"unlikeness": result.unlikeness, "reason": result.reason}
        rows.append(row | {"mpp": result.mpp, "scale": result.scale, "error": printable(result.error)})
        if result.error:
            run.fail(result.path, result.error)
    with told(), new_file(output) as fresh:
        table = pd.DataFrame(rows[len(run.missing) :] + rows[: len(run.missing)])
        fresh.write_text(to_csv(table), encoding="utf-8", newline="\n")
    done = [row for row in rows if not row["error"]]
    print_table(["class", "crops"], Counter(row["class"] for row in done).most_common())
    run.notes = Counter(f"scale {SCALE_WORDS.get(row['scale'], row['scale'])}" for row in done)
    run.end(f"{plural(len(done), 'prediction')} in {output}", len(done))


app.command(epilog=_CODES)(cli_batch.batch)
app.command(epilog="Research use only.")(cli_train.dataset)
app.command(epilog="Research use only.")(cli_train.train)
app.command(epilog="Research use only.")(cli_search.search)
app.command(epilog="Research use only.")(cli_train.evaluate)
app.command(epilog=_CODES)(cli_report.report)
app.command(epilog=_CODES)(cli_report.export)


@app.command()
def samples(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Copy the pictures into this folder.")] = None,
) -> None:
    """List the pictures that come with the package, or copy them."""
    from ._sample_data import samples as bundled
    from .atomic import new_file

    found = bundled()
    print_table(["picture", "shows", "licence"], [(s.path.name, s.title, s.licence) for s in found])
    if output is None:
        return
    with told():
        for sample in found:
            with new_file(output / sample.path.name) as fresh:
                fresh.write_bytes(sample.path.read_bytes())
        with new_file(output / "LICENCES.txt") as fresh:
            lines = (f"{s.path.name}\n    {s.source}\n    Licence: {s.licence}\n" for s in found)
            fresh.write_text("\n".join(lines), encoding="utf-8")
    say(f"{plural(len(found), 'picture')} in {output}")


@app.command()
def models() -> None:
    """List the models that come with the package, with what was measured of them."""
    from .classifier import ModelCard
    from .models import DEFAULT_MODEL, available_models

    for name, path in available_models().items():
        try:
            card = ModelCard.from_json(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            say(f"{name}: {path} cannot be used: {error}", error=True)
            continue
        default = " (default)" if name == DEFAULT_MODEL else ""
        say(f"{name}{default}: {card.network}, licence {card.licence or 'not given'}")
        if card.description:
            say(f"  {card.description}")
        say(f"  classes: {', '.join(card.classes)}")
        say(f"  crops: {card.crop.side_um:g} µm, {card.crop.pixels} pixels; threshold {card.threshold:g}")
        for data, results in groupby(card.results, key=lambda result: str(result.get("data", ""))):
            say(f"  measured on {data}")
            for result in results:
                say(f"    {result_line(result)}")


@app.command()
def info() -> None:
    """Print what a report of a fault should say: versions, device, threads, models."""
    import platform

    import torch

    from .classifier import best_device
    from .models import DEFAULT_MODEL, find_model
    from .record import versions

    device = best_device()
    facts = versions() | {
        "system": platform.platform(),
        "device": f"{device} ({torch.cuda.get_device_name()})" if device == "cuda" else device,
        "threads": str(torch.get_num_threads()),
        "package": str(Path(__file__).parent),
        "default model": f"{DEFAULT_MODEL} ({find_model().parent})",
        "cache": "models come with the package; only train downloads, ImageNet weights, into the cache of torch",
    }
    for name, value in facts.items():
        say(f"{name}: {value}")

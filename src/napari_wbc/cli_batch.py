"""``napari-wbc batch``: many slides, here or on a cluster, with a bar for the run and for each slide."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_shared import Device, Everywhere, Megapixels, Model, Threshold
from .console import (
    ALL_FAILED,
    SELDOM,
    SOME_FAILED,
    STOPPED,
    USAGE,
    Mpp,
    load_classifier,
    print_differential,
    say,
    say_notes,
    say_scales,
    stop,
    told,
)  # fmt: skip
from .inputs import printable
from .piped import Lines, is_piped
from .words import plural

_SHOWN = 5
"""So many of the paths at which nothing is are named."""
if TYPE_CHECKING:
    from .batch import Batch, Engine, Report
    from .batch_folder import Terms
    from .classifier import Classifier

_OFTEN = 0.2
_MOST_BARS = 12


def batch(
    slides: Annotated[list[str], typer.Argument(help="Files, folders, patterns; or a CSV with slide, patient, group.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; the same again goes on with it.")],
    model: Model = None,
    mpp: Mpp = None,
    threshold: Threshold = None,
    device: Device = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on this machine, by Dask.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running Dask scheduler, tcp://host:8786.")] = None,
    max_megapixels: Megapixels = 250.0,
    everywhere: Everywhere = False,
    ome_labels: Annotated[
        bool, typer.Option("--ome-labels", help="Write the cells as OME-NGFF labels, too: cells.ome.zarr.")
    ] = False,
) -> None:
    """Annotate many pictures and whole slides into one folder; what was stopped goes on.

    Each slide gets what annotate writes, and a thumbnail. summary.csv has a differential a slide; cells.parquet is all
    cells, partitioned by slide; run.json says how. Numbers do not depend on how many workers there are.
    """
    from .batch_folder import BatchFolder, Terms
    from .batch_list import ListError, list_slides
    from .record import Settings

    if workers is not None and scheduler is not None:
        stop("give --workers or --scheduler: a scheduler has workers of its own", USAGE)
    try:
        listed, notes = list_slides(slides)
    except ListError as error:
        stop(str(error), USAGE)
    if all(one.missing for one in listed):
        reasons = [printable(f"{one.input.path}: {one.missing}; ") for one in listed]
        more = f"and {len(reasons) - _SHOWN} more; " if len(reasons) > _SHOWN else ""
        stop(
            f"No slides found: {''.join(reasons[:_SHOWN])}{more}give files, folders with slides, patterns, or a CSV "
            "with a column slide.",
            USAGE,
        )
    for note in notes:
        say(f"Note: {note}")
    classifier = load_classifier(model, None if scheduler else device)
    terms = Terms(Settings(mpp, threshold, max_megapixels, everywhere), classifier.card, device, ome_labels)
    with told(), BatchFolder(output, terms).held() as folder:
        from .batch import Batch

        run = Batch(listed, folder)
        why = _work(run, _engine(classifier, terms, model, workers, scheduler))
    _end(run, output, why)


def _engine(
    classifier: Classifier, terms: Terms, model: str | None, workers: int | None, scheduler: str | None
) -> AbstractContextManager[Engine]:
    if workers is None and scheduler is None:
        from .batch import InProcess

        return nullcontext(InProcess(classifier, terms.settings))
    from .batch_cluster import Cluster

    if model is not None and Path(model).exists():
        model = str(Path(model).absolute())  # workers may have been started elsewhere
    return Cluster.started(terms, model, workers=workers, scheduler=scheduler)


def _work(run: Batch, starting: AbstractContextManager[Engine]) -> tuple[str, int]:
    """Do it, and return why it ended early, with an exit code; nothing if it did not."""
    from .atomic import ExportError

    try:
        with _shown() as show, starting as engine, closing(run.run(engine)) as reports:
            for report in reports:
                show(report, run)
    except KeyboardInterrupt:
        return "Stopped", STOPPED
    except ExportError as error:  # the disk is full
        return str(error), ALL_FAILED
    except RuntimeError as error:
        from .batch_cluster import ClusterError

        if not isinstance(error, ClusterError):
            raise
        return str(error), ALL_FAILED
    return "", 0


def _end(run: Batch, output: Path, why: tuple[str, int]) -> None:
    """Say how it went and leave with the exit code that says the same."""
    states = run.states
    finished, failures = states["done"] + states["skipped"], run.failures
    for path, reason in failures[:20]:
        say(f"Failed: {path}: {reason}", error=True)
    if len(failures) > 20:
        say(f"and {len(failures) - 20} more; summary.csv has all", error=True)
    if run.unnamed:
        say(
            f"Note: results of an earlier run stay but are not counted, since they are not named this time: "
            f"{', '.join(run.unnamed[:_SHOWN])}{' …' if run.unnamed[_SHOWN:] else ''} ({len(run.unnamed)})"
        )
    parts = [f"{states['done']} done"]
    parts += [f"{states['skipped']} done before"] * bool(states["skipped"])
    parts += [f"{len(failures)} failed"] * bool(failures)
    parts += [f"{states['waiting']} not done"] * bool(states["waiting"])
    if finished:
        print_differential(run.pooled, finished, run.cells)
        say_scales((record["mpp_source"], record["mpp"]) for record in run.finished)
        say_notes(Counter(note for record in run.finished for note in record["notes"]), finished)
    say(f"{', '.join(parts)}: {plural(run.cells, 'cell')} in {plural(finished, 'picture')}")
    if finished:
        say(f"Results in {output}; summary.csv has a differential of each")
    say("Research use only.")
    if why[0]:
        stop(f"{why[0]}. {finished} of {run.total} pictures are finished; the same command goes on from there.", why[1])
    raise typer.Exit(0 if not failures else SOME_FAILED if finished else ALL_FAILED)


class _Lines:
    """Write a line of JSON for each report, and for the run (`napari_wbc.piped`)."""

    def __init__(self) -> None:
        self._run, self._last = Lines(), dict[str, float]()

    def __call__(self, report: Report, run: Batch) -> None:
        """Tell of a slide; one that runs at most five times a second."""
        now = time.monotonic()
        if report.state == "running" and now - self._last.get(report.slide, 0.0) < _OFTEN:
            return
        self._last[report.slide] = now
        told = asdict(report)
        print(json.dumps({"slide": told.pop("slide"), "report": told}), file=sys.stderr, flush=True)
        self._run("slides", run.total - run.states["waiting"] - run.states["running"], run.total)


def _shown() -> AbstractContextManager[Callable[[Report, Batch], None]]:
    from rich.console import Console

    if is_piped():
        return nullcontext(_Lines())
    return _Bars() if Console(stderr=True).is_terminal else nullcontext(_Log())


class _Log:
    """A line for each slide that ends, and now and then for one that is worked on: what is read later has no bars."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, report: Report, run: Batch) -> None:
        """Tell of a slide."""
        now = time.monotonic()
        if report.state == "waiting" or (report.state == "running" and now - self._last < SELDOM):
            return
        self._last = now
        ended = run.total - run.states["waiting"] - run.states["running"]
        what = f"{report.stage} {report.done} of {report.total}" if report.state == "running" else report.state
        say(f"{ended} of {plural(run.total, 'slide')}; {report.slide}: {what}", error=True, style="")


class _Bars:
    """A bar for the run and one for each slide that is worked on, with cells per second and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[count]}"),
                   TimeRemainingColumn(), TextColumn("{task.fields[speed]}"))  # fmt: skip
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._run: Any = None
        self._tasks: dict[str, tuple[Any, float]] = {}
        self._cells: dict[str, int] = {}
        self._start, self._shown = time.monotonic(), 0.0

    def __enter__(self) -> _Bars:
        self._progress.__enter__()
        self._run = self._progress.add_task("slides", total=None, count="", speed="")
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)

    def __call__(self, report: Report, run: Batch) -> None:
        """Show a report."""
        name = printable(report.slide)
        if report.state == "running":
            self._show(name, report)
        elif name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name)[0])
        if report.state in ("running", "done"):
            self._cells[name] = report.cells
        now = time.monotonic()
        if report.state == "running" and now - self._shown < _OFTEN:
            return
        self._shown, states = now, run.states
        ended = run.total - states["waiting"] - states["running"]
        seconds = max(1e-3, now - self._start)
        speed = f"{sum(self._cells.values()) / seconds:.0f} cells/s"
        count = f"{ended} of {run.total}" + f", {states['failed']} failed" * bool(states["failed"])
        self._progress.update(self._run, completed=ended, total=run.total, count=count, speed=speed)

    def _show(self, name: str, report: Report) -> None:
        if name not in self._tasks:
            if len(self._tasks) >= _MOST_BARS:
                return
            task = self._progress.add_task(name, total=None, count="", speed="")
            self._tasks[name] = task, time.monotonic()
        task, since = self._tasks[name]
        speed = f"{report.cells / max(1e-3, time.monotonic() - since):.0f} cells/s" if report.cells else ""
        count = f"{report.stage} {report.done} of {report.total}" if report.total else report.stage
        self._progress.update(task, completed=report.done, total=report.total or None, count=count, speed=speed)

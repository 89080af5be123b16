"""What the commands share: a run over files with its bar, its failures and its exit code."""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from .inputs import Input, find_images, name_inputs, printable
from .words import plural, tenths

if TYPE_CHECKING:
    import pandas as pd

    from .classifier import Classifier, ModelCard
    from .keep import Keeper
    from .pipeline import Analysis
    from .record import Outcome, Settings, Steps

ALL_FAILED, USAGE, SOME_FAILED, STOPPED = 1, 2, 3, 130
T = TypeVar("T")


SELDOM = 30.0
"""Where nobody watches, a line tells how far a long job is no oftener, s."""


def _scale(value: float | None) -> float | None:
    from .single import PLAUSIBLE_MPP

    low, high = PLAUSIBLE_MPP
    if value is not None and not low <= value <= high:
        raise typer.BadParameter(f"{value:g} is not between {low:g} and {high:g} µm per pixel")
    return value


Mpp = Annotated[
    float | None,
    typer.Option(callback=_scale, help="Micrometres per pixel; measured from the red cells if not given."),
]


class Run:
    """A command's work on many files.

    Parameters
    ----------
    command : str
        Its name.
    arguments : sequence of str
        Files, folders and patterns.
    settings : Settings
        What the user chose.

    Raises
    ------
    typer.Exit
        With code 2 if no picture is meant.
    """

    def __init__(self, command: str, arguments: Sequence[str], settings: Settings) -> None:
        from .record import Outcome, now

        self.command, self.settings = command, settings
        found, missing = find_images(arguments)
        self.inputs = name_inputs(found)
        self.outcomes: list[Outcome] = []
        self.failures: list[str] = []
        self.notes: Counter[str] = Counter()
        self.stopped = False
        if not found:
            for path, reason in missing:
                say(f"{path}: {reason}", error=True)
            stop("No pictures found; give picture files, folders with pictures or patterns.", USAGE)
        self.missing = [Outcome(Input(path, printable(path), ""), error=reason) for path, reason in missing]
        for path, reason in missing:
            self.fail(path, reason)
        self.started, self.start = now(), 0.0

    @property
    def done(self) -> list[Outcome]:
        """What succeeded."""
        return [outcome for outcome in self.outcomes if outcome.done]

    @property
    def counted(self) -> list[Outcome]:
        """What has cells: what succeeded, and corrected results of an earlier run, which stay."""
        return [outcome for outcome in self.outcomes if outcome.cells is not None]

    def fail(self, path: Path, reason: str) -> None:
        """Report a file that failed."""
        self.failures.append(printable(path))
        say(f"Failed: {path}: {reason}", error=True)

    def work(self, classifier: Classifier | None, keeper: Keeper) -> None:
        """Analyse the pictures and keep of each what `keeper` keeps."""
        from .record import analyse_files

        with told():
            keeper.check()
        for name in ("matplotlib", "pyarrow.parquet", "scipy.stats", "skimage.measure", "tifffile"):
            import_module(name)
        self.start = time.perf_counter()  # without the time to import and to load
        try:
            names: dict[Input, str] = {}
            results = analyse_files(self.inputs, classifier, self.settings, keeper, partial(_stages, names))
            for outcome in bar(results, self.inputs, names):
                self.outcomes.append(outcome)
                self.notes.update(outcome.notes)
                if outcome.error:
                    self.fail(outcome.input.path, outcome.error)
        except KeyboardInterrupt:
            # What is finished is worth keeping.
            self.stopped = True

    def keep(self, output: Path, card: ModelCard | None, counts: pd.DataFrame | None) -> None:
        """Write ``differential.csv`` and ``run.json``."""
        from .atomic import new_file
        from .record import write_record
        from .tables import to_csv

        if counts is None:
            # Counts of an earlier run are not counts of this one.
            with suppress(OSError):
                (output / "differential.csv").unlink()
        else:
            with new_file(output / "differential.csv") as fresh:
                fresh.write_text(to_csv(counts), encoding="utf-8", newline="\n")
        seconds = time.perf_counter() - self.start
        outcomes = [*self.outcomes, *self.missing]
        write_record(output / "run.json", self.command, self.started, seconds, outcomes, card, self.settings)

    def end(self, result: str, n_done: int | None = None) -> NoReturn:
        """Say how it went and leave with the exit code that says the same."""
        n_done = len(self.done) if n_done is None else n_done
        say_scales((outcome.mpp_source, outcome.mpp) for outcome in self.done)
        say_notes(self.notes, len(self.inputs))
        self._say_twins()
        if self.failures:
            say(f"{len(self.failures)} failed: {', '.join(self.failures[:10])}{' …' if self.failures[10:] else ''}")
        if n_done:
            say(result)
        say("Research use only.")
        if self.stopped:
            stop(f"Stopped: {n_done} of {len(self.inputs)} are done.", STOPPED)
        if self.failures:
            raise typer.Exit(SOME_FAILED if n_done else ALL_FAILED)
        raise typer.Exit

    def _say_twins(self) -> None:
        """Name pictures whose files are equal: their cells are counted once for each of them."""
        names: dict[str, list[str]] = {}
        for outcome in self.done:
            if outcome.sha256:
                names.setdefault(outcome.sha256, []).append(outcome.input.slide)
        for same in names.values():
            if len(same) > 1:
                say(f"Note: the same picture under {len(same)} names, counted as often: {', '.join(same)}")


def load_classifier(model: str | None, device: str | None) -> Classifier:
    """Load a model, or leave with a message."""
    from .classifier import Classifier, ModelError

    try:
        return Classifier.load(model, device=device)
    except FileNotFoundError as error:
        stop(str(error), USAGE)
    except ModelError as error:
        stop(str(error), ALL_FAILED)
    except (RuntimeError, AssertionError) as error:  # torch has no such device
        stop(f"device {device}: cannot be used ({str(error).splitlines()[0]}); leave --device out", USAGE)


def _stages(names: dict[Input, str], item: Input, steps: Steps) -> Steps:
    """Pass the steps of a picture on and note what is being done."""
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration as stop:
                result: Analysis = stop.value
                return result
            share = f" {step.done} of {step.total}" if step.total else ""
            names[item] = f"{printable(item.path)}: {step.stage}{share}"
            yield step
    finally:
        names.pop(item, None)


def bar(results: Iterable[T], inputs: Sequence[Input], stages: Mapping[Input, str] | None = None) -> Iterator[T]:
    """Pass results on and show on standard error which file is being worked on, and at which stage it is."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Name(TextColumn):
        def render(self, task: Any) -> Any:
            from rich.text import Text

            return Text(next(iter((stages or {}).values()), task.fields["name"]))

    name = Name("")
    columns = (MofNCompleteColumn(" of "), BarColumn(), TimeRemainingColumn(), name)
    names = [*(printable(item.path) for item in inputs), ""]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(inputs), name=names[0])
        for k, result in enumerate(results, start=1):
            progress.update(task, completed=k, name=names[k])
            yield result


@contextmanager
def told() -> Iterator[None]:
    """Turn an `ExportError` into a message and exit code 1."""
    from .atomic import ExportError

    try:
        yield
    except ExportError as error:
        stop(str(error), ALL_FAILED)


def say(text: str, *, error: bool = False, style: str | None = None) -> None:
    """Print a line as it is: names of files are no markup, and paths are not broken. On standard error it is red."""
    console = Console(stderr=error)
    style = "red" if error and style is None else style or None
    console.print(printable(text), style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)


def need(*paths: str | Path | None) -> None:
    """Leave with exit code 2 if a file or folder that the user named is not there."""
    for path in paths:
        if path is not None and not os.path.exists(path):  # noqa: PTH110 - Path.exists raises for names too long
            stop(f"{path}: no such file or folder; check the spelling", USAGE)


def stop(text: str, code: int) -> NoReturn:
    """Print what is wrong and leave."""
    say(text, error=True)
    raise typer.Exit(code)


def say_scales(pictures: Iterable[tuple[str, float]]) -> None:
    """Print the scale of a run's pictures, each given by its source and in µm per pixel."""
    from .record import scales

    for line in scales(pictures):
        say(line)


def say_notes(notes: Mapping[str, int], n_pictures: int) -> None:
    """Print what was noted of the pictures of a run, and of how many; numbers of cells are added up."""
    cells, pictures = Counter[str](), Counter[str]()
    for note, n in notes.items():
        number, text = re.fullmatch(r"(?:(\d+) cells? )?(.*)", note, re.DOTALL).groups()  # type: ignore[union-attr]
        cells[text] += n * int(number or 0)
        pictures[text] += n
    for text, n in pictures.items():
        said = f"{plural(cells[text], 'cell')} {text}" if cells[text] else text
        say(f"Note: {said} (in {n} of {plural(n_pictures, 'picture')})")


def print_table(heads: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print a table; columns after the first with numbers are set flush right."""
    from rich.table import Table

    rows = [[printable(str(value)) for value in row] for row in rows]
    table = Table(title=title or None, title_justify="left")
    for k, head in enumerate(heads):
        numbers = all(row[k][:1].isdigit() or not row[k] for row in rows)
        table.add_column(head, justify="right" if numbers and rows else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table, highlight=False)


def print_differential(counts: pd.DataFrame, n_pictures: int, found: int) -> None:
    """Print pooled counts of so many cells: white cells, then apart from them what is not counted among them."""
    rows = counts.to_dict("records")
    white = [row for row in rows if row["group"] == "white"]
    total = sum(row["n"] for row in white)
    print_table(
        ["class", "n", "%", "95 % limits"],
        [(row["class"], row["n"], _number(row["value"]), _limits(row)) for row in white],
        f"{plural(total, 'white cell')} in {plural(n_pictures, 'picture')}"
        + (f", of {plural(found, 'cell')}" if found != total else ""),
    )
    say("% of white cells with a class; exact 95 % limits (Clopper–Pearson)")
    for row in rows:
        if row["group"] != "white":
            share = f" ({_number(row['value'])} {row['unit']}, 95 % limits {_limits(row)})" if _limits(row) else ""
            if row["n"] and row["unit"].startswith("per 100") and not share:
                share = " (too few white cells for a ratio)"
            say(f"{row['class']}: {row['n']}{share}")
    if unnamed := found - int(counts["n"].sum()):
        say(f"without a class: {unnamed}, in no count; give them one in the review")


def result_line(result: Mapping[str, Any]) -> str:
    """Return a measured result of a model's card as words; what is wrong or missing in it is left out."""
    known = {key: value for key, value in result.items() if isinstance(value, int | float)}
    what = str(result.get("what", "result"))
    text = f"{what}: {tenths(known.get('value', math.nan))}{'' if '×100' in what else ' %'}"
    if {"low", "high"} <= set(known):
        text += f" (95 % limits {tenths(known['low'])} – {tenths(known['high'])})"
    return (
        text
        + (f", {plural(int(known['n']), 'cell')}" if "n" in known else "")
        + (f"; {result['scaled']}" if result.get("scaled") else "")
    )


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"


def _limits(row: Any) -> str:
    return "" if math.isnan(row["low"]) else f"{row['low']:.1f} – {row['high']:.1f}"

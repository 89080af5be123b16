"""Commands for labelled cells: ``napari-wbc dataset``, ``train`` and ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .console import ALL_FAILED, STOPPED, USAGE, load_classifier, print_table, say, stop, told
from .piped import Lines, is_piped

if TYPE_CHECKING:
    from .recipe import Recipe

Data = Annotated[str, typer.Argument(help="Folder with a folder a class, CSV with file and class, boxes, or masks.")]
Scale = Annotated[float | None, typer.Option(min=0.001, max=5.0, help="Micrometres per pixel of the pictures.")]
SplitKind = Annotated[
    Literal["grouped", "given", "random"] | None,
    typer.Option(
        "--split",
        help="grouped keeps patients, slides and copies together; random leaks. Default: the data's own, else grouped.",
    ),
]
NEEDS = "pip install 'napari-wbc[train]' installs what training and evaluation need"


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error; lines of JSON for a program that asked for them."""
    if is_piped():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            kind = "training" if what.startswith("epoch") else what
            if kind not in tasks:
                tasks[kind] = progress.add_task(what, total=total)
            progress.update(tasks[kind], completed=done, total=total, description=what)

        yield report


@contextmanager
def _errors(*, training: bool = True) -> Iterator[None]:
    """Turn what can go wrong into a message and an exit code; without training, torch is not imported."""
    from .dataset import DatasetError
    from .slide import ImageError

    expected: list[type[Exception]] = [DatasetError, ImageError]
    if training:
        try:
            from .train import TrainingError
        except ImportError as error:
            stop(f"{error}; {NEEDS}", USAGE)
        expected.append(TrainingError)
    try:
        with told():
            yield
    except KeyboardInterrupt:
        stop("Stopped.", STOPPED)
    except ImportError as error:
        stop(f"{error}; {NEEDS}", USAGE)
    except tuple(expected) as error:
        stop(str(error), ALL_FAILED)
    except ValueError as error:
        stop(str(error), USAGE)
    except OSError as error:
        stop(f"{error.filename or ''}: {error.strerror or error}; choose another place or free some space", ALL_FAILED)


def dataset(
    data: Data,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the split and the problems here.")
    ] = None,
    split: SplitKind = None,
    val: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share for validation.")] = 0.2,
    test: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share for the result.")] = 0.0,
    seed: int = 0,
) -> None:
    """Report what labelled cells there are, what is wrong with them, and split them so that nothing leaks."""
    from .atomic import new_file

    with _errors(training=False):
        from .dataset import check, read_dataset
        from .split import make_split

        with _bar() as report:
            found = check(read_dataset(data), lambda k, n: report("checking pictures", k, n))
        counts = found.dataset.summary()
        print_table(["class", *counts.columns], [[str(name), *row] for name, *row in counts.itertuples()])
        for row in found.sizes.head(5).itertuples(index=False):
            say(f"{row.pictures} pictures of {row.width} × {row.height} pixels")
        if len(found.sizes) > 5:
            say(f"and {int(found.sizes['pictures'][5:].sum())} of {len(found.sizes) - 5} other sizes")
        _say_problems(found.dataset.problems)
        parts = make_split(found, kind=split, val=val, test=test, seed=seed)
        sizes = ", ".join(f"{part} {int((parts.part == part).sum())}" for part in ("train", "val", "test"))
        say(f"Split ({parts.kind}): {sizes}")
        for note in parts.notes:
            say(f"Note: {note}")
        if output is not None:
            import pandas as pd

            with new_file(output / "split.csv") as fresh:
                parts.table().to_csv(fresh, index=False)
            with new_file(output / "problems.csv") as fresh:
                pd.DataFrame(found.dataset.problems, columns=["file", "problem"]).to_csv(fresh, index=False)
            say(f"split.csv and problems.csv in {output}")


def _say_problems(problems: tuple[tuple[str, str], ...]) -> None:
    for file, text in problems[:10]:
        say(f"Left out: {file}: {text}")
    if len(problems) > 10:
        say(f"Left out: {len(problems) - 10} more (-o writes all)")


def train(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; the same again goes on with it.")],
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a TOML file.")] = "wbc",
    network: Annotated[str | None, typer.Option(help="Network, in place of the recipe's.")] = None,
    start: Annotated[str | None, typer.Option(help="imagenet, random, or a safetensors file.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    free: Annotated[
        int | None, typer.Option(help="Blocks that learn, from the head; -1 all, 0 the head alone.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Share of the data and epochs to run, for a trial.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    name: Annotated[str | None, typer.Option(help="Of the model; the folder's if not given.")] = None,
    split: SplitKind = None,
    split_file: Annotated[Path | None, typer.Option(help="A split that was saved.")] = None,
    val: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share for validation.")] = 0.2,
    test: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share for the result.")] = 0.0,
    mpp: Scale = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest if not given.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="GPUs on each machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    precision: Annotated[str, typer.Option(help="auto, 32, bf16 or 16.")] = "auto",
) -> None:
    """Train a network on labelled cells; the model then appears in the list of models."""
    changes = {
        "network": network, "start": start, "epochs": epochs, "batch_size": batch_size, "lr": lr, "free": free,
        "scale": scale, "seed": seed,
    }  # fmt: skip
    with _errors():
        from .recipe import load_recipe
        from .train import train as run

        if start == "random":  # such a network has to learn everything
            changes |= {"batch_norm": "train", "free": -1 if free is None else free}
        chosen: Recipe = load_recipe(recipe).but(**{key: value for key, value in changes.items() if value is not None})
        try:
            with _bar() as report:
                done = run(
                    data, chosen, output, name=name, split=split, split_file=split_file, val=val, test=test, mpp=mpp,
                    device=device, devices=devices, nodes=nodes, precision=precision, report=report,
                )  # fmt: skip
        except KeyboardInterrupt:
            stop(f"Stopped. The same command goes on after the last finished epoch; {output} keeps it.", STOPPED)
        for note in done.card.training.get("notes", []):
            say(f"Note: {note}")
        if done.stopped:
            say(f"Stopped early: {done.stopped}")
        if chosen.scale < 1:
            say(f"Scaled: only {chosen.scale:g} of the data and epochs were run")
        last = done.history.iloc[-1]
        say(f"{len(done.history)} epochs; validation accuracy {100 * last.val_accuracy:.1f} % in the last")
        for result in done.card.results:
            limits = f" (95 % limits {result['low']:.1f}–{result['high']:.1f})" if "low" in result else ""
            say(f"{result['what']} on {result['data']}: {result['value']:.1f}{limits}, {result['n']} cells")
        say(f"Model {done.card.name} in {done.folder}; use it with --model {done.card.name}")


def evaluate(
    model: Annotated[list[str], typer.Argument(help="MODEL … DATA: names, cards or folders of models, then the data.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")],
    part: Annotated[str | None, typer.Option(help="Only this given split of the data: train, val or test.")] = None,
    among: Annotated[
        str, typer.Option(help="Answers allowed: model (all classes), data (those of the data), or names with commas.")
    ] = "model",
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="FROM=TO: a class of the data is one of the model.")
    ] = None,
    mpp: Scale = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest if not given.")] = None,
) -> None:
    """Judge models on labelled cells: a page to read, tables, and pictures of the worst mistakes."""
    if len(model) < 2:
        stop("give a model and the data: napari-wbc evaluate wbc8-mobilenetv2 DATA -o REPORT", USAGE)
    *models, data = model
    pairs = dict(text.split("=", 1) for text in classes or [] if "=" in text)
    if len(pairs) != len(classes or []):
        stop("--class takes FROM=TO, as in --class ig='immature granulocyte'", USAGE)
    allowed = among if among in ("model", "data") else [name.strip() for name in among.split(",")]
    with _errors():
        from .evaluate import evaluate as judge
        from .evaluate import write_report

        results = []
        for name in models:
            classifier = load_classifier(name, device)
            with _bar() as report:
                results.append(judge(classifier, data, part=part, mpp=mpp, among=allowed, classes=pairs, report=report))
        page = write_report(results, output)
        for result in results:
            summary = result.summary
            print_table(
                ["metric", "value", "95 % limits"],
                [(row.metric, f"{row.value:.3f}", f"{row.low:.3f} – {row.high:.3f}") for row in summary.itertuples()],
                f"{result.model} on {result.data}: {len(result.table)} cells",
            )
            for note in result.notes:
                say(f"Note: {note}")
        say(f"Report: {page}")
        say("Research use only.")

"""Commands for labelled cells: ``napari-wbc dataset``, ``train`` and ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_search import adapted, refuse_swept, run_protocol
from .cli_shared import SplitKind, Starts, bar_of, errors, read_data
from .console import STOPPED, USAGE, Mpp, load_classifier, need, print_table, result_line, say, stop
from .words import plural, tenths

if TYPE_CHECKING:
    from .recipe import Recipe

Data = Annotated[str, typer.Argument(help="Folder with a folder a class, CSV with file and class, boxes, or masks.")]


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

    need(data)
    with errors(training=False):
        from .dataset import read_dataset
        from .dataset_pictures import check
        from .split import make_split

        with bar_of() as report:
            found = check(read_dataset(data), lambda k, n: report("checking pictures", k, n))
        counts = found.dataset.summary()
        print_table(["class", *counts.columns], [[str(name), *row] for name, *row in counts.itertuples()])
        for row in found.sizes.head(5).to_dict("records"):
            say(f"{plural(row['pictures'], 'picture')} of {row['width']} × {row['height']} pixels")
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
    data: Annotated[list[str], typer.Argument(help="As for dataset; several sets are taken together.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; the same again goes on with it.")],
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a TOML file.")] = "wbc",
    network: Annotated[str | None, typer.Option(help="Network, in place of the recipe's.")] = None,
    start: Starts = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    free: Annotated[
        int | None, typer.Option(help="Blocks that learn, from the head; -1 all, 0 the head alone.")
    ] = None,
    pixels: Annotated[int | None, typer.Option(help="Side of the network's input.")] = None,
    scale: Annotated[float | None, typer.Option(help="Share of the data and epochs to run, for a trial.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    folds: Annotated[int | None, typer.Option(help="Folds, in a recipe of several runs.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the model; the folder's if not given.")] = None,
    split: SplitKind = None,
    split_file: Annotated[Path | None, typer.Option(help="A split that was saved.")] = None,
    val: Annotated[float | None, typer.Option(min=0.01, max=0.9, help="Share for validation; else 0.2.")] = None,
    test: Annotated[float | None, typer.Option(min=0.0, max=0.9, help="Share for the result; else 0.")] = None,
    mpp: Mpp = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest if not given.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="GPUs on each machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    precision: Annotated[str, typer.Option(help="auto, 32, bf16 or 16.")] = "auto",
) -> None:
    """Train a network on labelled cells; the model then appears in the list of models.

    A recipe of several runs (a published protocol) runs them all and writes their tables and figures.
    """
    values = {
        "network": network, "epochs": epochs, "batch_size": batch_size, "lr": lr, "free": free, "pixels": pixels,
        "scale": scale, "seed": seed,
    }  # fmt: skip
    changes = {key: value for key, value in values.items() if value is not None}
    need(*data, split_file)
    with errors():
        from .protocol import load_protocol

        protocol = load_protocol(recipe)
        refuse_swept(protocol, changes)
        cells = read_data(data)
        options = {
            "split": split or protocol.split, "split_file": split_file, "mpp": mpp, "device": device,
            "val": protocol.val if val is None else val, "test": protocol.test if test is None else test,
            "precision": precision,
        }  # fmt: skip
        adapt = adapted(changes, start or [])
        if not protocol.stages:
            if folds:
                stop("--folds is for recipes of several runs; napari-wbc search tries one recipe on folds", USAGE)
            _train_one(cells, adapt(protocol.recipe), output, {**options, "devices": devices, "nodes": nodes}, name)
        elif name or devices > 1 or nodes > 1:
            stop(f"recipe {recipe!r} is of several runs: it takes no --name, --devices or --nodes", USAGE)
        else:
            run_protocol(protocol, cells, output, adapt=adapt, fold_count=folds, **options)


def _train_one(cells: Any, recipe: Recipe, output: Path, options: dict[str, Any], name: str | None) -> None:
    """One run, and what to say of it."""
    from .train import few_steps
    from .train import train as run

    try:
        with bar_of() as report:
            done = run(cells, recipe, output, name=name, report=report, **options)
    except KeyboardInterrupt:
        stop(f"Stopped. The same command goes on after the last finished epoch; {output} keeps it.", STOPPED)
    for note in done.card.training.get("notes", []):
        say(f"Note: {note}")
    if done.stopped:
        say(f"Stopped early: {done.stopped}")
    if recipe.scaled:
        say(f"Scaled: {recipe.scaled}")
    if hint := few_steps(done.card.training["steps"], len(done.history)):
        say(hint)
    last = done.history.iloc[-1]
    accuracy = f"{tenths(100 * last.val_accuracy)} %"
    say(f"{plural(len(done.history), 'epoch')}; validation accuracy {accuracy} in the last, while fitted")
    say("The finished model, cut and seen as in prediction:")
    for result in done.card.results:
        say(f"{result['data']}, {result_line(result)}")
    say(f"Model {done.card.name} in {done.folder}; use it with --model {done.card.name}")


def evaluate(
    model: Annotated[list[str], typer.Argument(help="MODEL … DATA: names, cards or folders of models, then the data.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")],
    part: Annotated[str | None, typer.Option(help="Only this given split of the data: train, val or test.")] = None,
    split_file: Annotated[
        Path | None, typer.Option(help="Take --part from a split that was saved: split.csv of a training run.")
    ] = None,
    among: Annotated[
        str, typer.Option(help="Answers allowed: model (all classes), data (those of the data), or names with commas.")
    ] = "model",
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="FROM=TO: a class of the data is one of the model.")
    ] = None,
    mpp: Mpp = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest if not given.")] = None,
) -> None:
    """Judge models on labelled cells: a page to read, tables, and pictures of the worst mistakes."""
    if len(model) < 2:
        stop("give a model and the data: napari-wbc evaluate wbc8-mobilenetv2 DATA -o REPORT", USAGE)
    *models, data = model
    if split_file and not part:
        stop("--split-file needs --part: which of its parts, val or test, is to be judged", USAGE)
    pairs = dict(text.split("=", 1) for text in classes or [] if "=" in text)
    if len(pairs) != len(classes or []):
        stop("--class takes FROM=TO, as in --class ig='immature granulocyte'", USAGE)
    need(data, split_file)
    allowed = among if among in ("model", "data") else [name.strip() for name in among.split(",")]
    with errors():
        from .evaluate import evaluate as judge
        from .evaluate_report import limits_note, metrics_table, write_report

        results = []
        options: dict[str, Any] = {
            "part": part, "split_file": split_file, "mpp": mpp, "among": allowed, "classes": pairs,
        }  # fmt: skip
        for name in models:
            classifier = load_classifier(name, device)
            with bar_of() as report:
                results.append(judge(classifier, data, **options, report=report))
        page = write_report(results, output)
        for result in results:
            shown = metrics_table(result)
            title = f"{result.model} on {result.data}: {plural(len(result.table), 'cell')}"
            print_table(list(shown.columns), shown.to_numpy().tolist(), title)
            say(limits_note(result))
            for note in result.notes:
                say(f"Note: {note}")
        say(f"Report: {page}")
        say("Research use only.")

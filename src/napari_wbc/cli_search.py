"""Commands that run more than one training: ``napari-wbc search``, and recipes with stages in ``train``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_shared import SplitKind, Starts, bar_of, errors, read_data
from .console import STOPPED, USAGE, Mpp, need, print_table, say, stop

if TYPE_CHECKING:
    from .protocol import Protocol
    from .recipe import Recipe
    from .search import Found


def adapted(changes: Mapping[str, Any], starts: Sequence[str]) -> Callable[[Recipe], Recipe]:
    """What the options of a command make of a recipe.

    Raises
    ------
    ValueError
        If there are two starts for the same networks.
    """
    from .models import NETWORKS

    told: dict[str, str] = {}
    for text in starts:
        network, equals, where = text.partition("=")
        key, value = (network, where) if equals and (network in NETWORKS or "/" not in network) else ("", text)
        if key in told:
            raise ValueError(f"--start is given twice{f' for {key}' if key else ''}")
        told[key] = value
        need(value if value not in ("imagenet", "random") else None)

    def adapt(recipe: Recipe) -> Recipe:
        full = recipe.pixels
        recipe = recipe.but(**changes)
        # Networks that a recipe trains from scratch beside others stay so.
        start = told.get(recipe.network) or (told.get("") if recipe.start != "random" else None)
        if start == "random":  # such a network has to learn everything
            recipe = recipe.but(start=start, batch_norm="train", free=changes.get("free", -1))
        elif start:
            recipe = recipe.but(start=start)
        if recipe.pixels < full:
            less = f"at {recipe.pixels} instead of {full} pixels"
            recipe = recipe.but(reduced="; ".join(filter(None, [recipe.reduced, less])))
        return recipe

    return adapt


def run_protocol(
    protocol: Protocol,
    data: Any,
    output: Path,
    *,
    adapt: Callable[[Recipe], Recipe],
    fold_count: int | None = None,
    **options: Any,
) -> Found:
    """Run the stages of a recipe, write their tables and figures, and print them beside what is reported."""
    from dataclasses import replace

    from .search import search
    from .search_report import write_tables

    stages = protocol.stages
    if fold_count is not None:
        fewer = [stage.folds for stage in stages if stage.folds > fold_count]
        stages = tuple(replace(stage, folds=fold_count) if stage.folds else stage for stage in stages)
        if fewer:
            told = f"{fold_count} instead of {max(fewer)} folds"
            first = adapt

            def adapt(recipe: Recipe) -> Recipe:
                recipe = first(recipe)
                return recipe.but(reduced="; ".join(filter(None, [recipe.reduced, told])))

    try:
        with bar_of() as report:
            found = search(data, protocol.recipe, stages, output, adapt=adapt, report=report, **options)
    except KeyboardInterrupt:
        stop(f"Stopped. The same command goes on; {output} keeps what is finished.", STOPPED)
    write_tables(found)
    print_found(found)
    if protocol.source:
        say(f"Source: {protocol.source}")
    for line in protocol.reported:
        say(f"Reported there: {line}")
    say(f"Tables (ranked.csv, runs.csv, classes.csv) and figures in {output}")
    say("Research use only.")
    return found


def print_found(found: Found) -> None:
    """Print the notes, then a table a stage, the best first."""
    from .evaluate_report import heading, number
    from .search_report import MEASURED, ranked_table, reported

    table = ranked_table(found)
    part = reported(found)
    scaled = "; ".join(sorted({text for text in table["scaled"] if text}))
    for note in found.split.notes:
        say(f"Note: {note}")

    def spread(mean: float, sd: float, name: str) -> str:
        return number(mean, name) + ("" if sd != sd else f" ± {number(sd, name)}")

    # Accuracy and F1 of validation are there already.
    further = ("precision", "recall", "specificity", "AUC") if part == "val" else MEASURED[:-1]
    for stage in found.stages:
        rows = []
        for row in table[table["stage"] == stage.name].to_dict("records"):
            values = [spread(row[f"{name} mean"], row[f"{name} sd"], name) for name in ("accuracy", "loss", "macro_f1")]
            values += [spread(row[f"{part} {name}"], row[f"{part} {name} sd"], name) for name in further]
            rows.append([row["rank"], row["variant"] + (" (failed)" if row["failed"] else ""), *values])
        heads = ["#", "variant", *(heading(name, "val") for name in ("accuracy", "loss", "macro-F1"))]
        heads += [heading(name, part) for name in further]
        folds = f", mean ± standard deviation over {stage.folds} folds" if stage.folds else ""
        print_table(heads, rows, f"{stage.name}{folds}{f' — scaled: {scaled}' if scaled else ''}")
    for trial in found.trials:
        if trial.failed:
            say(f"Failed: {trial.stage}, {trial.name}: {trial.failed}")
    if scaled:
        say(f"Scaled: {scaled}")


def search(
    data: Annotated[list[str], typer.Argument(help="Labelled cells; several sets are taken together.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the search; the same again goes on.")],
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a TOML file: what all runs share.")] = "wbc",
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE,VALUE: try these, go on with the best. Repeated: one after the other."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE,VALUE: with several, every combination; after the sweeps."),
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation; 0 for one split.")] = 0,
    start: Starts = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    pixels: Annotated[int | None, typer.Option(help="Side of the network's input.")] = None,
    scale: Annotated[float | None, typer.Option(help="Share of the data and epochs to run, for a trial.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    split: SplitKind = None,
    split_file: Annotated[Path | None, typer.Option(help="A split that was saved.")] = None,
    val: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share for validation, without folds.")] = 0.2,
    test: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share for the result.")] = 0.0,
    mpp: Mpp = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest if not given.")] = None,
    precision: Annotated[str, typer.Option(help="auto, 32, bf16 or 16.")] = "auto",
) -> None:
    """Try settings of a recipe one after the other, or every combination, and rank them."""
    need(*data, split_file)
    with errors():
        from .protocol import Protocol, Stage, read_values
        from .recipe import load_recipe

        values = {"epochs": epochs, "pixels": pixels, "scale": scale, "seed": seed}
        changes = {key: value for key, value in values.items() if value is not None}
        stages = []
        for text in sweep or []:
            for key, tried in read_values([text]).items():
                stages.append(Stage(key, {key: tried}, folds=folds))
        if grid:
            stages.append(Stage("grid", read_values(grid), folds=folds))
        if not stages:
            stop("say what to try: --sweep lr=1e-3,1e-4, or --grid lr=1e-3,1e-4 --grid epochs=5,10", USAGE)
        protocol = Protocol(load_recipe(recipe), tuple(stages), split=split)
        refuse_swept(protocol, changes)
        found = run_protocol(
            protocol, read_data(data), output, adapt=adapted(changes, start or []), split=split, split_file=split_file,
            val=val, test=test, mpp=mpp, device=device, precision=precision,
        )  # fmt: skip
        best = {key: getattr(found.best, key) for stage in stages for key in stage.sweep}
        say("Best: " + ", ".join(f"{key} = {value!r}" for key, value in best.items()))


def refuse_swept(protocol: Protocol, changes: Mapping[str, Any]) -> None:
    """ValueError for an option that would make all that is tried the same."""
    if both := sorted(protocol.swept & set(changes)):
        name = both[0].replace("_", "-")
        raise ValueError(f"{both[0]} is one of the things that are tried; leave --{name} out")

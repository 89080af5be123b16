"""What the commands for labelled cells share: options, their bar, and what can go wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer

from .console import ALL_FAILED, SELDOM, STOPPED, USAGE, say, stop, told
from .piped import Lines, is_piped

SplitKind = Annotated[
    Literal["grouped", "given", "random"] | None,
    typer.Option(
        "--split",
        help="grouped keeps patients, slides and copies together; random leaks. Default: the data's own, else grouped.",
    ),
]
Starts = Annotated[
    list[str] | None,
    typer.Option(
        "--start",
        help="imagenet, random, or a safetensors file; NETWORK=… is for one network only. May be repeated.",
    ),
]


def _share(value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise typer.BadParameter(f"{value:g} is not between 0 and 1")
    return value


Model = Annotated[str | None, typer.Option(help="Name, card or folder of a model; the default model if not given.")]
Threshold = Annotated[
    float | None,
    typer.Option(callback=_share, help="Cells less probable are unidentified; the model's own if not given."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest if not given.")]
Megapixels = Annotated[float, typer.Option(min=0.0, help="Larger pictures are refused; slides have any size.")]
Everywhere = Annotated[
    bool, typer.Option("--everywhere", help="On whole slides, look outside the monolayer too: thick part, edge, blur.")
]
NEEDS = "pip install 'napari-wbc[train]' installs what training and evaluation need"


@contextmanager
def bar_of() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error; lines of JSON for a program that asked for them."""
    if is_piped():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:  # what is read later has no bars
        last = time.monotonic()

        def tell(what: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= SELDOM:
                last = time.monotonic()
                say(f"{what}: {done} of {total}", error=True, style="")

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            kind = "training" if "epoch" in what else what
            if kind not in tasks:
                tasks[kind] = progress.add_task(what, total=total)
            progress.update(tasks[kind], completed=done, total=total, description=what)

        yield report


@contextmanager
def errors(*, training: bool = True) -> Iterator[None]:
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


def read_data(data: Sequence[str]) -> Any:
    """The one path, or the cells of several sets together."""
    from .dataset import join, read_dataset

    return data[0] if len(data) == 1 else join([read_dataset(path) for path in data])

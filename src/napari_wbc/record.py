"""What a run over many pictures did: each picture's outcome, and all of it as ``run.json``."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from .atomic import new_file
from .inputs import Input, printable
from .words import plural

if TYPE_CHECKING:
    import pandas as pd

    from .cells import Cells
    from .classifier import Classifier, ModelCard
    from .keep import Keeper
    from .pipeline import Analysis, Progress

    Steps = Generator[Progress, None, Analysis]

FORMAT = "napari-wbc run"
_BRIEF = 60


@dataclass(frozen=True)
class Outcome:
    """What became of a picture, without its pixels: a run may hold thousands.

    Parameters
    ----------
    input : Input
        The picture.
    cells : Cells or None
        Its cells; None after a failure.
    threshold, mpp, mpp_source, notes
        As in `napari_wbc.pipeline.Analysis` and its `appearance`.
    sha256 : str or None
        Of the file.
    error : str
        What went wrong and what to do; empty if nothing did.
    seconds : float
        Time taken.
    kept : mapping or None
        What ``run.json`` said of the corrected results of an earlier run, whose cells these are; None for this run's.
    """

    input: Input
    cells: Cells | None = None
    threshold: float = 0.0
    mpp: float = math.nan
    mpp_source: str = ""
    notes: tuple[str, ...] = ()
    sha256: str | None = None
    error: str = ""
    seconds: float = 0.0
    kept: Mapping[str, Any] | None = None

    @property
    def done(self) -> bool:
        """Whether this run has found its cells."""
        return self.cells is not None and self.kept is None


@dataclass(frozen=True)
class Settings:
    """What the user chose for a run.

    Parameters
    ----------
    mpp, threshold : float or None
        As in `napari_wbc.pipeline.annotate`.
    max_megapixels : float
        As in `napari_wbc.slide.Slide.open`.
    everywhere : bool
        As in `napari_wbc.pipeline.analyse`.
    """

    mpp: float | None = None
    threshold: float | None = None
    max_megapixels: float = 250.0
    everywhere: bool = False


def analyse_files(
    inputs: Iterable[Input],
    classifier: Classifier | None,
    settings: Settings,
    keeper: Keeper,
    told_steps: Callable[[Input, Steps], Steps] | None = None,
) -> Iterator[Outcome]:
    """Analyse pictures one after the other; one that fails does not stop the others.

    Parameters
    ----------
    inputs : iterable of Input
        The pictures.
    classifier : Classifier or None
        None segments only.
    settings : Settings
        For all pictures.
    keeper : Keeper
        Keeps what shall be kept of each picture; one that it cannot keep is not read.
    told_steps : callable, optional
        Passes the steps of a whole slide on and tells the user of them.

    Yields
    ------
    Outcome
        One a picture, in order.
    """
    from .pipeline import run

    def outcome(item: Input) -> Outcome:
        keeper.prepare(item)
        steps = open_input(item, classifier, settings)
        found = run(told_steps(item, steps) if told_steps else steps)
        keeper.write(item, found)
        look = found.appearance
        sha256 = found.slide.sha256()
        return Outcome(item, found.cells, found.threshold, look.mpp, look.mpp_source, found.notes, sha256)

    for item in inputs:
        start = time.perf_counter()
        try:
            result = outcome(item)
        # A picture that trips over a bug must not cost the results of the others.
        except Exception as error:  # noqa: BLE001
            result = keeper.failed(item, why(error, item))
        yield replace(result, seconds=time.perf_counter() - start)


def open_input(item: Input, classifier: Classifier | None, settings: Settings) -> Steps:
    """Open a picture or slide and analyse it; parameters as for `analyse_files`."""
    from .pipeline import analyse
    from .segment import SegmentParameters
    from .slide import Slide

    slide = Slide.open(item.path, mpp=settings.mpp, max_megapixels=settings.max_megapixels)
    return (
        yield from analyse(
            replace(slide, name=item.slide),
            classifier,
            parameters=SegmentParameters(mpp=settings.mpp),
            threshold=settings.threshold,
            everywhere=settings.everywhere,
        )
    )


def why(error: Exception, item: Input) -> str:
    """Say why a picture failed and what to do."""
    if isinstance(error, MemoryError):
        return "not enough memory; close other programs or cut the picture into fields"
    if isinstance(error, ValueError | OSError):
        return str(error).removeprefix(f"{item.path}: ")
    return f"unexpected {type(error).__name__}: {error}; please report it"


def write_record(
    path: Path,
    command: str,
    started: datetime,
    seconds: float,
    outcomes: Sequence[Outcome],
    card: ModelCard | None,
    settings: Settings,
) -> None:
    """Write ``run.json``: versions, model, parameters, and what became of each picture."""
    from .segment import SegmentParameters

    threshold = next((outcome.threshold for outcome in outcomes if outcome.done), None)
    record = {
        "format": FORMAT,
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "versions": versions(),
        "model": {"name": card.name, "sha256": card.sha256} if card else None,
        "threshold": threshold if card else None,
        "parameters": {**asdict(settings), "segmentation": asdict(SegmentParameters(mpp=settings.mpp))},
        "inputs": [_entry(outcome) for outcome in outcomes],
    }
    with new_file(path) as fresh:
        fresh.write_text(json.dumps(record, indent=2, ensure_ascii=True, allow_nan=False) + "\n", encoding="utf-8")


def _entry(outcome: Outcome) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "path": str(outcome.input.path.absolute()),
        "sha256": outcome.sha256,
        "slide": outcome.input.slide,
        "result": outcome.input.folder,
        "state": "ok",
        "error": None,
        "seconds": round(outcome.seconds, 3),
    }
    if outcome.kept is not None:
        kept = {"state": "kept", "error": printable(outcome.error), "cells": len(outcome.cells or ())}
        return entry | dict(outcome.kept) | {key: entry[key] for key in ("path", "slide", "result")} | kept
    if outcome.cells is None:
        return entry | {"result": None, "state": "failed", "error": printable(outcome.error)}
    return entry | {
        "cells": len(outcome.cells),
        "mpp": outcome.mpp if math.isfinite(outcome.mpp) else None,
        "mpp_source": outcome.mpp_source,
        "notes": list(outcome.notes),
    }


def record_of(analysis: Analysis, result: str) -> dict[str, Any]:
    """Return what ``run.json`` says of a run, of a picture that was analysed in napari.

    Parameters
    ----------
    analysis : Analysis
    result : str
        The name of its folder of results.
    """
    slide, look, card = analysis.slide, analysis.appearance, analysis.card
    entry: dict[str, Any] = {
        "path": str(slide.path.absolute()) if slide.path else None, "sha256": slide.sha256(), "slide": slide.name,
        "result": result, "state": "ok", "error": None, "cells": len(analysis.cells),
        "mpp": look.mpp if math.isfinite(look.mpp) else None, "mpp_source": look.mpp_source,
        "notes": list(analysis.notes),
    }  # fmt: skip
    if analysis.whole is not None:
        regions = analysis.whole.regions
        entry["regions"] = regions.astype(object).where(regions.notna(), None).to_dict("records")
    return {
        "format": FORMAT, "command": "napari", "started": analysis.at, "versions": versions(),
        "model": {"name": card.name, "sha256": card.sha256} if card else None,
        "threshold": analysis.threshold if card else None, "inputs": [entry],
    }  # fmt: skip


SCALE_WORDS = {
    "given": "as given", "file": "as written in the picture's file", "red cells": "measured from the red cells",
}  # fmt: skip


def scales(pictures: Iterable[tuple[str, float]]) -> list[str]:
    """Say for each source of the scale what it was: the first thing to check of a run."""
    found: dict[str, list[float]] = {}
    for source, mpp in pictures:
        found.setdefault(source, []).append(mpp)
    return [_scale(source, found[source]) for source in sorted(found)]


def _scale(source: str, values: list[float]) -> str:
    pictures = plural(len(values), "picture")
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return f"Scale unknown in {pictures}"
    how = SCALE_WORDS.get(source, f"assumed from the {source}")
    spread = f", {min(known):.3g} to {max(known):.3g}" if len(known) > 1 else ""
    return f"Scale {median(known):.3g} µm per pixel, {how} ({pictures}{spread})"


def count_run(outcomes: Sequence[Outcome]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Count the cells of each picture and of all.

    Returns
    -------
    blocks : pandas.DataFrame
        `napari_wbc.count.differential` of each picture, then of all as the slide *all*.
    pooled : pandas.DataFrame
        The last block.
    """
    import pandas as pd

    from .count import differential

    blocks = [differential(outcome.cells, outcome.input.slide) for outcome in outcomes if outcome.cells is not None]
    pooled = differential(pool(outcomes), "all")
    return pd.concat([*blocks, pooled], ignore_index=True), pooled


def pool(outcomes: Iterable[Outcome]) -> Cells:
    """Return the cells of all pictures in one table."""
    import pandas as pd

    from .cells import Cells

    found = [outcome.cells for outcome in outcomes if outcome.cells is not None]
    # A table without rows has columns without types, which would spoil those of the others.
    tables = [cells.table for cells in found if len(cells)]
    return Cells(pd.concat(tables, ignore_index=True)) if tables else (found or [Cells.empty()])[0]


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    found = {"python": platform.python_version()}
    for name in (
        "napari-wbc",
        "torch",
        "torchvision",
        "openvino",
        "numpy",
        "scikit-image",
        "scipy",
        "pandas",
        "pillow",
        "imagecodecs",
        "distributed",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any], most: int = 3) -> str:
    """Say in which values two trees of settings differ; empty if they do not.

    Parameters
    ----------
    before, now : mapping
        Of plain values and further mappings.
    most : int
        How many are named; of more, it is said how many.
    """
    was, is_ = _flat(before), _flat(now)
    keys = [key for key in sorted({*was, *is_}) if was.get(key) != is_.get(key)]
    told = [f"{key} was {_brief(was.get(key))} and is {_brief(is_.get(key))}" for key in keys[:most]]
    return printable("; ".join(told + ([f"and {len(keys) - most} more"] if len(keys) > most else [])))


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{inner}": found for inner, found in _flat(value).items()}
        else:
            flat[str(key)] = value
    return flat


def _brief(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= _BRIEF else f"{text[:_BRIEF]}…"


def now() -> datetime:
    """Return the time with its zone."""
    return datetime.now(UTC).astimezone()

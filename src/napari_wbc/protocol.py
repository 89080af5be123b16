"""Published protocols: recipes of several runs, and what to try one after the other."""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .recipe import Recipe, load_recipe, read_toml

__all__ = ["Protocol", "Stage", "load_protocol", "read_values"]

SPLITS = ("grouped", "given", "random")


@dataclass(frozen=True)
class Stage:
    """Runs that are compared with one another.

    Parameters
    ----------
    name : str
        Of the stage; a folder is named so.
    sweep : mapping of str to tuple
        Keys of the recipe and values to try, every combination; later stages go on with the best.
    row : tuple of mappings
        Other variants: a ``name`` and keys of the recipe.
    settings : mapping
        Keys of the recipe that hold in this stage only.
    folds : int
        Of the cross-validation; 0 for the one split.
    """

    name: str
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    row: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    folds: int = 0

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"stage {self.name!r}: folds is {self.folds}, but must be 2 or more, or 0 for none")
        for key, values in self.sweep.items():
            if not values:
                raise ValueError(f"stage {self.name!r}: {key} has no values to try; give some")
        names = [name for name, _ in self.variants()]
        if len(set(names)) < len(names):
            raise ValueError(f"stage {self.name!r}: the same is tried twice; leave one out")

    def variants(self) -> list[tuple[str, dict[str, Any]]]:
        """Names of what is tried, and the keys of the recipe that make it."""
        points = [dict(zip(self.sweep, point, strict=True)) for point in itertools.product(*self.sweep.values())]
        found = []
        for row, point in itertools.product(self.row or ({},), points):
            changes = {key: value for key, value in row.items() if key != "name"}
            parts = [str(row["name"])] if "name" in row else []
            parts += [
                f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in point.items()
            ]
            found.append((", ".join(parts) or self.name, {**self.settings, **changes, **point}))
        return found


@dataclass(frozen=True)
class Protocol:
    """A recipe with what is run of it.

    Parameters
    ----------
    recipe : Recipe
        What all runs share.
    stages : tuple of Stage
        One after the other; empty for a recipe of one run.
    source : str
        Who published it.
    reported : tuple of str
        Results of the source, to be printed beside one's own.
    val, test : float
        Shares of the cells.
    split : str or None
        As in `napari_wbc.split.make_split`.
    """

    recipe: Recipe
    stages: tuple[Stage, ...] = ()
    source: str = ""
    reported: tuple[str, ...] = ()
    val: float = 0.2
    test: float = 0.0
    split: Any = None

    def __post_init__(self) -> None:
        if self.split not in (None, *SPLITS):
            raise ValueError(f"split is {self.split!r}, but must be one of {', '.join(SPLITS)}")
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise ValueError("two stages have the same name")

    @property
    def swept(self) -> set[str]:
        """Keys that a stage varies."""
        rows = {key for stage in self.stages for row in stage.row for key in row}
        return rows | {key for stage in self.stages for key in stage.sweep}


def load_protocol(name: str | Path) -> Protocol:
    """Read a recipe with its stages.

    Parameters
    ----------
    name : str or pathlib.Path
        A name from `napari_wbc.recipe.recipes`, or a TOML file: the keys of `Recipe`; a table ``protocol`` with
        ``source``, ``reported``, ``val``, ``test`` and ``split``; tables ``[[stage]]`` with the fields of `Stage`.

    Raises
    ------
    ValueError
        If there is none, or it says something that is not possible.
    """
    data = read_toml(name)
    told, tables = data.get("protocol", {}), data.get("stage", [])
    if not isinstance(told, dict) or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise ValueError(f"{name}: protocol must be a table and stage a list of tables")
    recipe = load_recipe(name)
    try:
        for table, kind in ((told, Protocol), *((t, Stage) for t in tables)):
            known = {f.name for f in fields(kind)} - {"recipe", "stages"}
            if unknown := set(table) - known:
                raise ValueError(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        stages = []
        for table in tables:
            sweep = {key: tuple(values) for key, values in table.get("sweep", {}).items()}
            stages.append(Stage(**{**table, "sweep": sweep, "row": tuple(table.get("row", []))}))
        protocol = Protocol(recipe, tuple(stages), **{**told, "reported": tuple(told.get("reported", ()))})
        for _, changes in (variant for stage in stages for variant in stage.variants()):
            recipe.but(**changes)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from error
    return protocol


def read_values(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Keys and values of ``KEY=VALUE,VALUE`` as the recipe wants them.

    Raises
    ------
    ValueError
        For an unknown key, or a value that is not possible.
    """
    default = Recipe()
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not values.strip():
            raise ValueError(f"{text!r} is not KEY=VALUE,VALUE, as in lr=1e-3,1e-4")
        if not hasattr(default, key) or callable(getattr(default, key)):
            near = difflib.get_close_matches(key, [f.name for f in fields(Recipe)], 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(f.name for f in fields(Recipe))}"
            raise ValueError(f"a recipe has no {key!r}{hint}")
        kind = type(getattr(default, key))
        parts = [part.strip() for part in values.split(",") if part.strip()]
        try:
            if kind in (int, float, str):
                found[key] = tuple(kind(part) for part in parts)
            else:
                found[key] = (tomllib.loads(f"value = {values}")["value"],)
        except (ValueError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{key}: {values!r} cannot be read as {kind.__name__}") from error
        for value in found[key]:
            default.but(**{key: value})
    return found

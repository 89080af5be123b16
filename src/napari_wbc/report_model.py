"""What a report says of the model: what it was trained on, and what was measured of it elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifier import ModelCard


def card_of(run: Mapping[str, Any], others: Iterable[Path] = ()) -> tuple[Path, ModelCard] | None:
    """Find the model that a run used: the one of its check sum, whatever it is called here.

    Parameters
    ----------
    run : mapping
        ``run.json``; empty if there is none.
    others : iterable of pathlib.Path
        Cards beside those of `napari_wbc.models.available_models`.

    Returns
    -------
    path, card
        Its file and what it says; None if it is not installed, or the run does not say which it was.
    """
    from .classifier import ModelCard
    from .models import available_models

    used = run.get("model") or {}
    installed = available_models()
    named = [installed[name] for name in [str(used.get("name"))] if name in installed]
    for path in dict.fromkeys([*named, *others, *installed.values()]) if used.get("sha256") else ():
        try:
            card = ModelCard.from_json(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            continue
        if card.sha256 == used["sha256"]:
            return path, card
    return None


def model_facts(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of the card of the model that a run used.

    Parameters
    ----------
    run : mapping
        ``run.json``; empty if there is none.

    Returns
    -------
    dict
        ``name``, ``sha256`` and ``threshold`` as the run says, and from the card, if a model of that check sum is
        installed, ``description``, ``network``, ``classes``, ``licence``, ``data``, ``further_data`` and ``results``.
        Each result says in ``elsewhere`` whether its data are of another laboratory than all those of the training.
    """
    used = run.get("model") or {}
    facts: dict[str, Any] = {"name": used.get("name"), "sha256": used.get("sha256"), "threshold": run.get("threshold")}
    found = card_of(run)
    if found is None:
        return facts
    card = found[1]
    data = str(card.training.get("data", ""))
    further = card.training.get("further data", [])
    return facts | {
        "description": card.description, "network": card.network, "classes": list(card.classes),
        "licence": card.licence, "data": data, "further_data": further if isinstance(further, list) else [],
        "results": [_result(row, data) for row in card.results],
    }  # fmt: skip


def _result(row: Mapping[str, Any], data: str) -> dict[str, Any]:
    known = {key: row.get(key) for key in ("what", "data", "n", "value", "low", "high")}
    # Sets are called by their name and part, "pbc/train": the model's own laboratory is before the stroke. One that the
    # model was trained on as well says so: "bccd (trained on bccd: no test)".
    home, measured = (text.partition("/")[0].strip().casefold() for text in (data, str(row.get("data", ""))))
    return known | {"elsewhere": measured != home and "(trained on" not in measured}

"""The report of a smear: what was counted, who looked, what was left out, and the cells themselves, in one file."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from .agreement import by_model, compare
from .atomic import ExportError, new_file
from .case import Case, Picture, check_outside, read_case
from .cells import UNLIKE_NOTE, Cells
from .class_names import UNIDENTIFIED
from .count import differential
from .counted import chosen, sampling_line, walk
from .page import plain, render
from .palette import colour
from .platelets import Platelets, film_of, pooled
from .record import now, versions
from .reference import Ranges, flag_sign, load_ranges, with_ranges
from .report_model import model_facts
from .review import unseen
from .review_session import DEFAULTS
from .slide import ImageError
from .tables import to_csv
from .words import plural

if TYPE_CHECKING:
    from .report_pictures import Pictures

__all__ = ["FORMAT", "SUFFIXES", "Asked", "Report", "make_report", "write_report"]

FORMAT = "napari-wbc report"
SUFFIXES = (".html", ".json", ".csv")
MOST_PICTURES = 20
"""On how many pictures of a run, taken evenly, platelets are counted."""
_USE = "Research use only. Not a medical device, not for diagnosis."
_WHY = {
    "improbable": "no class was probable enough",
    "unlike": "unlike the cells that the model knows: perhaps blasts, clumps or dirt",
    "": "a reviewer left it so, or no reason was kept",
}


@dataclass(frozen=True)
class Asked:
    """What the user says about a report.

    Parameters
    ----------
    slide_id, patient_id : str
        As they shall stand in the report; the names of the pictures if no slide is named.
    wbc : float, optional
        White cells per µL, for absolute counts; those that were entered in the review if not given.
    target : int or "all", optional
        White cells to count (`napari_wbc.counted.TARGETS`); what the review counts if not given, or else all.
    per_class : int
        How many cells of each class are shown.
    ranges : Ranges, optional
        Reference ranges; those that are shipped if not given.
    """

    slide_id: str = ""
    patient_id: str = ""
    wbc: float | None = None
    target: int | Literal["all"] | None = None
    per_class: int = 16
    ranges: Ranges | None = None


@dataclass(frozen=True)
class Report:
    """A report before it is a file.

    Parameters
    ----------
    content : mapping
        All that it says, as JSON knows it.
    case : Case
        The results with the counted cells alone, for the pictures.
    per_class : int
        How many cells of each class are shown.
    """

    content: Mapping[str, Any]
    case: Case = field(repr=False)
    per_class: int = 16

    def as_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def as_csv(self) -> str:
        """Return the report as one table: a section, an item, and what is said of it in the further columns."""
        return to_csv(pd.DataFrame(_rows(self.content), dtype=object))

    def as_html(self) -> str:
        """Return the report as a page with its pictures, which needs nothing else."""
        from .report_pictures import SIZE

        return render(
            "report.html", r=self.content, pictures=self.pictures, side_um=SIZE.side_um, per_class=self.per_class,
            colour=colour, sign=flag_sign, top=_axis(self.content["differential"]),
        )  # fmt: skip

    @cached_property
    def pictures(self) -> Pictures:
        """Overview and gallery of the page."""
        from .report_pictures import draw_pictures

        return draw_pictures(self.case, self.per_class)


def make_report(results: str | Path | Case, asked: Asked | None = None, *, image: str | Path | None = None) -> Report:
    """Gather what a report says.

    Parameters
    ----------
    results : path or Case
        Folder of results of a picture, or of a run.
    asked : Asked, optional
        What the user says.
    image : path, optional
        Where the picture is now, if it was moved.

    Raises
    ------
    ExportError, CellsError
        If there are no results, or they are damaged.
    ValueError
        If the WBC or the number of cells makes no sense.
    """
    from .inputs import printable

    asked = asked or Asked()
    if asked.per_class < 1:
        raise ValueError(f"{asked.per_class} cells of each class cannot be shown; 1 or more")
    case = results if isinstance(results, Case) else read_case(results, image)
    own = {**DEFAULTS, **_settings(case)}
    target = own["target"] if asked.target is None else None if asked.target == "all" else asked.target
    wbc = own["wbc"] if asked.wbc is None else asked.wbc
    mask = _counted(case, target, own["seed"])
    counted = case.cells.where(mask)
    ranges = asked.ranges or load_ranges()
    counts = with_ranges(differential(counted), ranges, wbc).drop(columns="slide")
    signed = signature_of(case)
    content = {
        "format": FORMAT,
        "use": _USE,
        "slide_id": printable(asked.slide_id or str(own.get("slide_id") or "")) or _names(case),
        "patient_id": printable(asked.patient_id or str(own.get("patient_id") or "")),
        "together": together(case),
        "date": now().isoformat(timespec="minutes"),
        "preliminary": still_open(counted, signed),
        "signature": signed and signed | {"unseen": unseen(counted)},
        "cells": {
            "found": len(case.cells), "counted": len(counted),
            "white": int(counts.loc[counts["group"] == "white", "n"].sum()),
            "chosen": sampling_line(target, own["seed"]), "target": target,
        },
        "wbc_per_ul": wbc,
        "differential": counts.to_dict("records"),
        "reference_source": ranges.source,
        "platelets": found.to_dict() if (found := platelets(case)) else None,
        "review": review_of(counted),
        "pictures": _pictures(case),
        "skipped": skipped(case),
        "model": model_facts(case.run),
        "made": _made(case),
    }  # fmt: skip
    pictures = (replace(p, cells=p.cells.where(mask[case.of == k])) for k, p in enumerate(case.pictures))
    return Report(plain(content), replace(case, pictures=tuple(pictures)), asked.per_class)


def write_report(
    results: str | Path | Case,
    file: str | Path,
    asked: Asked | None = None,
    *,
    image: str | Path | None = None,
    also: Collection[str] = (),
) -> Report:
    """Write the report of a smear: HTML, JSON or CSV by the suffix.

    Parameters
    ----------
    results : path or Case
        Folder of results of a picture, or of a run.
    file : path
        Ends in ``.html``, ``.json`` or ``.csv``; it appears whole or not at all.
    asked : Asked, optional
        What the user says: ids, WBC, how many cells.
    image : path, optional
        Where the picture is now, if it was moved.
    also : collection of str
        Suffixes of further files beside it, with the same stem.

    Returns
    -------
    Report
        What was written.

    Raises
    ------
    ExportError, CellsError
        If there are no results, they are damaged, or the file cannot be written.
    ValueError
        If the WBC or the number of cells makes no sense.
    """
    file = Path(file)
    if file.suffix.lower() not in SUFFIXES:
        raise ExportError(f"{file}: a report is a file that ends in {', '.join(SUFFIXES)}")
    case = results if isinstance(results, Case) else read_case(results, image)
    check_outside(case, file)
    report = make_report(case, asked)
    writers = {".html": report.as_html, ".json": report.as_json, ".csv": report.as_csv}
    for path in dict.fromkeys([file, *(file.with_suffix(suffix) for suffix in also)]):
        text = writers[path.suffix.lower()]()
        with new_file(path) as fresh:
            fresh.write_text(text, encoding="utf-8", newline="")
    return report


def platelets(case: Case) -> Platelets | None:
    """Estimate the platelets, of a run on `MOST_PICTURES` of its pictures; None where none can be looked at."""
    step = -(-len(case.pictures) // MOST_PICTURES)
    found = []
    for picture in case.pictures[::step]:
        cells = picture.session.before if picture.session else picture.cells
        try:
            film = film_of(picture.slide, cells)
        except (ImageError, OSError):  # the report says elsewhere that the picture is not found
            continue
        if film is not None:
            found.append(film.count(picture.cells))
    return pooled(found)


def together(case: Case) -> str:
    """Say that several patients are counted as one; empty where they are not, or nobody named them."""
    if len(case.patients) < 2:
        return ""
    return (
        f"{len(case.patients)} patients are counted together; for the report of one give the folder of one of the "
        "pictures, or of a batch of this patient alone"
    )


def _settings(case: Case) -> Mapping[str, Any]:
    """Return what was set in the review of the one picture; a run of several has no settings of its own."""
    session = case.pictures[0].session
    return session.settings if session is not None and len(case.pictures) == 1 else {}


def _names(case: Case) -> str:
    more = len(case.pictures) - 3
    return ", ".join(picture.name for picture in case.pictures[:3]) + (f" and {more} more" if more > 0 else "")


def _counted(case: Case, target: int | None, seed: int) -> npt.NDArray[np.bool_]:
    """Which cells are counted: those of the review, or of fields that stand one below the other."""
    first = case.pictures[0]
    if len(case.pictures) == 1 and first.session is not None:
        return chosen(case.cells, first.session.order, target)
    heights = [picture.shape[0] if picture.shape else 0 for picture in case.pictures]
    below = np.cumsum([0, *heights[:-1]])[case.of]
    return chosen(case.cells, walk(case.cells.centroids + np.stack([below, below * 0], axis=1), seed), target)


def review_of(cells: Cells) -> dict[str, Any]:
    """Return who decided on which share of the cells, when, and how far they agree with the model."""
    table = cells.table[cells.table["class_reviewed"] != ""]
    readers = []
    for name, own in table.groupby("reviewer", sort=True):
        times = sorted(time for time in own["reviewed_at"] if time) or [None]
        changed = int((own["class_reviewed"] != own["class_model"]).sum())
        one = {"reviewer": str(name) or "not named", "n": len(own), "share": 100 * len(own) / len(cells)}
        readers.append(one | {"changed": changed, "first": times[0], "last": times[-1]})
    n = len(table)
    both = compare(by_model(Cells(table)), Cells(table))
    return {"n": n, "of": len(cells), "share": 100 * n / len(cells) if len(cells) else None, "readers": readers,
            "both": both.common, "same": both.same, "kappa": both.kappa, "unidentified": both.unidentified}  # fmt: skip


def still_open(cells: Cells, signed: Mapping[str, Any] | None) -> list[str]:
    """Return why a report is preliminary; empty if it is not."""
    unresolved = int(cells.table["class"].isin([UNIDENTIFIED, ""]).sum())
    reasons = []
    if unresolved:
        reasons.append(
            f"{unresolved} of {plural(len(cells), 'cell')} {'are' if unresolved != 1 else 'is'} unidentified"
        )
    if signed is None:
        reasons.append("not signed")
    return reasons


def signature_of(case: Case) -> dict[str, Any] | None:
    """Return who signed the results and when, or None while one of the pictures is not signed."""
    entries = [picture.session.signed if picture.session else None for picture in case.pictures]
    signed = [entry for entry in entries if entry is not None]
    if len(signed) < len(entries):
        return None
    names = dict.fromkeys(str(entry["reviewer"]) for entry in signed)
    return {"name": ", ".join(names), "at": max(str(entry["at"]) for entry in signed)}


def skipped(case: Case) -> dict[str, Any]:
    """Return what was not counted, or counted with doubt, and why."""
    from .report_pictures import regions

    table = case.cells.table
    open_ = table[table["class"] == UNIDENTIFIED]
    said = table[table["class_model"] == UNIDENTIFIED]
    notes = (str(note) for picture in case.pictures for note in picture.facts.get("notes", []))
    before = [(set(p.session.before.table["label"]), set(p.cells.table["label"])) for p in case.pictures if p.session]
    return {
        "unidentified": [
            {"why": _WHY.get(str(reason), str(reason)), "n": int(n)}
            for reason, n in open_["reason"].value_counts(sort=False).sort_index().items()
        ],
        "resolved": int((said["class"] != UNIDENTIFIED).sum()),
        "added": sum(len(after - then) for then, after in before),
        "removed": sum(len(then - after) for then, after in before),
        "cut": int(table["at_border"].sum()),
        "without_class": int((table["class"] == "").sum()),
        "failed": [{"slide": slide, "why": why} for slide, why in case.failed],
        "notes": [note for note in dict.fromkeys(notes) if not note.endswith(UNLIKE_NOTE)],  # they stand above
        "regions": list(regions(case)),
    }


def _pictures(case: Case) -> list[dict[str, Any]]:
    rows = []
    for picture in case.pictures:
        mpp = picture.cells.table["mpp"].median() if len(picture.cells) else picture.facts.get("mpp")
        rows.append({"name": picture.name, "cells": len(picture.cells), "sha256": _sha256(picture),
                     "mpp": mpp, "mpp_source": picture.facts.get("mpp_source"),
                     "pixels": list(picture.shape) if picture.shape else None})  # fmt: skip
    return rows


def _sha256(picture: Picture) -> str | None:
    """Return the check sum of the file that was analysed; of results without a record, that of the file as it is."""
    if picture.facts:
        recorded = picture.facts.get("sha256")
        return None if recorded is None else str(recorded)
    try:
        return picture.slide.sha256()
    except (ImageError, OSError):  # the report says elsewhere that the picture is not found
        return None


def _made(case: Case) -> dict[str, Any]:
    parameters = dict(case.run.get("parameters", {}))
    segmentation = parameters.pop("segmentation", {})
    return {
        "analysed": case.run.get("started"),
        "versions": case.run.get("versions", {}),
        "reported_with": versions()["napari-wbc"],
        "parameters": parameters | {f"segmentation {name}": value for name, value in segmentation.items()},
    }


def _axis(rows: list[dict[str, Any]]) -> int:
    """Return where the axis of the chart ends, per cent."""
    highs = [row["high"] or 0 for row in rows if row["group"] == "white"]
    highs += [row["reference_high"] or 0 for row in rows if row["group"] == "white"]
    return next(top for top in (20, 40, 60, 80, 100) if max(highs, default=0) <= top or top == 100)


def _rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the content as rows of a table."""
    rows: list[dict[str, Any]] = []

    def add(section: str, item: str, value: Any) -> None:
        rows.append({"section": section, "item": item, "value": value})

    for key in ("use", "slide_id", "patient_id", "together", "date", "wbc_per_ul", "reference_source"):
        add("report", key, content[key])
    for reason in content["preliminary"]:
        add("report", "preliminary", reason)
    for section in ("signature", "cells", "made"):
        for key, value in (content[section] or {}).items():
            if isinstance(value, dict):
                for name, each in value.items():
                    add(key, name, each)
            else:
                add(section, key, value)
    for key, value in (content["platelets"] or {}).items():
        add("platelets", key, value)
    for row in content["differential"]:
        known = {key: value for key, value in row.items() if key not in ("class", "value")}
        rows.append({"section": "differential", "item": row["class"], "value": row["value"]} | known)
    for reader in content["review"]["readers"]:
        add("review", reader["reviewer"], reader["n"])
        rows[-1] |= {key: reader[key] for key in ("share", "changed", "first", "last")}
    left = content["skipped"]
    for row in left["unidentified"]:
        add("unidentified", row["why"], row["n"])
    for key in ("resolved", "added", "removed", "cut", "without_class"):
        add("skipped", key, left[key])
    for row in left["failed"]:
        add("failed", row["slide"], row["why"])
    for note in left["notes"]:
        add("skipped", "note", note)
    for row in left["regions"]:
        add("region", row["region"], row["area_mm2"])
        rows[-1] |= {"unit": "mm²", "share": 100 * row["share"], "flag": "used" if row["used"] else "left out"}
    for row in content["pictures"]:
        add("picture", row["name"], row["sha256"])
        rows[-1] |= {"n": row["cells"]}
    for key in ("name", "sha256", "description"):
        add("model", key, content["model"].get(key))
    for row in content["model"].get("results", []):
        add("model result", f"{row['what']}: {row['data']}", row["value"])
        rows[-1] |= {"n": row["n"], "low": row["low"], "high": row["high"]}
    return rows

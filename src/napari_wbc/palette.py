"""One colour a class, the same in layers, charts, pictures and files."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from .class_names import NOT_WHITE, SMUDGE, UNIDENTIFIED, usual_name

_OTHER = {UNIDENTIFIED: "#4d4d4d", SMUDGE: "#44aa99", NOT_WHITE: "#aaaaaa"}
_NAMES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil", "immature granulocyte", "erythroblast",
          "platelet")  # fmt: skip
# Told apart with every common form of colour blindness: Okabe and Ito, "Color universal design", 2008, and two of Tol's
# muted scheme (personal.sron.nl/~pault); that scheme.
_OKABE_ITO = ("#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#f0e442", "#56b4e9", "#882255")
_TOL = ("#332288", "#117733", "#ddcc77", "#cc6677", "#aa4499", "#999933", "#88ccee", "#882255")
PALETTES: Mapping[str, Mapping[str, str]] = {
    name: dict(zip(_NAMES, colours, strict=True)) | _OTHER
    for name, colours in (("Okabe and Ito", _OKABE_ITO), ("Tol, muted", _TOL))
}
COLOURS: dict[str, str] = dict(PALETTES["Okabe and Ito"])
"""Those in use (`use_palette`)."""
REGIONS: Mapping[str, str] = {
    "monolayer": "#bbcc33",
    "glass": "#dddddd",
    "feathered edge": "#77aadd",
    "thick part": "#ee8866",
    "out of focus": "#aa4499",
    "pen": "#332288",
}
"""Parts of a whole slide (`napari_wbc.coarse.REASONS`)."""

_OTHERS = ("#332288", "#88ccee", "#117733", "#999933", "#ddcc77", "#cc6677", "#aa4499")


def use_palette(name: str) -> None:
    """Take the colours of one of `PALETTES` for all that is drawn from now on; of the first for another name."""
    COLOURS.update(PALETTES.get(name, next(iter(PALETTES.values()))))


def colour(name: str) -> str:
    """Return the colour of a class as ``#rrggbb``; a class of the user's own keeps its colour from run to run."""
    free = [other for other in (*_OTHERS, *_OKABE_ITO) if other not in COLOURS.values()]
    return COLOURS.get(usual_name(name)) or free[zlib.crc32(name.encode()) % len(free)]

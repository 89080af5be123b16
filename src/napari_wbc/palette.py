"""One colour a class, the same in layers, charts, pictures and files."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from .cells import NOT_WHITE, SMUDGE, UNIDENTIFIED, usual_name

# Okabe and Ito, "Color universal design", 2008, and two of Tol's muted scheme (personal.sron.nl/~pault):
# told apart with every common form of colour blindness.
COLOURS: Mapping[str, str] = {
    "neutrophil": "#0072b2",
    "lymphocyte": "#009e73",
    "monocyte": "#e69f00",
    "eosinophil": "#d55e00",
    "basophil": "#cc79a7",
    "immature granulocyte": "#f0e442",
    "erythroblast": "#56b4e9",
    "platelet": "#882255",
    UNIDENTIFIED: "#4d4d4d",
    SMUDGE: "#44aa99",
    NOT_WHITE: "#aaaaaa",
}
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


def colour(name: str) -> str:
    """Return the colour of a class as ``#rrggbb``; a class of the user's own keeps its colour from run to run."""
    return COLOURS.get(usual_name(name)) or _OTHERS[zlib.crc32(name.encode()) % len(_OTHERS)]

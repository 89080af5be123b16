"""Names of classes, and what else a cell may be called; without a table, so that a dock opens at once."""

from __future__ import annotations

UNIDENTIFIED, SMUDGE, NOT_WHITE = "unidentified", "smudge", "not a white cell"
BESIDE_MODEL = (UNIDENTIFIED, SMUDGE, NOT_WHITE)
"""What a reviewer may call a cell besides the model's classes."""

SYNONYMS = {
    "ig": "immature granulocyte", "immature granulocytes": "immature granulocyte", "nrbc": "erythroblast",
    "neutrophils": "neutrophil", "lymphocytes": "lymphocyte", "monocytes": "monocyte", "eosinophils": "eosinophil",
    "basophils": "basophil", "platelets": "platelet", "erythroblasts": "erythroblast",
}  # fmt: skip


def usual_name(name: str) -> str:
    """The class that a label of a data set means: without capitals and underscores, one name for synonyms."""
    plain = name.strip().lower().replace("_", " ")
    return SYNONYMS.get(plain, plain)

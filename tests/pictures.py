"""The real pictures of the tests."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
FIELDS = sorted((DATA / "fields").glob("*.jpg"))
CROPS = sorted((DATA / "crops").glob("*/*.jpg"))
PBC_MPP = 0.145

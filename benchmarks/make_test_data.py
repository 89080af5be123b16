"""Write the small real pictures that the tests use.

python benchmarks/make_test_data.py --data DATA
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pandas as pd

CROPS_PER_CLASS = 3
FIELDS = ("BloodImage_00000", "BloodImage_00031", "BloodImage_00070", "BloodImage_00289", "BloodImage_00176")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "tests/data")
    args = parser.parse_args()
    table = pd.read_csv(args.data / "pbc/labels.csv")
    for name, rows in table[table.split == "val"].groupby("class"):
        folder = args.out / "crops" / str(name)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(rows.file)[:: len(rows) // CROPS_PER_CLASS][:CROPS_PER_CLASS]:
            shutil.copyfile(args.data / "pbc/val" / str(name) / Path(file).name, folder / Path(file).name)
    fields = args.out / "fields"
    fields.mkdir(parents=True, exist_ok=True)
    for name in FIELDS:
        shutil.copyfile(args.data / f"bccd/images/{name}.jpg", fields / f"{name}.jpg")
    (args.out / "README.md").write_text(
        "# Test pictures\n\n"
        "- `crops/`: single cells of the normal peripheral blood cell set of the Hospital Clinic of Barcelona, resized "
        "to 256 px. Acevedo et al., Data in Brief 30:105474, 2020, doi 10.17632/snkd93bnjr.1, CC BY 4.0.\n"
        "- `fields/`: fields of the BCCD Dataset, github.com/Shenggan/BCCD_Dataset, MIT.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()

"""Write the sample fields of the package from the public data sets.

python benchmarks/make_samples.py --data DATA
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from PIL import Image

BCCD = "BCCD Dataset, github.com/Shenggan/BCCD_Dataset"
BCISC = "BCISC, github.com/fpklipic/BCISC; Fan et al., LeukocyteMask, Journal of Biophotonics, 2019"
PBC = "Acevedo et al., Data in Brief 30:105474, 2020, doi 10.17632/snkd93bnjr.1; resized"
MOSAIC = (193, 43, 70, 44, 34, 176, 313, 31, 195)  # fields with two white cells each
FIELDS = (
    (
        "smear_neutrophil_monocyte",
        "Smear, blue-grey: neutrophil and monocyte",
        "bccd/images/BloodImage_00043.jpg",
        BCCD,
        "MIT",
    ),
    (
        "smear_neutrophil_basophil",
        "Smear, blue-grey: neutrophil and basophil",
        "bccd/images/BloodImage_00034.jpg",
        BCCD,
        "MIT",
    ),
    ("dark_neutrophil", "Smear, light spot, violet: neutrophil", "bcisc_sample/neut_6-2.jpg", BCISC, "Apache-2.0"),
    ("dark_lymphocyte", "Smear, light spot, blue: lymphocyte", "bcisc_sample/lymp_10-5.jpg", BCISC, "Apache-2.0"),
    ("dark_monocyte", "Smear, light spot, brown: monocyte", "bcisc_sample/mono_3-2.jpg", BCISC, "Apache-2.0"),
    ("dark_eosinophil", "Smear, light spot, green: eosinophil", "bcisc_sample/eosi_2-3.jpg", BCISC, "Apache-2.0"),
    ("dark_basophil", "Smear, light spot, yellow: basophil", "bcisc_sample/baso_3-2.jpg", BCISC, "Apache-2.0"),
    ("yellow_eosinophil", "Single-cell view, cream: eosinophil", "pbc/val/eosinophil/EO_109766.jpg", PBC, "CC-BY-4.0"),
    (
        "yellow_erythroblast",
        "Single-cell view, cream: erythroblast",
        "pbc/val/erythroblast/ERB_111336.jpg",
        PBC,
        "CC-BY-4.0",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "src/napari_wbc/sample_data")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    mosaic = Image.new("RGB", (3 * 640, 3 * 480))
    for k, number in enumerate(MOSAIC):
        with Image.open(args.data / f"bccd/images/BloodImage_{number:05}.jpg") as field:
            mosaic.paste(field, (k % 3 * 640, k // 3 * 480))
    mosaic.save(args.out / "nine_fields.jpg", quality=88)
    entries = [
        {
            "key": "nine_fields",
            "title": "Nine smear fields side by side (18 white cells)",
            "file": "nine_fields.jpg",
            "source": BCCD + "; nine fields joined",
            "licence": "MIT",
        }
    ]
    for key, title, file, source, licence in FIELDS:
        shutil.copyfile(args.data / file, args.out / f"{key}.jpg")
        entries.append({"key": key, "title": title, "file": f"{key}.jpg", "source": source, "licence": licence})
    (args.out / "samples.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

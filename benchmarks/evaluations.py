"""Run `napari-wbc evaluate` with the shipped model on the public sets; write what it gave, and its pictures, for the documentation.

    python benchmarks/evaluations.py --data DATA -o REPORTS [--markdown FILE]
    python benchmarks/evaluations.py --data DATA -o REPORTS --only SET --picture FILE
"""  # fmt: skip

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from napari_wbc.cli import app

MODEL = "wbc8-mobilenetv2"
SETS = {
    "pbc": ("pbc --part val --mpp 0.145", "`pbc/val`, other images of the slides that it was trained on"),
    "bccd": ("bccd --among data", "`bccd`, trained on: no test"),
    "dataset1": ("segmentation_wbc/dataset1 --among data", "`segmentation_wbc` dataset 1, another laboratory"),
    "dataset2": ("segmentation_wbc/dataset2 --among data", "`segmentation_wbc` dataset 2, another laboratory"),
}
METRICS = ("accuracy", "balanced accuracy", "macro-F1", "Cohen's kappa", "AUC, mean over classes", "ECE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--markdown", type=Path, help="table to write")
    parser.add_argument("--only", choices=list(SETS))
    parser.add_argument("--picture", type=Path, help="with --only: the plots, to be written there")
    arguments = parser.parse_args()
    lines = ["| data | cells | " + " | ".join(METRICS) + " |", "|---|" + "---:|" * (len(METRICS) + 1)]
    for name in [arguments.only] if arguments.only else SETS:
        words, told = SETS[name]
        folder, (data, *options) = arguments.output / name, words.split()
        app(["evaluate", MODEL, str(arguments.data / data), *options, "-o", str(folder)], standalone_mode=False)
        [judged] = json.loads((folder / "report.json").read_text(encoding="utf-8"))["evaluations"]
        metrics = {metric["metric"]: metric for metric in judged["metrics"]}
        values = (f"{m['value']:.3f} ({m['low']:.3f}–{m['high']:.3f})" for m in map(metrics.__getitem__, METRICS))
        lines.append(f"| {told} | {metrics['accuracy']['n']} | " + " | ".join(values) + " |")
        if arguments.only and arguments.picture:
            [plots] = [path for path in folder.glob("*.png") if not path.stem.endswith("_wrong")]
            with Image.open(plots) as picture:
                picture.convert("P", palette=Image.Palette.ADAPTIVE).save(arguments.picture, optimize=True)
    text = "\n".join(lines) + "\n"
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

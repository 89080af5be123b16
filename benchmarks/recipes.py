"""Run the recipes of published protocols, scaled down, with the leak-free and the random split; write what they give.

    python benchmarks/recipes.py --data DATA --runs FOLDER [--only RECIPE ...] [--device cuda] [--markdown FILE]

Runs that are finished in FOLDER are not run again, interrupted ones go on; recipes that have not run say so in the
table. ImageNet weights of MobileNetV2 are taken from DATA/weights, those of the other networks are not there: they
start from random ones, and the table says so.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from napari_wbc.cli import app
from napari_wbc.protocol import load_protocol

MOBILENET = "--start mobilenet_v2=DATA/weights/mobilenet_v2_imagenet.safetensors"
RUNS = {
    "togatorop2023": (
        "DATA/bccd", f"{MOBILENET} --scale 0.02 --pixels 64 --folds 2",
        "`bccd`: 339 cells of the fields with one white cell and one type (367 fields in the source)",
        "MobileNetV2: ImageNet (see [Quality](quality.md))",
    ),
    "mobilenetv2-5class": (
        "DATA/bccd DATA/pbc", f"{MOBILENET} --scale 0.1 --pixels 96",
        "`bccd` and `pbc` together, their five mature classes, stand in for the source's 5 × 700 images",
        "MobileNetV2: ImageNet",
    ),
    "muntasa2025": (
        "DATA/all_taleqani", "--start random --scale 0.1 --pixels 48 --folds 2",
        "`all_taleqani`, malignant against benign, stands in for C-NMC: fields, not single cells, whose stain and "
        "brightness differ between the classes, so that the numbers say little of the cells",
        "EfficientNetV2-S: from random weights",
    ),
    "transfer-8class": (
        "DATA/pbc", f"--start random {MOBILENET} --scale 0.03 --pixels 48",
        "`pbc`, as in the source", "MobileNetV2: ImageNet; VGG16, VGG19 and ResNet50: from random weights",
    ),
    "frozen-vs-custom": (
        "DATA/pbc", "--start random --scale 0.02 --pixels 80",
        "`pbc`: eosinophils, lymphocytes, monocytes and neutrophils",
        "all from random weights, so that DenseNet201 and Inception-ResNet-v2 are not frozen: they learn as a whole",
    ),
}  # fmt: skip
SPLITS = {"leak-free": "", "random": " --split random"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--splits", nargs="*", default=list(SPLITS), choices=list(SPLITS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--markdown", type=Path, help="table to write")
    arguments = parser.parse_args()
    for split in arguments.splits:
        for name in arguments.only:
            folder = arguments.runs / f"{name}_{split}"
            if not (folder / "ranked.csv").is_file():
                words = command(name, split).replace("DATA", str(arguments.data)).split()
                app([*words[1:], "--device", arguments.device, "-o", str(folder)], standalone_mode=False)
    text = "\n".join(section(name, arguments.runs) for name in RUNS)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    print(text)


def command(name: str, split: str) -> str:
    data, options, *_ = RUNS[name]
    return f"napari-wbc train {data} --recipe {name} {options}{SPLITS[split]}"


def section(name: str, runs: Path) -> str:
    """What a recipe gave, as Markdown."""
    *_, data, weights = RUNS[name]
    protocol = load_protocol(name)
    tables = {split: runs / f"{name}_{split}" for split in SPLITS}
    tables = {split: folder for split, folder in tables.items() if (folder / "ranked.csv").is_file()}
    lines = [f"## {name}", "", f"Source: {protocol.source}. Reported there: {'; '.join(protocol.reported)}.", ""]
    lines += [f"- Data: {data}.", f"- Weights: {weights}."]
    scaled = next((t for folder in tables.values() for t in pd.read_csv(folder / "ranked.csv")["scaled"]), "")
    lines += [f"- Scaled: {scaled}."] if isinstance(scaled, str) and scaled else []
    for split, folder in tables.items():
        cards = sorted(p for p in folder.rglob("*.json") if p.with_suffix(".safetensors").is_file())
        training = json.loads(cards[0].read_text(encoding="utf-8"))["training"]
        lines.append(f"- {split.capitalize()} split: {'; '.join(training['notes'])}.")
    lines += ["", "```bash", f"{command(name, 'leak-free')} -o runs/{name}", "```", ""]
    if not tables:
        return "\n".join([*lines, "Not run yet.", ""])
    both = [shown(folder, split) for split, folder in tables.items()]
    table = both[0].join(both[1:], how="outer") if len(both) > 1 else both[0]
    table = table.loc[both[0].index].reset_index()
    lines += ["| " + " | ".join(table.columns) + " |", "|---" * 2 + "|---:" * (len(table.columns) - 2) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    missing = [split for split in SPLITS if split not in tables]
    return "\n".join([*lines, "", *(f"The {split} split was not run yet." for split in missing), ""])


def shown(folder: Path, split: str) -> pd.DataFrame:
    """Accuracy, macro-F1 and AUC of each variant in the order in which they were tried."""
    ranked, runs = pd.read_csv(folder / "ranked.csv"), pd.read_csv(folder / "runs.csv")
    part = "test" if "test accuracy" in ranked else "val"
    order = list(dict.fromkeys(zip(runs["stage"], runs["variant"], strict=True)))
    ranked = ranked.set_index(["stage", "variant"]).loc[order]

    def text(name: str) -> pd.Series:
        sd = ranked[f"{name} sd"]
        spread = sd.map(lambda value: "" if pd.isna(value) else f" ± {100 * value:.1f}")
        return ranked[name].map(lambda v: "failed" if pd.isna(v) else f"{100 * v:.1f}") + spread

    names = {"accuracy": "accuracy %", "F1": "macro-F1 %", "AUC": "AUC %"}
    return pd.DataFrame({f"{split}: {part} {told}": text(f"{part} {name}") for name, told in names.items()})


if __name__ == "__main__":
    main()

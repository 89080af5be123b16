"""Take the picture of the report: a bundled smear, annotated and reviewed, printed to A4 by Chromium.

Run ``python docs/make_report.py``; needs ``chromium`` and ``pdftoppm`` (poppler-utils).
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from napari_wbc import Classifier, Slide, analyse, run, samples, write_results
from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.report import Asked, write_report
from napari_wbc.review_session import ReviewSession

FILE = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "images/report.png"
BROWSER = ("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer")
TO_PNG = ("pdftoppm", "-r", "72", "-png")
PAGES, GAP = (1, 3), 16


def reviewed(folder: Path) -> Path:
    """Annotate the smear and decide on some of its cells; one stays unidentified."""
    smear = next(sample.path for sample in samples() if sample.key == "nine_fields")
    write_results(run(analyse(Slide.open(smear), Classifier.load())), folder)
    session = ReviewSession.open(folder)
    table = session.cells.table
    unsure = table.loc[table["class"] == UNIDENTIFIED, "label"].tolist()
    session.decide(unsure[:1], "lymphocyte", "reader 1")
    session.decide(unsure[1:2], "smudge", "reader 1")
    session.accept(table.loc[table["class"] == "neutrophil", "label"].tolist(), "reader 1")
    session.accept(table.loc[table["class"] == "eosinophil", "label"].tolist(), "reader 2")
    session.save()
    return folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        page, pdf = Path(home) / "report.html", Path(home) / "report.pdf"
        write_report(reviewed(Path(home) / "results"), page, Asked(patient_id="example", wbc=6400.0))
        printed = subprocess.run(
            [*BROWSER, "--enable-logging=stderr", f"--print-to-pdf={pdf}", page.as_uri()],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        print("\n".join(re.findall(r".*CONSOLE.*", printed.stderr)) or "no errors in the console")
        subprocess.run([*TO_PNG, str(pdf), f"{home}/page"], check=True)
        shots = [Image.open(Path(home) / f"page-{k}.png") for k in PAGES]
        width, height = shots[0].size
        both = Image.new("RGB", (2 * width + 3 * GAP, height + 2 * GAP), "#b8bec8")
        for k, shot in enumerate(shots):
            both.paste(shot, (GAP + k * (width + GAP), GAP))
        both.save(FILE, optimize=True)  # all colours: those of the classes must not merge
        print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB")

"""The report: what it says, what it is made of, and what names and missing things do to it."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import re
import shutil
import subprocess
import time
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import slides
from PIL import Image
from typer.testing import CliRunner

from napari_wbc.atomic import ExportError
from napari_wbc.case import case_of
from napari_wbc.cells import REVIEW_COLUMNS, UNLIKE, UNLIKE_NOTE, Cells
from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.cli import app
from napari_wbc.count import differential
from napari_wbc.export import read_results, slide_note, write_folder, write_results
from napari_wbc.pipeline import analyse, run
from napari_wbc.report import Asked, make_report, write_report
from napari_wbc.review_session import ReviewSession
from napari_wbc.slide import Slide

EVIL = (
    '<script>alert("1")</script>',
    '=HYPERLINK("http://x")',
    '</style><img src=x onerror=alert(1)>"',
    "@SUM(1)",
    "-2+3",
)


class Page(HTMLParser):
    """Tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def check(self) -> None:
        """Nothing is run, and nothing is fetched from elsewhere."""
        assert not {tag for tag, _ in self.tags} & {"script", "link", "iframe", "object", "form", "base"}
        for tag, attributes in self.tags:
            assert not any(name.startswith("on") for name in attributes), (tag, attributes)
            for name in ("src", "href"):
                assert attributes.get(name, "data:image/jpeg").startswith("data:image/jpeg"), attributes[name][:60]


def cells_of(picture: Path) -> Cells:
    return read_results(picture).cells


def test_it_says_what_the_results_say(case):
    made = write_report(case / "r", case / "x.html", Asked("S 1", "P 2", 6400.0), also=[".json", ".csv"])
    cells, counts = cells_of(case / "r/nine"), differential(cells_of(case / "r/nine"))
    told = json.loads((case / "x.json").read_text("utf-8"))
    assert told == made.content
    assert [(row["class"], row["n"]) for row in told["differential"]] == list(
        zip(counts["class"], counts["n"], strict=True)
    )
    neutrophil = told["differential"][0]
    assert neutrophil["reference_low"] == 40
    assert neutrophil["per_ul"] == pytest.approx(64 * neutrophil["value"], abs=0.06)
    assert (told["slide_id"], told["patient_id"]) == ("S 1", "P 2")
    unsure = int((cells.table["class"] == UNIDENTIFIED).sum())
    assert told["preliminary"] == [f"{unsure} of {len(cells)} cells are unidentified", "not signed"]
    assert sum(row["n"] for row in told["skipped"]["unidentified"]) == unsure
    assert told["skipped"]["failed"][0]["slide"] == "cut.jpg"
    assert "damaged" in told["skipped"]["failed"][0]["why"]
    assert told["model"]["name"] == "wbc8-mobilenetv2"
    assert {row["data"] for row in told["model"]["results"] if not row["elsewhere"]} == {
        "pbc/val", "bccd, single-cell fields (trained on bccd: no test)",
    }  # fmt: skip
    assert "TXL-PBC" in told["model"]["further_data"][0]
    assert told["pictures"][0]["sha256"]
    table = pd.read_csv(case / "x.csv", keep_default_na=False, dtype=str)
    rows = table[table["section"] == "differential"]
    assert rows["n"].astype(int).tolist() == counts["n"].tolist()
    text = (case / "x.html").read_text("utf-8")
    page = Page(text)
    page.check()
    for words in (
        "Research use only",
        "Preliminary",
        "P 2",
        "S 1",
        "Clopper–Pearson",
        "MedlinePlus",
        "6400",
        "cut.jpg",
    ):
        assert words in page.text
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert len(pictures) == 1 + len(cells)  # the field, and all cells: there are less than 16 of each class
    assert len(text) < 1_000_000


def test_nothing_that_was_left_out_is_listed_twice(case):
    table = cells_of(case / "r/nine").table
    unlike = int((table["reason"] == UNLIKE).sum())
    assert unlike
    record = json.loads((case / "r/run.json").read_text("utf-8"))
    assert [note for note in record["inputs"][0]["notes"] if note.endswith(UNLIKE_NOTE)]
    made = make_report(case / "r")
    assert [row["n"] for row in made.content["skipped"]["unidentified"] if "unlike" in row["why"]] == [unlike]
    assert not [note for note in made.content["skipped"]["notes"] if "unlike" in note]
    page = Page(made.as_html())
    captions = re.findall(r"<figcaption>([^<]*)", made.as_html())
    assert sum(caption.endswith("unlike") for caption in captions) == unlike  # beside a probability that would do
    assert "only those as large as a white cell" in page.text  # the row of platelets beside their estimate


def test_what_no_run_recorded_is_known_of_the_picture_that_is_shown(case, classifier):
    digest = hashlib.sha256((case / "nine.jpg").read_bytes()).hexdigest()
    results = read_results(case / "r/nine")
    saved = write_folder(case / "saved", results.cells, results.labels, picture=case / "nine.jpg", corrected=True)
    made = make_report(saved)
    assert made.content["pictures"][0]["sha256"] == digest
    assert re.search(r"Analysed</td><td>not recorded", made.as_html())
    found = run(analyse(Slide.open(case / "nine.jpg"), classifier))
    shown = make_report(case_of(found.slide, found.cells, found.labels, analysis=found)).content
    assert shown["pictures"][0]["sha256"] == digest
    assert shown["made"]["analysed"] == found.at
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found.at)).total_seconds()) < 600


def test_a_signed_review_is_no_longer_preliminary(case):
    session = ReviewSession.open(case / "r/nine")
    table = session.cells.table
    unsure = table.loc[table["class"] == UNIDENTIFIED, "label"].tolist()
    session.decide(unsure, "lymphocyte", "A. Reader")
    session.accept(table.loc[table["class"] == "neutrophil", "label"].tolist(), "B. Second")
    session.remove(table.loc[table["class"] == "eosinophil", "label"].tolist()[:1], "A. Reader")
    session.sign("B. Second")
    counted, n = differential(session.cells), len(session.cells)
    made = make_report(case / "r/nine")
    told = made.content
    assert told["preliminary"] == []
    assert told["signature"]["name"] == "B. Second"
    left = f"{n - told['review']['n']} of {n} cells that nobody looked at"
    assert told["signature"]["unseen"] == left
    assert [row["n"] for row in told["differential"]] == counted["n"].tolist()
    readers = {row["reviewer"]: row for row in told["review"]["readers"]}
    assert readers["A. Reader"]["n"] == readers["A. Reader"]["changed"] == len(unsure)
    assert readers["B. Second"]["changed"] == 0
    assert readers["A. Reader"]["share"] == pytest.approx(100 * len(unsure) / n)
    assert told["review"]["same"] == readers["B. Second"]["n"]
    assert told["skipped"]["resolved"] == len(unsure)
    assert (told["skipped"]["added"], told["skipped"]["removed"]) == (0, 1)
    page = Page(made.as_html())
    assert f"Signed with {left}." in page.text
    assert "Preliminary" not in page.text
    session.accept(table["label"].tolist()[:1], "A. Reader")  # a later decision voids the signature
    assert make_report(case / "r/nine").content["preliminary"] == ["not signed"]


def test_the_cells_of_the_review_are_counted(case):
    session = ReviewSession.open(case / "r/nine")
    session.set(target=8, seed=3, wbc=5000.0)
    told = make_report(case / "r/nine").content
    assert told["cells"]["counted"] == session.counted.sum() < told["cells"]["found"]
    assert told["differential"][0]["n"] == (session.cells.table["class"][session.counted] == "neutrophil").sum()
    assert told["wbc_per_ul"] == 5000
    assert "seed 3" in told["cells"]["chosen"]
    assert make_report(case / "r/nine", Asked(target="all")).content["cells"]["counted"] == len(session.cells)


@pytest.mark.parametrize("evil", EVIL)
def test_names_write_nothing_into_page_or_table(case, evil):
    cells = cells_of(case / "r/nine").table
    cells["slide"] = evil
    cells.loc[:4, "class"] = evil
    cells.loc[:4, "class_reviewed"] = evil
    cells.loc[:4, "reviewer"] = evil
    folder = write_folder(case / "evil", Cells(cells), read_results(case / "r/nine").labels, picture=case / "nine.jpg")
    made = write_report(folder, case / "x.html", Asked(evil, evil), also=[".csv", ".json"])
    assert made.content["patient_id"] == json.loads((case / "x.json").read_text("utf-8"))["patient_id"] == evil
    page = Page((case / "x.html").read_text("utf-8"))
    page.check()
    assert page.text.count(evil) > 5
    assert (
        evil in page.text.partition("@page")[2].partition("White cells counted")[0]
    ) is True  # the dl, not the style
    style = re.search(r"<style>(.*?)</style>", (case / "x.html").read_text("utf-8"), re.DOTALL)
    assert evil not in style[1]
    with (case / "x.csv").open(encoding="utf-8", newline="") as stream:
        values = [value for row in csv.reader(stream) for value in row]
    assert any(evil in value for value in values)
    assert not [v for v in values if v[:1] in "=+-@\t\r" and v and not re.fullmatch(r"-?[\d.e-]+", v)]


def test_a_slide_that_moved_is_asked_for(case, tmp_path):
    sought = read_results(case / "r/nine").sought
    (case / "nine.jpg").rename(tmp_path / "elsewhere.jpg")
    shutil.move(case / "r/nine", tmp_path / "alone")
    annotated_here = sought.exists()
    assert annotated_here
    sought_away = sought.with_suffix(".away")
    sought.rename(sought_away)
    try:
        out = CliRunner().invoke(app, ["report", str(tmp_path / "alone"), "-o", str(tmp_path / "x.html")])
        assert out.exit_code == 0, out.output
        assert f"it was sought at {sought}" in out.output.replace("\n", "")
        assert "--image" in out.output
        page = Page((tmp_path / "x.html").read_text("utf-8"))
        assert "the picture is not found" in page.text
        assert not [tag for tag, _ in page.tags if tag == "img"]
        made = make_report(tmp_path / "alone", image=tmp_path / "elsewhere.jpg")
        assert made.pictures.missing == []
        assert len(made.pictures.overviews) == 1
        wrong = make_report(tmp_path / "alone", image=slides.FIELDS[0])
        assert "is not the picture that was analysed: 640 × 480" in wrong.pictures.missing[0]
        with pytest.raises(ExportError, match="no such file or folder; --image says"):
            make_report(tmp_path / "alone", image=tmp_path / "nowhere.jpg")
        shutil.move(tmp_path / "elsewhere.jpg", tmp_path / "nine.jpg")  # beside its results, with which it moved
        assert make_report(tmp_path / "alone").pictures.missing == []
    finally:
        sought_away.rename(sought)


def test_no_cells(tmp_path, classifier):
    Image.new("RGB", (400, 300), (240, 235, 238)).save(tmp_path / "blank.png")
    found = run(analyse(Slide.open(tmp_path / "blank.png"), classifier))
    made = write_report(
        write_results(found, tmp_path / "r"), tmp_path / "x.html", Asked(wbc=5000.0), also=[".json", ".csv"]
    )
    assert made.content["cells"]["found"] == made.content["cells"]["white"] == 0
    assert made.content["differential"][0]["value"] is None
    page = Page((tmp_path / "x.html").read_text("utf-8"))
    page.check()
    assert "nan" not in page.text.lower().replace("nana", "")


def test_twenty_thousand_cells_make_a_small_report_in_seconds(tmp_path, classifier):
    path = slides.write(tmp_path / "slide.tif", slides.mosaic())
    n, rng = 20_000, np.random.default_rng(0)
    names = classifier.card.classes
    rows, columns = rng.uniform(40, 900, n), rng.uniform(40, 1200, n)
    table = pd.DataFrame(
        {"slide": path.name, "label": np.arange(1, n + 1), "centroid-0": rows, "centroid-1": columns,
         "bbox-0": rows.astype(int) - 30, "bbox-1": columns.astype(int) - 30, "bbox-2": rows.astype(int) + 30,
         "bbox-3": columns.astype(int) + 30, "area": 2800.0, "nucleus_area": 900.0, "area_um2": 14.7,
         "nucleus_area_um2": 4.7, "eccentricity": 0.3, "solidity": 0.9, "at_border": False, "mpp": slides.MPP,
         "class": "", "probability": np.nan}
    )  # fmt: skip
    cells = Cells(table).with_predictions(rng.dirichlet(np.full(len(names), 0.1), n), names, 0.6)
    slide = Slide.open(path)
    folder = write_folder(tmp_path / "r", cells, None, picture=path, files=("cells.csv",), more=slide_note(slide))
    start = time.perf_counter()
    made = write_report(folder, tmp_path / "x.html")
    assert time.perf_counter() - start < 30
    assert (tmp_path / "x.html").stat().st_size < 5e6
    assert made.content["cells"]["found"] == n
    groups = made.pictures.groups
    assert {group.kind for group in groups} == {"most certain", "least certain"}
    for most, least in zip(groups[::2], groups[1::2], strict=True):
        assert most.name == least.name
        assert len(most.cells) == len(least.cells) == 8
        own = cells.table.loc[cells.table["class"] == most.name, "probability"]
        assert most.cells[0].row["probability"] == own.max()
        assert least.cells[-1].row["probability"] == own.min()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.mkdir(), "no results"),
        (lambda folder: (folder.mkdir(), (folder / "run.json").write_text("{")), "damaged or cut short"),
        (lambda folder: (folder.mkdir(), (folder / "run.json").write_text(
            '{"format": "napari-wbc run", "inputs": [{"result": "../x", "state": "ok"}]}')), "not the record of a run"),
        (lambda folder: (folder.mkdir(), (folder / "cells.csv").write_text("a,b\n")), "cells.csv"),
    ],
)  # fmt: skip
def test_a_folder_without_results_is_named(make, message, tmp_path):
    make(tmp_path / "r")
    out = CliRunner().invoke(app, ["report", str(tmp_path / "r"), "-o", str(tmp_path / "x.html")])
    assert out.exit_code == 1
    assert message in out.output.replace("\n", " ")
    assert not (tmp_path / "x.html").exists()


def test_results_of_an_earlier_version(case):
    path = case / "r/nine/cells.csv"
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    old = table.drop(columns=["class_model", *REVIEW_COLUMNS[1:]])
    changed = old.index[old["class"] == "neutrophil"][0]
    old.loc[changed, "class"] = "monocyte"
    old.to_csv(path, index=False)
    (case / "r/nine/cells.parquet").unlink()
    told = make_report(case / "r/nine").content
    counts = {row["class"]: row["n"] for row in told["differential"]}
    assert counts["monocyte"] == (table["class"] == "monocyte").sum() + 1
    assert told["review"]["readers"] == [
        {"reviewer": "not named", "n": 1, "share": 100 / len(table), "changed": 1, "first": None, "last": None}
    ]


def test_a_whole_slide_says_what_was_left_out(tmp_path, classifier):
    path = slides.write(tmp_path / "slide.tif", slides.mosaic())
    found = run(analyse(Slide.open(path), classifier))
    made = make_report(write_results(found, tmp_path / "r"))
    regions = {row["region"]: row for row in made.content["skipped"]["regions"]}
    assert regions["monolayer"]["used"]
    assert not regions["glass"]["used"]
    page = Page(made.as_html())
    assert "feathered edge" in page.text or not regions["feathered edge"]["share"]
    assert len([a for tag, a in page.tags if tag == "img"]) == 1 + len(found.cells)


def test_patients_that_are_counted_together_are_told(case):
    file = case / "r/run.json"
    record = json.loads(file.read_text("utf-8"))
    nine = read_results(case / "r/nine")
    write_folder(case / "r/other", Cells(nine.cells.table.assign(slide="other.jpg")), nine.labels)
    (entry,) = (entry for entry in record["inputs"] if entry["result"] == "nine")
    for patients, told in ((("P1", "P2"), True), (("P1", "P1"), False), (("", "P2"), False)):
        entries = [
            entry | {"result": result, "about": {"patient": patient}}
            for result, patient in zip(("nine", "other"), patients, strict=True)
        ]
        file.write_text(json.dumps(record | {"inputs": entries}), "utf-8")
        out = CliRunner().invoke(app, ["report", str(case / "r"), "-o", str(case / "x.csv")])
        assert out.exit_code == 0, out.output
        assert ("Note: 2 patients are counted together; for the report of one" in out.output) == told
        assert ("2 patients are counted together" in (case / "x.csv").read_text("utf-8")) == told
    entries[0]["about"]["patient"] = "P1"
    file.write_text(json.dumps(record | {"inputs": entries}), "utf-8")
    assert "2 patients are counted together" in Page(make_report(case / "r").as_html()).text


def test_every_file_that_was_written_is_named(case):
    out = CliRunner().invoke(app, ["report", str(case / "r"), "-o", str(case / "x.csv"), "--json", "--csv"])
    assert f"Report in {case / 'x.csv'}, {case / 'x.json'}\n" in out.output


def test_results_stay_among_themselves(case):
    for name in ("r/nine/x.html", "r/run.json"):
        with pytest.raises(ExportError, match="choose another"):
            write_report(case / "r", case / name)
    out = CliRunner().invoke(app, ["export", str(case / "r/nine"), "-o", str(case / "r/nine/cells.geojson")])
    assert out.exit_code == 1
    assert json.loads((case / "r/run.json").read_text("utf-8"))["format"] == "napari-wbc run"


def test_bad_choices_are_named(case):
    for options, message in (
        (["-o", case / "x.pdf"], "ends in .html, .json, .csv"),
        (["-o", case / "x.html", "--wbc", "-3"], "must be from 100 to 2000000"),
        (["-o", case / "x.html", "--wbc", "6.4"], "WBC is per µL: for 6.4 × 10⁹/L enter 6400"),
        (["-o", case / "x.html", "--wbc", "6,4"], "WBC per µL is '6,4': write 6400, without a comma"),
        (["-o", case / "x.html", "--wbc", "6,400"], "write 6400, without a comma"),
        (["-o", case / "x.html", "--ranges", case / "none.toml"], "no such file"),
    ):
        out = CliRunner().invoke(app, ["report", str(case / "r"), *map(str, options)])
        assert out.exit_code == 2, out.output
        assert message in out.output.replace("\n", " ")


def test_a_browser_shows_and_prints_it(case):
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium is installed")
    write_report(case / "r", case / "x.html", Asked(patient_id=EVIL[2]))
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", "--enable-logging=stderr")
    told = subprocess.run(
        [browser, *flags,
         f"--user-data-dir={case / 'browser'}", f"--print-to-pdf={case / 'x.pdf'}", (case / "x.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in told.stderr
    sizes = set(re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", (case / "x.pdf").read_bytes()))
    assert {(round(float(w)), round(float(h))) for w, h in sizes} == {(595, 842)}  # A4 in points


def test_a_carriage_return_in_a_text_does_not_break_the_csv(case):
    made = make_report(case / "r")
    strange = dataclasses.replace(made, content={**made.content, "reference_source": "one\rtwo"})
    rows = list(csv.DictReader(io.StringIO(strange.as_csv(), newline="")))
    assert [row["value"] for row in rows if row["item"] == "reference_source"] == ["one\rtwo"]


def test_the_csv_is_a_table(case):
    text = make_report(case / "r").as_csv()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {"report", "differential", "unidentified", "picture", "model", "model result", "versions"} <= {
        r["section"] for r in rows
    }

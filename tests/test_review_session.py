"""Decisions: one table, a log that survives what happens to it, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from napari_wbc.case import read_case
from napari_wbc.cells import Cells, measure
from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.decisions import DecisionError
from napari_wbc.export import ExportError, read_results, write_folder
from napari_wbc.geojson import rings_in
from napari_wbc.review import BEFORE_REVIEW, DECISIONS, CorrectedError, is_corrected
from napari_wbc.review_session import ReadOnlyError, ReviewSession
from napari_wbc.tables import read_cells

CLASSES = ("neutrophil", "lymphocyte", "basophil")
ME = "A. Reader"


def grid(n: int, seed: int = 0) -> tuple[Cells, np.ndarray]:
    """Return n cells of 3 × 3 pixels in a square, with a class each, and their labels."""
    side = int(np.ceil(np.sqrt(max(n, 1))))
    labels = np.zeros((5 * side, 5 * side), np.int32)
    for k in range(n):
        labels[5 * (k // side) + 1 : 5 * (k // side) + 4, 5 * (k % side) + 1 : 5 * (k % side) + 4] = k + 1
    p = np.random.default_rng(seed).dirichlet([0.6] * 3, n)
    return measure(labels, slide="a.png", mpp=0.5).with_predictions(p, CLASSES, 0.6), labels


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path / "results", *grid(30))


def classes_of(cells: Cells) -> dict[int, str]:
    return dict(zip(cells.table["label"], cells.table["class"], strict=True))


def test_a_decision_stays_beside_what_the_model_said_and_is_on_the_disk_at_once(folder):
    session = ReviewSession.open(folder)
    seen = []
    session.subscribe(seen.append)
    before = classes_of(session.cells)
    session.decide([3, 5], "basophil", ME)
    session.accept([7], ME)
    assert [change.labels.tolist() for change in seen] == [[3, 5], [7]]
    assert not any(change.structure for change in seen)
    table = session.cells.table.set_index("label")
    assert table.loc[[3, 5], "class"].tolist() == ["basophil", "basophil"]
    assert table.loc[[3, 5, 7], "class_model"].tolist() == [before[3], before[5], before[7]]
    assert table.loc[7, ["class", "class_reviewed", "reviewer"]].tolist() == [before[7], before[7], ME]
    assert pd.Timestamp(table.loc[7, "reviewed_at"]).tz is not None
    assert session.reviewed.sum() == 3
    # No close, no save: what is on the disk now gives the same table, to us and to every reader of results.
    assert read_results(folder).cells == session.cells
    assert read_cells(folder / BEFORE_REVIEW[0]) == session.before
    session.close()
    again = ReviewSession.open(folder)
    assert again.cells == session.cells
    again.close()


def test_undo_and_redo_without_limit_and_across_sessions(folder):
    session = ReviewSession.open(folder)
    states = [session.cells]
    rng = np.random.default_rng(1)
    for k in range(40):
        labels = rng.choice(30, 1 + k % 5, replace=False) + 1
        labels = [label for label in labels if label in classes_of(session.cells)] or [30]
        if k == 20:
            session.remove(labels, ME)
        elif k == 25:
            session.add(grid(1)[0], ME)
        else:
            session.decide(labels, str(rng.choice([*CLASSES, "smudge", "blast"])), ME)
        states.append(session.cells)
    session.close()
    session = ReviewSession.open(folder)
    assert session.cells == states[-1]
    for state in states[-2::-1]:
        session.undo()
        assert session.cells == state
    assert not session.can_undo
    with pytest.raises(DecisionError, match="nothing to undo"):
        session.undo()
    for state in states[1:]:
        session.redo()
        assert session.cells == state
    session.undo()
    session.accept([1], ME)
    assert not session.can_redo
    assert read_results(folder).cells == session.cells
    session.close()


def test_added_and_removed_cells_are_in_the_table_the_labels_and_the_files(folder):
    session = ReviewSession.open(folder)
    one, _ = grid(1)
    ring = np.array([[26.0, 26], [29, 26], [29, 29], [26, 29], [26, 26]])
    label = session.add(one, ME, [ring])
    assert label == 31
    session.remove([4], ME)
    assert 4 not in session.labels
    assert np.argwhere(session.labels == 31).min(axis=0).tolist() == [26, 26]
    assert (session.labels == 31).sum() == 9
    session.save()
    written = read_results(folder, decided=False)
    assert set(written.cells.table["label"]) == ({*range(1, 32)} - {4})
    assert written.cells == session.cells
    assert set(np.unique(written.labels)) <= {0, *written.cells.table["label"]}
    session.undo()
    assert classes_of(session.cells).keys() == set(range(1, 32))
    session.undo()
    assert session.cells == session.before
    session.close()


@pytest.mark.parametrize("whole", [False, True])
def test_a_cell_comes_back_with_its_outline_after_the_files_lost_it(folder, whole):
    if whole:
        (folder / "labels.tif").unlink()
        (folder / "slide.json").write_text('{"slide": null}')
    before = ReviewSession.open(folder)
    pixels, rings = before.labels, rings_in((folder / "cells.geojson").read_text("utf-8"))
    before.remove([4, 7], ME)
    before.sign(ME)
    assert before.signed is not None
    before.close()
    assert not {4, 7} & rings_in((folder / "cells.geojson").read_text("utf-8")).keys()
    session = ReviewSession.open(folder)
    session.undo()
    if not whole:
        np.testing.assert_array_equal(session.labels, pixels)
    session.save()
    session.close()
    found = rings_in((folder / "cells.geojson").read_text("utf-8"))
    assert found.keys() == rings.keys()
    np.testing.assert_array_equal(found[4][0], rings[4][0])


def test_a_model_never_overwrites_a_decision(folder):
    session = ReviewSession.open(folder)
    session.decide([1], "blast", ME)
    again = session.cells.with_predictions(np.tile([0.1, 0.9, 0.0], (30, 1)), CLASSES, 0.5)
    assert again.table["class"].tolist() == ["blast"] + ["lymphocyte"] * 29
    assert again.table["class_model"].tolist() == ["lymphocyte"] * 30
    session.close()
    assert is_corrected(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for corrected in (False, True):
        with pytest.raises(CorrectedError):
            write_folder(folder, *grid(30), corrected=corrected)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_folder(folder, *grid(30), overwrite=True)  # who says so gives them up
    assert not is_corrected(folder)


def test_kill_9_between_two_decisions_loses_none(folder):
    code = (
        "import sys, time\nfrom napari_wbc.review_session import ReviewSession\n"
        "s = ReviewSession.open(sys.argv[1])\n"
        "for k in range(1, 31):\n    s.decide([k], 'smudge', 'Me')\n    print(k, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 11:
            process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
            break
    told = 11 + len(process.stdout.read().split())
    process.wait(60)
    session = ReviewSession.open(folder)  # the lock went with the process
    assert not session.read_only
    names = classes_of(session.cells)
    assert all(names[k] == "smudge" for k in range(1, told + 1))
    assert session.reviewed.sum() in (told, told + 1)
    session.close()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_costs_the_last_decision_only(folder, cut):
    session = ReviewSession.open(folder)
    session.decide([1], "smudge", ME)
    expected = session.cells
    session.decide([2], "smudge", ME)
    session.close()
    path = folder / DECISIONS
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_results(folder).cells == expected
    session = ReviewSession.open(folder)
    assert session.cells == expected
    assert "the last decision was cut short" in session.notes[0]
    session.decide([3], "smudge", ME)
    assert read_results(folder).cells == session.cells
    session.close()


def test_a_log_that_is_damaged_elsewhere_is_refused_and_kept(folder):
    session = ReviewSession.open(folder)
    for k in (1, 2, 3):
        session.decide([k], "smudge", ME)
    session.close()
    path = folder / DECISIONS
    lines = path.read_bytes().splitlines(keepends=True)
    for bad in (b"{nonsense\n", b""):
        path.write_bytes(b"".join([*lines[:2], bad, *lines[3:]]))
        data = path.read_bytes()
        with pytest.raises(DecisionError, match=r"damaged in line 3; take the file from a backup"):
            ReviewSession.open(folder)
        assert path.read_bytes() == data
    path.write_text('{"format":"other"}\n{}\n')
    with pytest.raises(DecisionError, match="not a log of decisions"):
        ReviewSession.open(folder)
    path.write_bytes(b"".join(lines).replace(b'"cells":[2]', b'"cells":[99]'))
    with pytest.raises(DecisionError, match="line 3 does not fit the table"):
        read_results(folder)


def test_results_of_an_older_version_are_migrated_and_kept(tmp_path):
    cells, labels = grid(30)
    folder = write_folder(tmp_path / "old", cells, labels)
    text = pd.read_csv(folder / "cells.csv", dtype=str, keep_default_na=False)
    text = text.drop(columns=["class_model", "class_reviewed", "reviewer", "reviewed_at"])
    corrected = text["class"].tolist()
    corrected[4] = "erythroblast"
    text["class"] = corrected
    text.to_csv(folder / "cells.csv", index=False)
    original = (folder / "cells.csv").read_bytes()
    session = ReviewSession.open(folder)
    table = session.cells.table
    assert table["class_model"].tolist() == cells.table["class"].tolist()
    assert table["class_reviewed"].tolist() == ["erythroblast" if k == 4 else "" for k in range(30)]
    assert (folder / "cells.csv").read_bytes() == original
    session.decide([1], "smudge", ME)
    session.save()
    assert (folder / "cells.before_review.csv").read_bytes() == original
    assert read_cells(folder / "cells.csv") == session.cells
    session.close()


def test_a_second_window_is_read_only_and_says_so(folder):
    first = ReviewSession.open(folder)
    second = ReviewSession.open(folder)
    assert "is being reviewed in another window" in second.read_only
    for act in (
        lambda: second.decide([1], "smudge", ME),
        lambda: second.accept([1], ME),
        lambda: second.remove([1], ME),
        lambda: second.sign(ME),
        second.undo,
    ):
        with pytest.raises(ReadOnlyError, match="another window"):
            act()
    assert second.cells == first.cells
    first.close()
    second.close()
    third = ReviewSession.open(folder)
    assert not third.read_only
    third.close()


def test_a_class_that_the_model_does_not_have_any_more(folder):
    session = ReviewSession.open(folder)
    session.decide([1, 2], "basophil", ME)
    session.close()
    for name in ("cells.csv", BEFORE_REVIEW[0]):  # as a model without basophils would have written it
        text = pd.read_csv(folder / name, dtype=str, keep_default_na=False).drop(columns="p_basophil")
        text["class"] = text["class_model"] = text["class_model"].replace("basophil", UNIDENTIFIED)
        text["class_reviewed"] = text["reviewer"] = text["reviewed_at"] = ""
        text.to_csv(folder / name, index=False)
    session = ReviewSession.open(folder)
    assert session.cells.classes == CLASSES[:2]
    assert "basophil" in session.classes
    assert session.cells.table["class"].tolist()[:2] == ["basophil", "basophil"]
    session.decide([3], "basophil", ME)
    session.close()


def test_no_cells(tmp_path):
    folder = write_folder(tmp_path / "none", Cells.empty(CLASSES), np.zeros((40, 40), np.int32))
    session = ReviewSession.open(folder)
    assert len(session.counted) == 0
    with pytest.raises(DecisionError, match="no cell was chosen"):
        session.accept([], ME)
    assert session.add(grid(1)[0], ME) == 1
    session.sign(ME)
    assert session.signed["reviewer"] == ME
    session.close()
    again = ReviewSession.open(folder)
    assert again.cells == session.cells
    assert len(again.cells) == 1
    again.undo()
    assert len(again.cells) == 0
    again.close()


def test_200_000_cells(tmp_path):
    few, _ = grid(4)
    n = 200_000
    table = few.table.iloc[np.arange(n) % 4].reset_index(drop=True)
    table["label"] = np.arange(1, n + 1)
    table["centroid-0"], table["centroid-1"] = np.arange(n) // 500 * 5.0, np.arange(n) % 500 * 5.0
    folder = write_folder(tmp_path / "many", Cells(table), None, files=("cells.parquet",))
    (folder / "slide.json").write_text(json.dumps({"slide": None}))
    session = ReviewSession.open(folder)
    start = time.perf_counter()
    session.decide(np.arange(1, n + 1, 2), "smudge", ME)
    assert (session.cells.table["class"] == "smudge").sum() >= n / 2
    session.undo()
    assert session.cells == session.before
    session.redo()
    session.set(target=400)
    assert session.counted.sum() >= 400
    assert time.perf_counter() - start < 20
    session.close()
    assert read_results(folder).cells == session.cells


@pytest.mark.parametrize("name", ["", "  ", "=1+1", "@SUM(A1)", "-x", "+1", "<b>", "x" * 81, "a\0b"])
def test_names_that_could_be_formulas_are_refused(folder, name):
    session = ReviewSession.open(folder)
    with pytest.raises(ValueError, match="is no name"):
        session.decide([1], name, ME)
    with pytest.raises(ValueError, match="is no name"):
        session.accept([1], name)
    assert session.cells == session.before
    assert not (folder / DECISIONS).exists()
    session.close()


def test_formulas_in_tables_are_disarmed_and_come_back(tmp_path):
    cells, labels = grid(3)
    table = cells.table.assign(slide=["=HYPERLINK(1)", "'@x", "+1"])
    table["class"] = ["=cmd|' /C calc'!A0", "<script>alert(1)</script>", "-1"]
    folder = write_folder(tmp_path / "f", Cells(table), labels)
    lines = (folder / "cells.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["'=HYPERLINK(1)", "''@x", "'+1"]
    assert read_cells(folder / "cells.csv") == Cells(table)


def test_a_read_only_folder_says_so_before_the_first_decision(folder):
    if os.name != "posix" or os.geteuid() != 0:
        folder.chmod(0o555)
        session = ReviewSession.open(folder)
        assert "cannot be written" in session.read_only
        folder.chmod(0o755)
        return
    # Root may write anywhere: the process becomes another user, in a folder that this one may read.
    code = (
        "import os, sys\n"
        "from napari_wbc.review_session import ReviewSession, ReadOnlyError\n"
        "ReviewSession.open(sys.argv[1]).close()\n"  # imports what only root may read
        "os.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
        "s = ReviewSession.open(sys.argv[1])\nprint(s.read_only)\n"
        "try:\n    s.decide([1], 'smudge', 'Me')\nexcept ReadOnlyError as e:\n    print('REFUSED')\n"
    )
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        copy = shutil.copytree(folder, Path(home) / "results")
        command = [sys.executable, "-c", code, str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "cannot be written" in done.stdout
        assert "REFUSED" in done.stdout
        assert not (copy / DECISIONS).exists()


def test_results_that_were_replaced_meanwhile_take_no_decision(folder):
    session = ReviewSession.open(folder)
    write_folder(folder, *grid(30, seed=5))
    with pytest.raises(ExportError):
        session.decide([1], "smudge", ME)
    assert session.cells == session.before
    assert not (folder / DECISIONS).exists()
    session.close()


def test_a_signature_is_void_after_a_decision_and_final_needs_every_cell_decided(folder):
    session = ReviewSession.open(folder)
    assert not session.is_final
    session.sign(ME)
    assert not session.is_final  # some are unidentified
    unsure = session.cells.table.query("`class` == @UNIDENTIFIED", local_dict={"UNIDENTIFIED": UNIDENTIFIED})["label"]
    session.decide(unsure, "neutrophil", ME)
    assert session.signed is None
    session.sign(ME)
    assert session.is_final
    assert read_cells(folder / "cells.csv") == session.cells  # signing brings the files up to date
    session.close()
    again = ReviewSession.open(folder)
    assert again.is_final
    again.undo()
    assert not again.is_final
    again.close()


def test_the_count_goes_on_to_its_target_as_cells_fall_out(tmp_path):
    cells, labels = grid(400)
    session = ReviewSession.open(write_folder(tmp_path / "r", cells, labels))
    session.set(target=100, seed=3)
    first = session.counted
    assert first.sum() == 100
    gone = session.cells.table["label"][first].iloc[:7]
    session.decide(gone, "not a white cell", ME)
    second = session.counted
    assert second.sum() == 107
    assert (first <= second).all()  # nobody loses a cell that was chosen
    session.remove(gone.iloc[:1], ME)
    assert session.counted.sum() == 106
    session.close()


def test_an_analysis_in_memory_is_kept_with_its_decisions(field, classifier, tmp_path):
    from napari_wbc.missed import cell_at
    from napari_wbc.pipeline import analyse, run
    from napari_wbc.slide import Slide

    found = run(analyse(Slide.open(field), classifier))
    session = ReviewSession.of(found)
    label = int(found.cells.table["label"].iloc[0])
    session.decide([label], "smudge", ME)
    # A cell that was removed is found again where somebody clicks on it.
    row = found.cells.table.iloc[0]
    session.remove([label], ME)
    point = (row["centroid-0"] + 5, row["centroid-1"] - 5)
    cell, outline = cell_at(found.slide, point, row["mpp"], classifier, look=found.appearance)
    assert cell.table["class_model"].iloc[0] == row["class_model"]
    assert cell.table["area"].iloc[0] == pytest.approx(row["area"], rel=0.15)
    new = session.add(cell, ME, outline)
    assert (session.labels == new).sum() == pytest.approx(row["area"], rel=0.2)
    folder = session.keep(tmp_path / "kept")
    assert read_results(folder).cells == session.cells
    assert read_results(folder, decided=False).cells == session.cells
    session.undo()
    session.close()
    again = ReviewSession.open(folder)
    assert again.cells == session.cells
    again.close()
    case = read_case(folder)  # a report of it knows what an analysis in a viewer knew
    assert case.run["model"] == {"name": classifier.card.name, "sha256": classifier.card.sha256}
    assert case.run["threshold"] == found.threshold
    assert case.run["started"] == found.at
    assert case.pictures[0].facts["mpp"] == found.appearance.mpp
    assert case.pictures[0].facts["mpp_source"] == found.appearance.mpp_source

"""What a reviewer decided is recognised, and no model overwrites it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tifffile

from napari_wbc.cells import Cells, measure
from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.export import RESULT_FILES, read_cells, read_results, write_cells, write_folder
from napari_wbc.review import CorrectedError, differs_from_model, is_corrected

LABELS = np.zeros((20, 30), np.int32)
LABELS[2:6, 3:9], LABELS[10:15, 10:15] = 1, 2
KINDS = [RESULT_FILES, ("cells.csv", "labels.tif"), ("cells.csv", "cells.parquet"), ("cells.csv",)]


def said(p=((0.9, 0.1), (0.4, 0.6)), threshold=0.7) -> Cells:
    return measure(LABELS, slide="a.png").with_predictions(np.array(p), ["x", "y"], threshold)


def change(cells: Cells, **values) -> Cells:
    return Cells(cells.table.assign(**values))


def test_a_class_that_the_model_did_not_give_is_a_correction():
    cells = said()
    assert cells.table["class"].tolist() == ["x", UNIDENTIFIED]
    assert not differs_from_model(cells)
    assert differs_from_model(change(cells, **{"class": ["y", UNIDENTIFIED]}))
    assert differs_from_model(change(cells, class_model=["", UNIDENTIFIED]))  # a cell that a reviewer added
    unclassified = measure(LABELS)
    assert not differs_from_model(unclassified)
    assert differs_from_model(change(unclassified, **{"class": ["x", ""]}))
    assert not differs_from_model(Cells.empty(["x"]))


@pytest.mark.parametrize("files", KINDS)
@pytest.mark.parametrize("cells", [said(), measure(LABELS), Cells.empty(["x"])])
def test_results_of_a_model_are_replaced_without_asking(files, cells, tmp_path):
    folder = write_folder(tmp_path / "f", cells, LABELS, files=files)
    assert not is_corrected(folder)
    write_folder(folder, said(), LABELS)
    assert read_results(folder).cells == said()
    assert not is_corrected(tmp_path / "nosuch")


@pytest.mark.parametrize("files", KINDS[:3])
@pytest.mark.parametrize("by_class", [True, False])
def test_corrected_results_are_kept_unless_given_up(files, by_class, tmp_path):
    cells = change(said(), **{"class": ["y", "y"]}) if by_class else said()
    folder = write_folder(tmp_path / "f", cells, LABELS, files=files, corrected=not by_class)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CorrectedError, match=r"f: holds results that were corrected.*another folder.*overwrite"):
        write_folder(folder, said(), LABELS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_folder(folder, change(said(), note=["a", "b"]), LABELS, corrected=True)  # a later correction
    assert read_results(folder).cells.table["note"].tolist() == ["a", "b"]
    write_folder(folder, said(), LABELS, overwrite=True)
    assert not is_corrected(folder)


@pytest.mark.parametrize("files", KINDS[:3])
def test_an_edited_table_is_a_correction_and_one_saved_again_is_not(files, tmp_path):
    folder = write_folder(tmp_path / "f", said(), LABELS, files=files)
    text = (folder / "cells.csv").read_text("utf-8")
    (folder / "cells.csv").write_text("\ufeff" + text.replace("False", "FALSE"), "utf-8")
    assert not is_corrected(folder)
    (folder / "cells.csv").write_text(text.replace(",x,", ",y,", 1), "utf-8")
    assert is_corrected(folder)
    (folder / "cells.csv").write_text(text.replace(",", ";"), "utf-8")
    assert is_corrected(folder)  # a spreadsheet's; who knows what is in it


def test_columns_of_ones_own_and_other_tables_count_too(tmp_path):
    dates = change(said(), seen=pd.to_datetime(["2026-01-01", "2026-01-02"]), kind=pd.Categorical(["a", "b"]))
    folder = write_folder(tmp_path / "f", dates, LABELS)
    assert not is_corrected(folder)
    write_cells(change(read_cells(folder / "cells.geojson"), **{"class": "y"}), folder / "cells.geojson")
    assert is_corrected(folder)


def test_files_that_are_not_ours_any_more_may_be_somebodys_work(tmp_path):
    folder = write_folder(tmp_path / "f", said(), LABELS)
    for data in (LABELS.astype(np.uint16), None):
        if data is None:
            (folder / "labels.tif").write_bytes(b"II*")
        else:
            tifffile.imwrite(folder / "labels.tif", data)
        assert is_corrected(folder)

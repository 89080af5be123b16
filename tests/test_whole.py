"""Whole slides, end to end: every cell once, whatever the tiles."""

import re
from pathlib import Path

import numpy as np
import pytest
import slides
from pictures import FIELDS
from PIL import Image
from skimage.draw import polygon

from napari_wbc.coarse import REASONS, View, survey
from napari_wbc.export import read_results, write_results
from napari_wbc.pipeline import analyse, run
from napari_wbc.plan import WORKING_UM
from napari_wbc.segment import SegmentParameters
from napari_wbc.slide import ImageError, Slide

N_CELLS = 7  # in the four fields of the mosaic


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return slides.write(tmp_path_factory.mktemp("slide") / "slide.tif", slides.mosaic())


@pytest.fixture(scope="module")
def found(path):
    return run(analyse(Slide.open(path)))


def test_the_slide_to_try_that_the_documentation_writes(tmp_path, monkeypatch):
    """It is made of what the package brings, and is a slide."""
    text = (Path(__file__).parents[1] / "docs/slides.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text.partition("## Slides to try it on")[2], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # noqa: S102 - our own documentation
    slide = Slide.open(tmp_path / "smear.tif")
    assert slide.is_whole
    assert len(run(analyse(slide)).cells) > 100


def test_the_cells_of_a_slide_are_those_of_its_fields(found):
    assert len(found.cells) == N_CELLS
    assert found.labels is None
    assert sorted(found.whole.rings) == found.cells.table["label"].tolist() == list(range(1, N_CELLS + 1))
    parameters = SegmentParameters(mpp=slides.MPP)
    for k, place in enumerate(FIELDS[:4]):
        # Outlines may differ: a field is measured against its own stain, a slide's cells against that of the slide.
        alone = run(analyse(Slide.open(place), parameters=parameters))
        rows, columns = np.rint(found.cells.centroids - [k // 2 * 480, k % 2 * 640]).astype(int).T
        here = (rows >= 0) & (rows < 480) & (columns >= 0) & (columns < 640)
        hit = alone.labels[rows[here], columns[here]]
        assert sorted(hit) == alone.cells.table["label"].tolist()


@pytest.mark.parametrize("tile", [48, 96])
def test_no_result_depends_on_where_tiles_begin(path, found, tile):
    slide = Slide.open(path)
    again = run(analyse(slide, tile=tile))
    assert again.cells == found.cells
    assert again.appearance == found.appearance
    np.testing.assert_array_equal(again.whole.film.kinds, found.whole.film.kinds)


@pytest.mark.parametrize("processors", ["2", "3"])
def test_no_digit_depends_on_the_number_of_processors(path, classifier, monkeypatch, processors):
    import torch

    monkeypatch.setattr("napari_wbc.plan.PART", 2)  # several batches at a time
    before = torch.get_num_threads()
    tables = []
    try:
        for n in ("1", processors):
            monkeypatch.setenv("OMP_NUM_THREADS", n)
            torch.set_num_threads(int(n))
            tables.append(run(analyse(Slide.open(path), classifier)).cells)
            tables.append(run(analyse(Slide.open(FIELDS[2]), classifier)).cells)
            assert torch.get_num_threads() == int(n)
    finally:
        torch.set_num_threads(before)
    assert tables[0] == tables[2]
    assert tables[1] == tables[3]


def test_no_cell_lies_in_another(tmp_path):
    image = slides.mosaic(1, 4)[:, :1280]  # one window sees two cells as one
    result = run(analyse(Slide.open(slides.write(tmp_path / "a.tif", image, factor=2))))
    seen = np.zeros(image.shape[:2], int)
    for rings in result.whole.rings.values():
        for ring in rings:
            seen[polygon(ring[:, 1] - 0.5, ring[:, 0] - 0.5, seen.shape)] += 1
    assert (seen > 1).sum() < 0.01 * seen.sum()


def test_no_window_sees_its_neighbours_on_the_sheet(path, found, monkeypatch):
    monkeypatch.setattr("napari_wbc.whole._SHEET", 1)
    alone = run(analyse(Slide.open(path)))
    assert len(alone.cells) == N_CELLS
    assert np.abs(alone.cells.centroids - found.cells.centroids).max() * slides.MPP < 0.3
    np.testing.assert_allclose(alone.cells.table["area_um2"], found.cells.table["area_um2"], rtol=0.1)


def test_a_cell_that_its_window_cuts_is_seen_whole(path, found, monkeypatch):
    monkeypatch.setattr("napari_wbc.whole._REACH_UM", 10.0)
    again = run(analyse(Slide.open(path)))
    assert len(again.cells) == N_CELLS
    assert np.abs(again.cells.centroids - found.cells.centroids).max() * slides.MPP < 0.3
    np.testing.assert_allclose(again.cells.table["area_um2"], found.cells.table["area_um2"], rtol=0.1)


def test_crops_are_cut_at_full_resolution_and_outlines_at_a_coarser_level(path):
    slide = Slide.open(path)
    assert slide.level_for(0.5 / slides.MPP) == (1, 4.0)
    assert slide.level_for(0.5) == (0, 1.0)
    odd = Slide.from_levels([np.zeros((1001, 2003, 3), np.uint8), np.zeros((251, 501, 3), np.uint8)])
    assert odd.level_for(5) == (1, 4.0)  # the level was rounded up to whole pixels


def test_outlines_lie_where_the_cells_are(found):
    working = WORKING_UM / found.appearance.mpp
    for row in found.cells.table.to_dict("records"):
        (ring,) = found.whole.rings[row["label"]]
        assert (ring[0] == ring[-1]).all()
        for k, corner in enumerate((ring.min(axis=0), ring.max(axis=0))):
            np.testing.assert_allclose(corner, [row[f"bbox-{2 * k + 1}"], row[f"bbox-{2 * k}"]], atol=working)
        x, y = ring.astype(np.float64).T
        assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2 == pytest.approx(row["area"], rel=0.05)


def test_only_what_lies_inside_the_drawn_region_is_counted(path, found):
    inside = run(analyse(Slide.open(path), within=[np.array([(0, 640), (0, 1280), (480, 1280), (480, 640)])]))
    wanted = [place for place in found.cells.centroids if place[0] < 480 and place[1] > 640]
    assert len(inside.cells) == len(wanted) == 2
    assert np.abs(inside.cells.centroids - wanted).max() * slides.MPP < 2
    with pytest.raises(ImageError, match="outside the slide"):
        run(analyse(Slide.open(path), within=[np.array([(-9, -9), (-9, -5), (-5, -5)]) * 1000.0]))


def test_closing_the_generator_cancels(path):
    steps = analyse(Slide.open(path))
    while next(steps).stage != "finding white cells":
        pass
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)


def test_the_scale_is_measured_where_the_file_says_none(tmp_path):
    slide = Slide.open(slides.write(tmp_path / "a.tif", slides.mosaic(), mpp=1e5))
    result = run(analyse(slide))
    assert result.appearance.mpp_source == "red cells"
    assert 0.055 < result.appearance.mpp < 0.095
    assert len(result.cells) >= N_CELLS - 1
    assert any("no microscope" in note for note in result.notes)


@pytest.mark.parametrize("mpp", [0.25, None])
def test_a_slide_without_anything_on_it_is_a_valid_empty_result(mpp, classifier):
    blank = np.full((3000, 2000, 3), 240, np.uint8)
    result = run(analyse(Slide.from_levels([blank], "blank", mpp=mpp), classifier))
    assert len(result.cells) == 0
    assert result.cells.classes == classifier.card.classes
    assert result.whole.regions.set_index("region")["share"]["glass"] == 1


def test_a_slide_without_one_white_cell(tmp_path, classifier):
    red = slides.mosaic(1, 1)[:, :240]  # beside the only white cell of its field
    image = np.tile(np.concatenate([red, red[:, ::-1]], axis=1), (2, 3, 1))
    result = run(analyse(Slide.open(slides.write(tmp_path / "a.tif", image)), classifier))
    assert len(result.cells) == 0
    assert result.cells.classes == classifier.card.classes
    assert set(result.differential["n"]) == {0}


def test_cells_under_a_pen_are_left_out_and_said():
    field = np.asarray(Image.open(FIELDS[0]).reduce(3))
    red = field[:, :80]
    film = np.tile(np.concatenate([red, red[:, ::-1]], axis=1), (12, 20, 1)).copy()
    for left in (400, 2400):
        film[960 : 960 + len(field), left : left + field.shape[1]] = field
    film[500:1500, 100:1000] = film[500:1500, 100:1000] * np.array([0.12, 0.28, 0.62])
    result = run(analyse(Slide.from_levels([film], mpp=3 * slides.MPP)))
    assert len(result.cells) == 1
    assert result.cells.centroids[0, 1] > 2400
    assert any("pen" in note for note in result.notes)


def test_something_without_red_cells_and_scale_asks_for_one():
    stripes = np.where(np.arange(1200) // 100 % 2 > 0, 240, 90).astype(np.uint8)
    image = np.broadcast_to(stripes[None, :, None], (1200, 1200, 3)).copy()
    with pytest.raises(ImageError, match="give µm per pixel"):
        run(analyse(Slide.from_levels([image])))


def test_glass_pen_and_blur_are_told_from_the_monolayer():
    from PIL import ImageFilter

    film = np.tile(np.asarray(Image.open(FIELDS[0]).reduce(3)), (15, 20, 1))[:2400, :4000]  # about 0.22 µm per pixel
    film = film.copy()
    film[:, :1000] = 200
    film[800:1600, 1400:2200] = film[800:1600, 1400:2200] * np.array([0.12, 0.28, 0.62])
    film[:, 3000:] = np.asarray(Image.fromarray(film[:, 3000:]).filter(ImageFilter.GaussianBlur(8)))
    *_, seen = survey(View.of(Slide.from_levels([film], mpp=0.2175), 0.2175))
    middle = [(1200, 450), (1200, 1800), (300, 2600), (1200, 3500)]
    kinds = [REASONS[k] for k in seen.kind_at(np.array(middle, float))]
    assert kinds == ["glass", "pen", "monolayer", "out of focus"]


def test_labels_need_a_field(path):
    with pytest.raises(ImageError, match="need a field"):
        run(analyse(Slide.open(path), labels=np.zeros((960, 1280), int)))


def test_a_slide_that_changes_during_the_run_fails(path, tmp_path):
    copy = tmp_path / "a.tif"
    copy.write_bytes(path.read_bytes())
    steps = analyse(Slide.open(copy))
    next(steps)
    copy.unlink()
    with pytest.raises((ImageError, FileNotFoundError)):
        run(steps)


def test_results_of_a_slide_are_written_and_read_back(found, tmp_path):
    folder = write_results(found, tmp_path / "out")
    assert {file.name for file in folder.iterdir()} == {
        "cells.csv", "cells.parquet", "cells.geojson", "annotated.png", "regions.csv", "regions.png", "slide.json",
    }  # fmt: skip
    results = read_results(folder)
    assert results.cells == found.cells
    assert results.labels is None
    assert results.image == found.slide.path
    assert found.whole.regions["cells"].sum() == N_CELLS
    write_results(found, folder)  # our own results are replaced
    assert "monolayer" in (folder / "regions.csv").read_text()


def test_the_command_line_annotates_a_slide_as_python_does(path, tmp_path, classifier):
    from typer.testing import CliRunner

    from napari_wbc.cli import app

    done = CliRunner().invoke(app, ["annotate", str(path), "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    cells = run(analyse(Slide.open(path), classifier)).cells
    assert read_results(tmp_path / "out/slide").cells == cells
    assert len(cells) == N_CELLS

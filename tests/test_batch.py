"""Batches: every slide once and whole, whatever is killed, changed, missing, full or held meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import killed
import numpy as np
import pandas as pd
import pytest
import slides
from pictures import FIELDS
from pyarrow import dataset
from typer.testing import CliRunner

from napari_wbc import classifier as classifier_module
from napari_wbc.batch import Batch, InProcess
from napari_wbc.batch_folder import BatchFolder, DiskError, Terms
from napari_wbc.batch_list import ListError, list_slides
from napari_wbc.cli import app
from napari_wbc.count import differential, group_of
from napari_wbc.export import read_results
from napari_wbc.record import Settings

NAMES = ("a b.tif", "ü ..svs", "c.ome.tif")


@pytest.fixture(autouse=True)
def _one_model(classifier, monkeypatch):
    """Load the shipped model once for all tests; other models are loaded as ever."""
    load = classifier_module.Classifier.load

    def cached(model=None, *, device=None):
        return classifier if model is None and device is None else load(model, device=device)

    monkeypatch.setattr(classifier_module.Classifier, "load", cached)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with three small slides and a photo."""
    folder = tmp_path_factory.mktemp("smears")
    for k, name in enumerate(NAMES):
        slides.write(folder / name, slides.mosaic(1, 4)[:, 640 * k : 640 * k + 1280], factor=2)
    for table in folder.glob("*.csv"):
        table.unlink()
    shutil.copy(FIELDS[0], folder / "photo.jpg")
    return folder


def call(*arguments, code=0):
    result = CliRunner().invoke(app, ["batch", *(str(argument) for argument in arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def reference(folder, tmp_path_factory):
    """Return what a run that nobody disturbs writes."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    call(folder, "-o", out)
    return out


def content(out: Path) -> dict[str, bytes]:
    """Bytes of all files but those that tell when and how long."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    told = ("run.json", ".lock")
    return {name: path.read_bytes() for name, path in files.items() if name not in told and ".states/" not in name}


def start(classifier, listed, out, **settings):
    """Return a run through Python, and the folder that it must hold."""
    return BatchFolder(out, Terms(Settings(**settings), classifier.card)), listed


def states(out: Path) -> dict[str, str]:
    return {Path(entry["path"]).name: entry["state"] for entry in json.loads((out / "run.json").read_text())["inputs"]}


def test_each_slide_gets_what_annotate_writes(folder, reference, tmp_path):
    done = CliRunner().invoke(app, ["annotate", str(folder), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    for name in ("a b", "ü", "c.ome", "photo"):
        for file in (tmp_path / "out" / name).iterdir():
            assert file.read_bytes() == (reference / name / file.name).read_bytes(), file
        assert (reference / name / "thumbnail.png").is_file()
    assert (reference / "a b/density.png").is_file()


def test_where_nobody_watches_each_slide_has_a_line(folder, tmp_path):
    done = CliRunner().invoke(app, ["batch", str(folder / "photo.jpg"), "-o", str(tmp_path / "out")])
    assert "1 of 1 slide; photo.jpg: done" in done.stderr


def test_the_tables_of_a_run_are_those_of_its_slides(folder, reference):
    summary = pd.read_csv(reference / "summary.csv").set_index("slide")
    assert sorted(summary.index) == sorted([*NAMES, "photo.jpg"])
    cells = dataset.dataset(reference / "cells.parquet", partitioning="hive").to_table().to_pandas()
    for name, row in summary.iterrows():
        own = read_results(reference / json_of(reference, name)["result"]).cells
        wanted = differential(own).set_index("class")
        for of in ("neutrophil", "erythroblast", "unidentified"):
            assert row[f"n_{of}"] == wanted["n"][of]
            np.testing.assert_array_equal(
                row[[f"share_{of}", f"low_{of}", f"high_{of}"]].astype(float), wanted.loc[of, ["value", "low", "high"]]
            )
        assert row["cells"] == len(own) > 0
        part = cells[cells["slide"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(part[own.table.columns], own.table, check_dtype=False, check_categorical=False)
    assert summary.loc["a b.tif", ["mpp", "mpp_source"]].tolist() == [pytest.approx(slides.MPP, rel=1e-3), "given"]
    record = json.loads((reference / "run.json").read_text())
    assert record["model"]["sha256"]
    assert set(states(reference).values()) == {"done"}
    assert all(entry["bytes"] and entry["mtime_ns"] for entry in record["inputs"])


def json_of(out, slide):
    return next(e for e in json.loads((out / "run.json").read_text())["inputs"] if e["slide"] == slide)


def test_a_run_ends_with_the_counts_of_all_its_slides(folder, reference):
    output = call(folder, "-o", reference)  # nothing is left to do
    cells = dataset.dataset(reference / "cells.parquet", partitioning="hive").to_table().to_pandas()
    n = cells["class"].value_counts()
    white = sum(int(n.get(name, 0)) for name in n.index if group_of(name) == "white")
    assert f"{white} white cells in 4 pictures" in output
    assert re.search(rf"neutrophil │ +{n['neutrophil']} │ +{100 * n['neutrophil'] / white:.1f} ", output)
    assert f"unidentified: {n['unidentified']} (" in output
    assert "µm per pixel" in output
    assert "summary.csv has a differential of each" in output
    notes = pd.read_csv(reference / "summary.csv", keep_default_na=False)["notes"]
    for note in {note for text in notes for note in text.split("; ") if note}:
        assert f"{re.sub('^[0-9]+ cells? ', '', note)} (in " in output


def test_a_list_names_patients_and_groups(folder, tmp_path):
    (tmp_path / "list.csv").write_text(
        "slide,patient,group,stain\n"
        f"{folder}/photo.jpg,P1,AML,MGG\n{folder}/../{folder.name}/photo.jpg,P2,AML,MGG\nnone.svs,P3,,\n"
    )
    listed, notes = list_slides([tmp_path / "list.csv", folder / "photo.jpg"])
    assert [one.input.path.name for one in listed] == ["photo.jpg", "none.svs"]
    assert listed[0].about == {"patient": "P1", "group": "AML", "stain": "MGG"}
    assert len(notes) == 2
    assert all("named twice and done once" in note for note in notes)
    said = call(tmp_path / "list.csv", "-o", tmp_path / "out", code=3)
    assert "named twice and done once" in said
    assert "none.svs: no such file" in said
    summary = pd.read_csv(tmp_path / "out/summary.csv", keep_default_na=False)
    assert summary[["patient", "group", "stain", "state"]].to_numpy().tolist() == [
        ["P1", "AML", "MGG", "done"], ["P3", "", "", "failed"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [("name\na.svs\n", "no column 'slide'"), ("slide,state\na.svs,x\n", "rename it"), ("", "not CSV")],
)
def test_a_list_that_is_none(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ListError, match=message):
        list_slides([tmp_path / "list.csv"])
    assert "not a folder" not in call(tmp_path / "list.csv", "-o", tmp_path / "out", code=2)


def test_names_of_any_kind_have_folders_of_their_own(tmp_path):
    for name in ("p1/ä ö.tif", "p2/ä ö.tif", "p2/ä ö.svs", "...tif", "%2e.tif", ".states.tif", "summary.csv.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listed, _ = list_slides([tmp_path / "p1/../p1", tmp_path / "p2", *tmp_path.glob("*.tif")])
    folders = [one.input.folder for one in listed]
    assert len({name.casefold() for name in folders}) == len(folders) == 7
    assert not {".", "..", "", "summary.csv", ".states"} & set(folders)
    assert all("/" not in name and not name.startswith(".") for name in folders)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_a_run_that_is_killed_five_times_gives_the_same_as_one_that_is_not(folder, reference, tmp_path):
    out = tmp_path / "out"
    command = ["--progress", "json", "batch", str(folder), "-o", str(out)]
    finished: list[int] = []
    for moment in killed.MOMENTS:
        told = [sys.executable, killed.__file__, moment, str(out), *command]
        with subprocess.Popen(told, stdin=subprocess.PIPE) as process:  # it ends when that closes
            assert process.wait() == -signal.SIGKILL, f"it came to its end before it was killed {moment}"
        finished.append(killed.done(out))
    assert finished == sorted(finished)
    assert 2 <= finished[-1] < 4
    before = {path: path.stat().st_mtime_ns for path in (out / ".states").glob("*.json")}
    assert f"{finished[-1]} done before" in call(folder, "-o", out)
    assert content(out) == content(reference)
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was finished was not touched
    assert not list(out.rglob("*.partial"))
    assert "4 done before" in call(folder, "-o", out)
    assert content(out) == content(reference)


def test_other_parameters_and_other_models_are_refused(folder, reference):
    before = content(reference)
    assert "parameters.threshold was not given and is 0.9" in call(
        folder, "-o", reference, "--threshold", "0.9", code=1
    )
    assert "parameters.everywhere was False and is True" in call(folder, "-o", reference, "--everywhere", code=1)
    record = json.loads((reference / "run.json").read_text())
    try:
        (reference / "run.json").write_text(json.dumps(record | {"model": {"name": "other", "sha256": "0"}}))
        assert "model.sha256 was 0 and is" in call(folder, "-o", reference, code=1)
        (reference / "run.json").write_text(json.dumps(record | {"command": "annotate"}))
        assert "holds a run of annotate" in call(folder, "-o", reference, code=1)
        (reference / "run.json").write_text("{")
        assert "not the record of a batch" in call(folder, "-o", reference, code=1)
    finally:
        (reference / "run.json").write_text(json.dumps(record))
    assert content(reference) == before


def test_a_second_run_into_one_folder_says_who_holds_it(folder, classifier, tmp_path):
    held, _ = start(classifier, [], tmp_path / "out")
    with held.held():
        said = call(folder, "-o", tmp_path / "out", code=1)
        assert f"held by process {os.getpid()} on " in said
        assert held.started in said
    assert "1 done" in call(folder / "photo.jpg", "-o", tmp_path / "out")


BROKEN = {
    "zero.svs": lambda good: b"",
    "cut.svs": lambda good: (good / "ü ..svs").read_bytes()[:20_000],
    "cut.tif": lambda good: (good / "a b.tif").read_bytes()[:20_000],
    "jpeg.svs": lambda good: FIELDS[0].read_bytes(),
}


def test_broken_slides_fail_alone_and_say_why(folder, tmp_path):
    for name, make in BROKEN.items():
        (tmp_path / name).write_bytes(make(folder))
    (tmp_path / "good.jpg").write_bytes(FIELDS[0].read_bytes())
    said = call(tmp_path, "-o", tmp_path / "out", code=3)
    assert "1 done, 4 failed" in said
    summary = pd.read_csv(tmp_path / "out/summary.csv").set_index("slide")
    assert summary["state"].to_dict() == {"good.jpg": "done"} | dict.fromkeys(BROKEN, "failed")
    assert "empty" in summary["reason"]["zero.svs"]
    assert "cut short" in summary["reason"]["cut.svs"]
    assert "cut short" in summary["reason"]["cut.tif"]
    assert "holds a JPEG" in summary["reason"]["jpeg.svs"]
    for name in BROKEN:
        assert not (tmp_path / "out" / Path(name).stem).exists()
    # Mended, it is done the next time, and only it.
    (tmp_path / "cut.tif").write_bytes((folder / "a b.tif").read_bytes())
    assert "1 done, 1 done before, 3 failed" in call(tmp_path, "-o", tmp_path / "out", code=3)


def test_a_slide_that_is_replaced_or_deleted_during_the_run_fails(folder, classifier, tmp_path):
    here = tmp_path / "slides"
    shutil.copytree(folder, here)
    batch, listed = start(classifier, list_slides([here])[0], tmp_path / "out")
    with batch.held():
        run = Batch(listed, batch)
        with closing(run.run(InProcess(classifier, Settings()))) as reports:
            for report in reports:
                if report.state == "running" and report.slide == "a b.tif" and report.stage.startswith("looking"):
                    shutil.copy(here / "c.ome.tif", here / "new")
                    (here / "new").replace(here / "a b.tif")
                if report.state == "running" and report.slide == "c.ome.tif" and report.stage.startswith("looking"):
                    (here / "c.ome.tif").unlink()
                    (here / "photo.jpg").unlink()  # its turn comes later
    reasons = {path.name: reason for path, reason in run.failures}
    assert "replaced or written to" in reasons["a b.tif"]
    assert "deleted or moved" in reasons["c.ome.tif"]
    assert "deleted or moved" in reasons["photo.jpg"]
    assert states(tmp_path / "out")["ü ..svs"] == "done"
    assert sorted(path.name for path in (tmp_path / "out/cells.parquet").iterdir()) == ["slide=ü ..svs"]


def test_a_slide_that_is_another_one_now_is_done_again(folder, tmp_path):
    here = tmp_path / "a.tif"
    shutil.copy(folder / "a b.tif", here)
    call(here, "-o", tmp_path / "out")
    first = (tmp_path / "out/a/cells.csv").read_bytes()
    assert "0 done, 1 done before" in call(here, "-o", tmp_path / "out")
    shutil.copy(folder / "c.ome.tif", here)
    assert "1 done: " in call(here, "-o", tmp_path / "out")
    assert (tmp_path / "out/a/cells.csv").read_bytes() != first
    here.unlink()  # finished, then put away: it stays finished
    shutil.copy(FIELDS[0], tmp_path / "b.jpg")
    assert "1 done, 1 done before" in call(tmp_path / "b.jpg", here, "-o", tmp_path / "out")
    assert pd.read_csv(tmp_path / "out/summary.csv")["slide"].tolist() == ["b.jpg", "a.tif"]


def test_a_slide_that_is_not_named_again_is_kept_and_in_no_count(folder, reference, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    said = call(folder / "photo.jpg", "-o", out)
    assert "0 done, 1 done before" in said
    assert "not counted, since they are not named this time: a b.tif, c.ome.tif, ü ..svs (3)" in said
    assert re.search(r"\d white cells? in 1 picture ", said)
    assert list(states(out)) == pd.read_csv(out / "summary.csv")["slide"].tolist() == ["photo.jpg"]
    cells = dataset.dataset(out / "cells.parquet", partitioning="hive").to_table()
    assert set(cells["slide"].to_pylist()) == {"photo.jpg"}
    kept = {path: path.read_bytes() for path in out.glob("*/cells.csv")}
    assert len(kept) == 4
    assert "0 done, 4 done before" in call(folder, "-o", out)  # named again, it is counted without being read
    assert content(out) == content(reference)
    assert {path: path.read_bytes() for path in kept} == kept


def test_results_that_a_reviewer_corrected_stay(folder, tmp_path):
    call(folder / "photo.jpg", "-o", tmp_path / "out")
    table = tmp_path / "out/photo/cells.csv"
    table.write_text(table.read_text().replace("neutrophil,", "monocyte,", 1))
    assert "1 done before" in call(folder / "photo.jpg", "-o", tmp_path / "out")
    (tmp_path / "out/.states/photo.json").unlink()
    edited = table.read_bytes()
    assert "corrected" in call(folder / "photo.jpg", "-o", tmp_path / "out", code=1)
    assert table.read_bytes() == edited


@pytest.fixture
def small_disk(tmp_path):
    """Return a disk of 300 kB, and a function that makes it read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield place, lambda: subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_and_a_read_only_disk(folder, small_disk):
    place, make_read_only = small_disk
    said = call(folder, "-o", place / "out", code=1)
    assert "the disk is full; free some space" in said
    assert "0 of 4 pictures are finished; the same command goes on from there" in said
    assert not list(place.rglob("*.partial"))
    assert not [path for path in (place / "out").iterdir() if path.is_dir() and path.name[0] not in ".c"]
    make_read_only()
    assert "the disk is read-only" in call(folder, "-o", place / "out", code=1)


def test_a_disk_that_is_full_ends_the_run_and_not_the_slide(folder, classifier, tmp_path, monkeypatch):
    batch, listed = start(classifier, list_slides([folder])[0], tmp_path / "out")

    def full(self, listed, analysis, *more):
        raise DiskError("the disk is full")

    monkeypatch.setattr(BatchFolder, "keep", full)
    with batch.held(), pytest.raises(DiskError):
        list(Batch(listed, batch).run(InProcess(classifier, Settings())))
    assert set(states(tmp_path / "out").values()) == {"waiting"}


def test_slides_without_a_cell_are_results_too(tmp_path):
    white = np.full((600, 800, 3), 242, np.uint8)
    slides.write(tmp_path / "white.tif", white)
    grain = np.random.default_rng(0).integers(-3, 3, white.shape) + 235
    slides.write(tmp_path / "bare.svs", grain.astype(np.uint8))
    for table in tmp_path.glob("*.csv"):
        table.unlink()
    call(tmp_path, "-o", tmp_path / "out")
    summary = pd.read_csv(tmp_path / "out/summary.csv").set_index("slide")
    assert summary["state"].tolist() == ["done", "done"]
    assert summary["cells"].tolist() == [0, 0]
    table = dataset.dataset(tmp_path / "out/cells.parquet", partitioning="hive").to_table()
    assert len(table) == 0
    assert str(table.schema.field("class").type) == "string"


def test_cells_as_labels_of_ome_ngff(folder, tmp_path, classifier):
    models = pytest.importorskip("ome_zarr_models.v04")
    import zarr

    call(folder / "a b.tif", folder / "photo.jpg", "-o", tmp_path / "out", "--ome-labels")
    for name in ("a b", "photo"):
        root = zarr.open_group(tmp_path / "out" / name / "cells.ome.zarr", mode="r")
        assert root.metadata.zarr_format == 2
        image = models.Image.from_zarr(root)
        assert image.attributes.multiscales[0].axes[1].unit == "micrometer"
        label = models.ImageLabel.from_zarr(root["labels/cells"])
        found = read_results(tmp_path / "out" / name)
        table = found.cells.table
        colours = {one.label_value: one.rgba for one in label.attributes.image_label.colors}
        assert list(colours) == table["label"].tolist()
        told = root["labels/cells"].attrs["image-label"]["properties"]
        assert [one["class"] for one in told] == table["class"].tolist()
        drawn = root["labels/cells/0"][:]
        areas = np.bincount(drawn.ravel())[1:]
        # An outline has no holes; else it is the cell, pixel by pixel.
        np.testing.assert_allclose(areas, table["area"], rtol=0.02)
        if found.labels is not None:
            np.testing.assert_array_equal(drawn, found.labels)
        if "1" in root["labels/cells"]:
            np.testing.assert_array_equal(root["labels/cells/1"][:], drawn[::2, ::2])
    # Results are no slides to be worked on again.
    assert ["holds no picture" in one.missing for one in list_slides([tmp_path / "out"])[0]] == [True]


@pytest.fixture(scope="module")
def cluster():
    """Return a cluster on this machine, one worker to begin with, whose slides have many small parts."""
    distributed = pytest.importorskip("distributed")
    before = dict(os.environ)  # Dask leaves numbers of threads there, which later tests would hand to their processes
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        dashboard_address=None,
        silence_logs=50,
        preload=["import napari_wbc.plan as p; p.PART = 2"],
    ) as cluster:
        yield cluster
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def small_parts(monkeypatch):
    """Make as many parts of a slide in this process as in the workers."""
    monkeypatch.setattr("napari_wbc.plan.PART", 2)


@pytest.fixture(scope="module")
def in_parts(folder, tmp_path_factory):
    """Return what a run in this process writes whose slides have as many parts."""
    out = tmp_path_factory.mktemp("parts") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_wbc.plan.PART", 2)
        call(folder, "-o", out)
    return out


def test_one_worker_and_two_give_the_tables_of_a_run_without_any(folder, cluster, small_parts, in_parts, tmp_path):
    for n in (1, 2):
        cluster.scale(n)
        out = tmp_path / str(n)
        assert "4 done" in call(folder, "-o", out, "--scheduler", cluster.scheduler_address)
        assert content(out) == content(in_parts)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_what_a_killed_worker_had_is_done_again_elsewhere(folder, cluster, small_parts, in_parts, classifier, tmp_path):
    from distributed import Client

    from napari_wbc.batch_cluster import Cluster

    cluster.scale(2)
    terms = Terms(Settings(), classifier.card)
    killed: list[int] = []
    with Client(cluster, set_as_default=False) as client, BatchFolder(tmp_path / "out", terms).held() as held:
        client.wait_for_workers(2)
        run = Batch(list_slides([folder])[0], held)
        for report in run.run(Cluster(client, terms, None)):
            if report.state == "running" and 0 < report.done < report.total and not killed:
                killed += client.run(os.getpid).values()
                os.kill(killed[0], signal.SIGKILL)
        # Whether and when its nanny starts another one is Dask's affair.
        assert killed[0] not in client.run(os.getpid).values()
    assert len(killed) == 2
    assert content(tmp_path / "out") == content(in_parts)


def test_broken_slides_fail_alone_on_a_cluster_too(folder, cluster, tmp_path):
    for name, make in BROKEN.items():
        (tmp_path / name).write_bytes(make(folder))
    (tmp_path / "good.jpg").write_bytes(FIELDS[0].read_bytes())
    said = call(tmp_path, "-o", tmp_path / "out", "--scheduler", cluster.scheduler_address, code=3)
    assert "1 done, 4 failed" in said
    assert "cut.svs: " in said


def test_workers_need_dask(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert 'pip install "napari-wbc[batch]"' in call(folder, "-o", tmp_path / "out", "--workers", "2", code=1)
    assert "--workers or --scheduler" in call(
        folder, "-o", tmp_path, "--workers", 2, "--scheduler", "tcp://a:1", code=2
    )


def test_a_scheduler_that_is_gone_and_one_that_never_was(folder, reference, classifier, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("napari_wbc.batch_cluster._ANSWER", 6.0)
    from napari_wbc.batch_cluster import Cluster, ClusterError

    said = call(folder, "-o", tmp_path / "out", "--scheduler", "tcp://127.0.0.1:9", code=1)
    assert "no scheduler answers at tcp://127.0.0.1:9; start one with: dask scheduler" in said
    address = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "dask", "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file"]
    terms = Terms(Settings(), classifier.card)
    with subprocess.Popen([*command, str(address)], stderr=subprocess.DEVNULL) as scheduler:
        while not (address.is_file() and address.read_text()):
            time.sleep(0.1)
        where = json.loads(address.read_text())["address"]
        with (
            Cluster.started(terms, None, scheduler=where) as engine,
            BatchFolder(tmp_path / "out", terms).held() as held,
        ):
            run = Batch(list_slides([folder])[0], held)
            with pytest.raises(ClusterError, match=f"{where} is gone; start it again"):
                for report in run.run(engine):
                    if report.state == "running" and scheduler.poll() is None:
                        assert report.stage == "waiting for a worker"
                        scheduler.kill()
                        scheduler.wait()
    assert set(states(tmp_path / "out").values()) == {"waiting"}
    assert "4 done" in call(folder, "-o", tmp_path / "out")
    assert content(tmp_path / "out") == content(reference)

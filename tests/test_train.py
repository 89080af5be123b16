"""Training: networks, recipes, runs that are interrupted and go on, and what goes wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from napari_wbc.batches import Batches
from napari_wbc.classifier import Classifier, ModelCard, ModelError, save_model
from napari_wbc.models import NETWORKS, available_models, build
from napari_wbc.recipe import Recipe, load_recipe, recipes
from napari_wbc.train import HISTORY, TrainingError, few_steps, prepare, split_cells, train

CROPS = Path(__file__).parent / "data/crops"
TINY = Recipe(
    network="custom_cnn", start="random", pixels=32, side_um=24.0, epochs=3, batch_size=4, lr=1e-3,
    preprocessing=({"step": "scale_to_unit"},), augmentation=({"step": "colour"},), warmup=0, batch_norm="train",
)  # fmt: skip


def run(tree: Path, folder: Path, recipe: Recipe = TINY, **more: object):
    return train(tree, recipe, folder, val=0.34, mpp=0.145, device="cpu", **more)  # type: ignore[arg-type]


def test_a_run_leaves_a_model_that_predicts(tree: Path, tmp_path: Path) -> None:
    done = run(tree, tmp_path / "run", name="mine.v1")
    assert list(done.history.columns) == HISTORY
    assert len(done.history) == 3
    assert {p.name for p in done.folder.iterdir()} == {
        "settings.json", "split.csv", "problems.csv", "history.csv", "curves.png", "environment.json",
        "predictions.csv", "mine.v1.json", "mine.v1.safetensors",
    }  # fmt: skip
    assert "mine.v1" in available_models()
    model = Classifier.load("mine.v1", device="cpu")
    p = model.predict(np.zeros((2, 32, 32, 3), np.uint8))
    assert p.shape == (2, 3)
    assert model.card.training["cells"] == {"train": 6, "val": 3}
    assert {r["what"] for r in model.card.results} == {"accuracy", "macro-F1"}


def test_it_learns(tree: Path, tmp_path: Path) -> None:
    recipe = TINY.but(epochs=25, augmentation=(), turn={}, schedule="constant")
    done = run(tree, tmp_path / "run", recipe)
    assert done.history["loss"].iloc[-1] < 0.5 * done.history["loss"].iloc[0]
    assert done.history["accuracy"].iloc[-1] == 1.0


def test_killed_and_resumed_it_has_the_same_history(tree: Path, tmp_path: Path) -> None:
    whole = run(tree, tmp_path / "whole", TINY.but(epochs=6, average="late")).history
    script = tmp_path / "go.py"
    script.write_text(
        "import sys, time, test_train as t\nfrom pathlib import Path\n"
        "def slow(what, done, total):\n"
        "    if what.startswith('epoch') and not Path(sys.argv[3]).exists(): time.sleep(0.2)\n"
        "t.run(Path(sys.argv[1]), Path(sys.argv[2]), t.TINY.but(epochs=6, average='late'), report=slow)\n"
    )
    folder = tmp_path / "killed"
    fast = tmp_path / "fast"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(script), str(tree), str(folder), str(fast)]
    process = subprocess.Popen(command, env=environment)
    for _ in range(1200):
        time.sleep(0.1)
        if (folder / "last.ckpt").exists() or process.poll() is not None:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "last.ckpt").exists()
    assert not (folder / "curves.png").exists()
    fast.touch()
    subprocess.run(command, env=environment, check=True)
    resumed = pd.read_csv(folder / "history.csv")
    columns = [c for c in HISTORY if c != "seconds"]
    pd.testing.assert_frame_equal(resumed[columns], whole[columns].astype(resumed[columns].dtypes), rtol=1e-6)


def test_a_loss_that_is_no_number_keeps_the_last_good_weights(tree: Path, tmp_path: Path, monkeypatch) -> None:
    from napari_wbc import engine as module

    real = module.functional.cross_entropy
    calls = iter(range(10_000))
    monkeypatch.setattr(
        module.functional, "cross_entropy",
        lambda logits, *a, **k: real(logits, *a, **k) * (math.nan if logits.requires_grad and next(calls) >= 2 else 1),
    )  # fmt: skip
    done = run(tree, tmp_path / "run", TINY)
    assert "no number in epoch 3; the weights of epoch 2 are kept" in done.stopped
    assert Classifier.load(tmp_path / "run", device="cpu") is not None


def test_without_memory_it_says_how_to_go_on(tree: Path, tmp_path: Path, monkeypatch) -> None:
    from napari_wbc import engine as module

    real = module.functional.cross_entropy
    calls = iter(range(10_000))

    def scarce(logits, *args, **options):
        if logits.requires_grad and next(calls) == 2:  # in the third epoch
            raise torch.OutOfMemoryError("out of memory")
        return real(logits, *args, **options)

    monkeypatch.setattr(module.functional, "cross_entropy", scarce)
    with pytest.raises(TrainingError, match=r"batches of 4; .*smaller --batch-size"):
        run(tree, tmp_path / "run", TINY)
    assert len(run(tree, tmp_path / "run", TINY).history) == 3  # with memory again


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_keeps_what_was_done(tree: Path, tmp_path: Path) -> None:
    whole = run(tree, tmp_path / "whole").history
    command = [sys.executable, "-c", FULL_DISK, str(tree), str(tmp_path / "run"), "limited"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    full = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert full.returncode != 0
    assert "TrainingError" in full.stderr
    assert "Free some space and run the same command to go on" in full.stderr
    subprocess.run(command[:-1], env=environment, check=True)
    columns = [c for c in HISTORY if c != "seconds"]
    resumed = pd.read_csv(tmp_path / "run/history.csv")
    pd.testing.assert_frame_equal(resumed[columns], whole[columns].astype(resumed[columns].dtypes), rtol=1e-6)


FULL_DISK = """
import signal, sys, test_train as t
from pathlib import Path

def report(what, done, total):
    if what.startswith("epoch 2") and len(sys.argv) > 3:  # from here on no file may grow past 20 kB
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

t.run(Path(sys.argv[1]), Path(sys.argv[2]), report=report)
"""


def test_further_sets_beside_the_data_are_drawn_by_their_share(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(CROPS / "lymphocyte", tmp_path / "more/lymphocyte")
    shutil.copytree(CROPS / "neutrophil", tmp_path / "more/neutrophil")
    shutil.copytree(CROPS / "platelet", tmp_path / "more/platelet")  # the data have no such class
    first = min(path.name for path in (tmp_path / "more/lymphocyte").iterdir())
    also = (
        {"name": "more", "share": 0.4, "leave_out": [first]},
        {"name": "gone", "share": 0.1},
    )
    recipe = TINY.but(also=also, balance="sampling")
    ready = prepare(split_cells(tree, recipe, val=0.34), recipe, mpp=0.145)
    assert ready.extra.shape[1:] == ready.crops.shape[1:]
    names = [ready.classes[k] for k in ready.extra_y]
    assert sorted(names) == ["lymphocyte"] * 2 + ["neutrophil"] * 3
    assert ready.extra_weight.sum() == pytest.approx(0.4)
    rare = ready.extra_weight[ready.extra_y == ready.classes.index("lymphocyte")]
    assert rare.min() > ready.extra_weight.min()  # by class, as the others
    assert "5 cells of more are trained on, too" in ready.notes
    assert "gone is not beside the data: trained without it" in ready.notes
    drawn = np.concatenate([Batches(ready, recipe.but(per_epoch=200), epoch).order().ravel() for epoch in range(5)])
    assert (drawn >= len(ready.crops)).mean() == pytest.approx(0.4, abs=0.06)


def test_too_few_steps_are_told() -> None:
    assert few_steps(80, 10) == ""
    assert "more epochs (27)" in few_steps(30, 10)  # 3 an epoch
    assert "1 in 1 epoch change" in few_steps(1, 1)


@pytest.mark.parametrize(
    ("network", "words"),
    [("mobilenet_v2", "mobilenet_v2-7ebf99e0.pth"), ("efficientnet_v2_s_selu6", "efficientnet_v2_s"),
     ("inception_resnet_v2", "timm downloads them")],
)  # fmt: skip
def test_without_network_it_is_said_where_the_weights_are_from(network, words, tmp_path, monkeypatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr("timm.create_model", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="cannot be had") as caught:
        build(network, 2, start="imagenet")
    assert words in str(caught.value)
    assert "--start random" in str(caught.value)
    if "timm" not in words:  # the file that is put there by hand is the one that is looked for
        assert f"{tmp_path}/checkpoints" in str(caught.value)


def test_weights_that_cannot_be_had_are_told_before_any_picture_is_looked_at(tree, tmp_path, monkeypatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    (tree / "neutrophil" / "cut.jpg").write_bytes(b"")
    stages: list[str] = []
    with pytest.raises(ValueError, match="cannot be had"):
        train(tree, Recipe(), tmp_path / "run", report=lambda stage, *_: stages.append(stage))
    assert stages == []
    assert not (tmp_path / "run").exists()


def test_early_stopping(tree: Path, tmp_path: Path) -> None:
    done = run(tree, tmp_path / "run", TINY.but(epochs=30, lr=1e-9, patience=2))
    assert len(done.history) < 30
    assert "no progress" in done.stopped


def test_folders_that_hold_something_else(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.doc").touch()
    with pytest.raises(TrainingError, match="holds other files"):
        run(tree, tmp_path / "full")
    run(tree, tmp_path / "run", TINY.but(epochs=1))
    with pytest.raises(TrainingError, match=r"other settings \(recipe.epochs was 1 and is 2\); give the same"):
        run(tree, tmp_path / "run", TINY.but(epochs=2))
    with pytest.raises(TrainingError, match=r"recipe.batch_size was 4 and is 2; .*; and 1 more\)"):
        run(tree, tmp_path / "run", TINY.but(epochs=2, batch_size=2, lr=1e-5, seed=1))
    settings = (tmp_path / "run/settings.json").read_bytes()
    (tmp_path / "run/settings.json").write_bytes(settings[:100])
    with pytest.raises(TrainingError, match=r"settings\.json: damaged"):
        run(tree, tmp_path / "run", TINY.but(epochs=1))
    (tmp_path / "run/settings.json").write_bytes(settings)
    with pytest.raises(TrainingError, match="finished"):
        run(tree, tmp_path / "run", TINY.but(epochs=1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("epochs", 0),
        ("batch_size", 0),
        ("scale", 2.0),
        ("optimiser", "magic"),
        ("dropout", 1.0),
    ],
)
def test_impossible_values(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        TINY.but(**{key: value})


def test_every_recipe_loads() -> None:
    assert {"wbc", "wbc8"} <= set(recipes())
    for name in recipes():
        assert isinstance(load_recipe(name), Recipe)


def test_recipes_that_say_something_unknown(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("epochz = 3\n")
    with pytest.raises(ValueError, match="unknown 'epochz'"):
        load_recipe(file)
    file.write_text("epochs = 'many'\n")
    with pytest.raises(ValueError, match="must be of type int"):
        load_recipe(file)
    file.write_text("= 3")
    with pytest.raises(ValueError, match="not a recipe in TOML"):
        load_recipe(file)
    with pytest.raises(ValueError, match="give a TOML file or one of"):
        load_recipe("nothing")


def test_weights_of_another_network(tree: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(TrainingError, match="no weights of custom_cnn"):
        run(tree, tmp_path / "run", TINY.but(start=str(tmp_path / "x.safetensors")))
    (tmp_path / "y.safetensors").write_bytes(b"junk")
    with pytest.raises(TrainingError, match="not a safetensors file"):
        run(tree, tmp_path / "run2", TINY.but(start=str(tmp_path / "y.safetensors")))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_learn_save_load_and_predict_the_same(name: str, tmp_path: Path) -> None:
    if name == "inception_resnet_v2":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    side = 96 if name == "inception_resnet_v2" else 64
    network = build(name, 4, hidden=16, dropout=0.5)
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), 1e-3)
    x = torch.randn(2, 3, side, side)
    loss = torch.nn.functional.cross_entropy(network(x), torch.tensor([0, 1]))
    loss.backward()
    optimiser.step()
    assert all(torch.isfinite(p).all() for p in network.parameters())
    from napari_wbc.crop import CropSize

    head = {"hidden": 16, "dropout": 0.5}
    card = ModelCard("n", name, ("a", "b", "c", "d"), CropSize(20, side), ({"step": "imagenet"},), head=head)
    save_model(tmp_path / "n", card, network.state_dict())
    crops = np.random.default_rng(0).integers(0, 255, (3, side, side, 3), np.uint8)
    first = Classifier.load(tmp_path / "n.json", device="cpu").predict(crops)
    second = Classifier.load(tmp_path / "n.json", device="cpu").predict(crops)
    assert (first == second).all()
    stored = {k: v.half().float() for k, v in network.state_dict().items() if v.is_floating_point()}
    network.load_state_dict(stored, strict=False)
    network.eval()
    from napari_wbc.preprocess import apply_steps

    with torch.inference_mode():
        ready = apply_steps(torch.from_numpy(crops).permute(0, 3, 1, 2), card.preprocessing, card.crop)
        expected = network(ready).softmax(1).numpy()
    np.testing.assert_allclose(first, expected, atol=2e-3)


def test_selu6_follows_its_formula() -> None:
    from napari_wbc.models._networks import SeLU6

    scale, alpha = 1.0507009873554805, 1.6732632423543772
    x = [-3.0, -0.5, 0.0, 1.0, 5.0, 5.8, 100.0]
    expected = [min(6.0, scale * v) if v > 0 else scale * alpha * (math.exp(v) - 1) for v in x]
    assert expected[-1] == 6.0
    np.testing.assert_allclose(SeLU6()(torch.tensor(x)).numpy(), expected, rtol=1e-6)


def test_selu6_replaces_the_block_activations() -> None:
    from napari_wbc.models._networks import SeLU6

    network = build("efficientnet_v2_s_selu6", 2)
    kinds = [type(m).__name__ for m in network.modules()]
    plain = [type(m).__name__ for m in build("efficientnet_v2_s", 2).modules()]
    assert kinds.count("SeLU6") > 50
    inside_gates = plain.count("SqueezeExcitation")
    assert kinds.count("SiLU") == plain.count("SiLU") - kinds.count("SeLU6")
    assert kinds.count("SiLU") <= inside_gates
    assert isinstance(SeLU6()(torch.zeros(1)), torch.Tensor)


def test_unknown_networks_and_cards_from_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown network 'nothing'"):
        build("nothing", 2)
    with pytest.raises(ValueError, match="no ImageNet weights"):
        build("custom_cnn", 2, start="imagenet")
    for bad in ({"start": "imagenet"}, {"hidden": -1}, {"dropout": "x"}):
        with pytest.raises(ValueError, match="head"):
            ModelCard("n", "custom_cnn", ("a", "b"), TINY.size, (), head=bad)
    card = json.loads(ModelCard("n", "custom_cnn", ("a", "b"), TINY.size, ()).to_json())
    (tmp_path / "n.json").write_text(json.dumps(card | {"from_the_future": 1}))
    with pytest.raises(ModelError, match="unknown or of the wrong type"):
        Classifier.load(tmp_path / "n.json")


def test_freezing() -> None:
    from napari_wbc.engine import freeze
    from napari_wbc.models._networks import blocks

    network = build("mobilenet_v2", 3)
    assert len(blocks(network.features)) == 19
    freeze(network, TINY.but(network="mobilenet_v2", free=2))
    learning = [k for k, part in enumerate(blocks(network.features)) if any(p.requires_grad for p in part.parameters())]
    assert learning == [17, 18]
    network = build("densenet201", 3)
    freeze(network, TINY.but(network="densenet201", free=0))
    assert not any(p.requires_grad for p in network.features.parameters())
    assert all(p.requires_grad for p in network.classifier.parameters())

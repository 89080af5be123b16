"""Time TIAToolbox's PatchPredictor on the tiles of a slide, for `slides.py --tiatoolbox`.

    python benchmarks/tiatoolbox_tiles.py slide.tif weights.safetensors --share 0.1

Run by a Python that has TIAToolbox (an environment of its own). Every tile of 224 px goes through MobileNetV2 with the
weights of the shipped model, batches of 32. With a share, only the tiles of so many of the slide's upper rows are done.
Prints JSON: seconds, those of both processors, tiles done, tiles of the whole slide, versions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import tiatoolbox
import torch
import zarr
from safetensors.torch import load_file
from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig
from tiatoolbox.models.engine.patch_predictor import PatchPredictor
from tiatoolbox.models.models_abc import ModelABC
from tiatoolbox.wsicore.wsireader import WSIReader
from torchvision.models import mobilenet_v2

SIDE, BATCH = 224, 32


class Network(ModelABC):
    """MobileNetV2 as TIAToolbox wants it."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        state = {name: value.float() for name, value in load_file(weights).items() if not name.startswith("unlikeness")}
        self.network = mobilenet_v2(num_classes=len(state["classifier.1.bias"]))
        for name, module in list(self.network.named_modules()):  # the weights hold the batch norms in the convolutions
            if isinstance(module, torch.nn.Conv2d):
                module.bias = torch.nn.Parameter(torch.zeros(module.out_channels))
            elif isinstance(module, torch.nn.BatchNorm2d):
                parent, _, child = name.rpartition(".")
                setattr(self.network.get_submodule(parent), child, torch.nn.Identity())
        self.network.load_state_dict(state)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.network(crops.float().permute(0, 3, 1, 2).div(127.5).sub(1)).softmax(1)

    @staticmethod
    def infer_batch(model: torch.nn.Module, batch_data: torch.Tensor, *, device: str) -> np.ndarray:
        model.eval()
        with torch.inference_mode():
            return model(batch_data.to(device)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=0, help="processes that read")
    args = parser.parse_args()
    width, height = WSIReader.open(args.slide).info.slide_dimensions
    mask = np.zeros((round(height / 64), round(width / 64)), np.uint8)
    mask[: round(args.share * len(mask))] = 1
    config = IOPatchPredictorConfig(
        input_resolutions=[{"units": "baseline", "resolution": 1.0}],
        patch_input_shape=[SIDE, SIDE],
        stride_shape=[SIDE, SIDE],
    )
    engine = PatchPredictor(Network(args.weights), batch_size=BATCH, num_workers=args.workers, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        start, busy = time.perf_counter(), time.process_time()
        found = engine.run(
            [args.slide], masks=None if args.share >= 1 else [mask], ioconfig=config, patch_mode=False,
            auto_get_mask=False, output_type="zarr", save_dir=Path(folder) / "out",
        )  # fmt: skip
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        tiles = int(zarr.open(found[args.slide], mode="r")["predictions"].shape[0])
    print(json.dumps({
        "seconds": seconds, "busy": busy, "tiles": tiles, "of": (width // SIDE) * (height // SIDE),
        "tiatoolbox": tiatoolbox.__version__, "torch": torch.__version__, "threads": torch.get_num_threads(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()

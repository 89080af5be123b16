"""The network on OpenVINO, where that is installed: the same numbers on a CPU, in less time.

The conversion takes some seconds. It runs once a model, in a process of its own (it loads a compiler that must not
share a process with a viewer's window), and its result stays in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .classifier import Classifier

SWITCH = "NAPARI_WBC_OPENVINO"
Forward = Callable[[Iterable["Tensor"]], Iterator[tuple["Tensor", "Tensor | None"]]]


def accelerated(classifier: Classifier, card_path: Path) -> Forward | None:
    """Return the classifier's forward pass on OpenVINO, or None where that is not to be had.

    Parameters
    ----------
    classifier : Classifier
        On the CPU.
    card_path : pathlib.Path
        Its card, which the conversion loads again.

    Returns
    -------
    callable or None
        Takes parts of what the network sees, each (n, 3, S, S), and gives for each, in order, logits (n, k) and the
        statistics (n, d) of the gauge, or None for them without a gauge. As many parts are under way at once as torch
        has threads, each the work of one thread. None if OpenVINO is not installed, cannot convert the network, or the
        environment variable NAPARI_WBC_OPENVINO is 0.
    """
    if os.environ.get(SWITCH) == "0" or find_spec("openvino") is None:
        return None
    import openvino
    import torch
    from platformdirs import user_cache_path

    card = classifier.card
    watched = "-".join(card.unlikeness.get("blocks", ()))
    kind = hashlib.sha256(f"{card.sha256} {card.crop.pixels} {watched}".encode()).hexdigest()[:24]
    name = f"{kind}-{card.network}-openvino{openvino.__version__.split('-')[0]}"
    model = user_cache_path("napari-wbc", appauthor=False) / "models" / f"{name}.xml"
    try:
        if not model.is_file() and not _convert_apart(card_path, model):
            return None
        core = openvino.Core()
        threads = torch.get_num_threads()
        # A thread that is bound to a processor would wait there for the threads that segment.
        options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads, "ENABLE_CPU_PINNING": False}
        compiled = core.compile_model(core.read_model(model), "CPU", {**options, "INFERENCE_PRECISION_HINT": "f32"})
        requests = [compiled.create_infer_request() for _ in range(threads)]
    except (OSError, RuntimeError):
        return None  # an accelerator that fails is none
    alone = threading.Lock()

    def forward(views: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
        free, busy = list(requests), deque[Any]()

        def taken() -> tuple[Tensor, Tensor | None]:
            request = busy.popleft()
            request.wait()
            logits, *more = (torch.from_numpy(request.get_output_tensor(k).data.copy()) for k in range(outputs))
            free.append(request)
            return logits, more[0] if more else None

        outputs = 2 if classifier.gauge else 1
        with alone:
            try:
                for seen in views:
                    if not free:
                        yield taken()
                    busy.append(free.pop())
                    busy[-1].start_async([seen.contiguous().numpy()])
                while busy:
                    yield taken()
            finally:
                for request in busy:
                    request.wait()

    return forward


def _convert_apart(card_path: Path, model: Path) -> bool:
    """Convert in another process; whether it worked."""
    model.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        fresh = Path(folder) / model.name
        command = [sys.executable, "-m", __name__, str(card_path), str(fresh)]
        environment = os.environ | {SWITCH: "0"}
        done = subprocess.run(command, env=environment, capture_output=True, check=False)  # noqa: S603 - ourselves
        if done.returncode != 0:
            return False
        # The weights first: a model without them is not read.
        fresh.with_suffix(".bin").replace(model.with_suffix(".bin"))
        fresh.replace(model)
    return True


def convert(card_path: str, model: str) -> None:
    """Write a model's network, and the statistics of its gauge, for OpenVINO."""
    import openvino
    import torch

    from .classifier import Classifier

    classifier = Classifier.load(card_path, device="cpu")

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = classifier.network

        def forward(self, seen: Tensor) -> Any:
            if classifier.gauge is None:
                return self.network(seen)
            with classifier.gauge.watching():
                return self.network(seen), classifier.gauge.statistics()

    pixels = classifier.card.crop.pixels
    with torch.inference_mode():
        converted = openvino.convert_model(Watched(), example_input=torch.zeros(2, 3, pixels, pixels))
    converted.reshape([-1, 3, pixels, pixels])
    openvino.save_model(converted, model, compress_to_fp16=False)


if __name__ == "__main__":
    convert(*sys.argv[1:])

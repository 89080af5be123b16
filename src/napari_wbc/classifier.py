"""A network with everything that is needed to use it, and nothing that can be executed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .accelerator import Forward, accelerated
from .allocator import keep_blocks
from .class_names import UNIDENTIFIED
from .crop import CropSize
from .models import build, find_model, fold_batch_norm
from .preprocess import apply_steps, check_steps, to_unit
from .unlikeness import PREFIX, Gauge, check_unlikeness

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_WEIGHTS_BYTES = 4 * 2**30
CPU_PIXELS = 16 * 128**2
"""So many go through the network at once on a CPU: its maps then stay in the caches, and below the size that the
system's allocator hands back at every step, which makes it 1.5 to 2 times faster than with batches of 64 crops."""


class ModelError(ValueError):
    """A model's files cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class ModelCard:
    """What must be known to use and to judge a model.

    Parameters
    ----------
    name : str
        The model's name.
    network : str
        Name in `napari_wbc.models.NETWORKS`.
    classes : tuple of str
        One name an output.
    crop : CropSize
        Size of the crops that the network takes.
    preprocessing : tuple of mappings
        Steps of `napari_wbc.preprocess`, in order.
    views : tuple of tuples of mappings
        If given, each crop is seen in so many ways: these steps come before those of `preprocessing`, and the logits
        are averaged. Normalisations fail on different laboratories; their mean fails on fewer.
    head : mapping
        Arguments of `napari_wbc.models.build` beside the name and the number of classes.
    temperature : float
        Logits are divided by it before the softmax (calibration).
    threshold : float
        Cells less probable than this are *unidentified* unless the user says otherwise.
    unlikeness : mapping
        ``blocks`` of the network whose statistics are weighed (`napari_wbc.unlikeness`) and ``above``: cells that score
        more are *unidentified*, too. Empty if the model cannot tell.
    sha256 : str
        Of the weights file.
    description, licence, training : str, str, mapping
        What it is, its licence, and the data, split and command it comes from.
    results : tuple of mappings
        Measured results, each with its data and split.

    Raises
    ------
    ValueError
        If classes are missing, equal or called *unidentified*, if the temperature
        is not positive, the threshold not within 0 to 1, or a step is unknown.
    """

    name: str
    network: str
    classes: tuple[str, ...]
    crop: CropSize
    preprocessing: tuple[Mapping[str, Any], ...]
    views: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    head: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    threshold: float = 0.5
    unlikeness: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    description: str = ""
    licence: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes) or UNIDENTIFIED in self.classes:
            raise ValueError(f"the classes must be different names other than {UNIDENTIFIED!r}")
        if not (math.isfinite(self.temperature) and self.temperature > 0 and 0 <= self.threshold <= 1):
            raise ValueError("temperature must be positive and threshold between 0 and 1")
        for steps in self.ways:
            check_steps(steps)
        check_unlikeness(self.unlikeness)
        limits: dict[str, tuple[Any, Any, Any]] = {
            "hidden": (int, 0, 65536),
            "dropout": ((int, float), 0, 0.99),
            "folded": (bool, False, True),
        }
        for key, value in self.head.items():
            if (
                key not in limits
                or not isinstance(value, limits[key][0])
                or not limits[key][1] <= value <= limits[key][2]
            ):
                raise ValueError(
                    f"head: {key!r} must be one of {', '.join(limits)}, and {value!r} is not possible for it"
                )

    @property
    def ways(self) -> tuple[tuple[Mapping[str, Any], ...], ...]:
        """All steps of each view."""
        return tuple((*view, *self.preprocessing) for view in self.views or ((),))

    @property
    def unlike_above(self) -> float:
        """Cells that are more unlike are unidentified; 1 if the model cannot tell."""
        return float(self.unlikeness.get("above", 1.0))

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read a card; ValueError says what is wrong with it."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("a model card is a JSON object")
        try:
            data["crop"] = CropSize(**data["crop"])
            for name in ("classes", "preprocessing", "results"):
                if not isinstance(data.get(name, []), list):
                    raise ValueError(f"{name} must be a list")
                data[name] = tuple(data.get(name, []))
            data["views"] = tuple(tuple(view) for view in data.get("views", []))
            if not all(isinstance(name, str) and name for name in (*data["classes"], data["name"], data["network"])):
                raise ValueError("name, network and classes must be names")
            return cls(**data)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a field is missing, unknown or of the wrong type ({error})") from error

    def to_json(self) -> str:
        """Return the card as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


class Classifier:
    """A network with its card, ready to predict.

    Parameters
    ----------
    card : ModelCard
        What the network takes and gives.
    network : torch.nn.Module
        The network in evaluation mode, on its device.
    gauge : Gauge, optional
        Tells how unlike a cell is to those that the network knows.

    Examples
    --------
    >>> classifier = Classifier.load()
    >>> probabilities = classifier.predict(crops)  # doctest: +SKIP
    """

    def __init__(self, card: ModelCard, network: nn.Module, gauge: Gauge | None = None) -> None:
        import torch

        self.card = card
        self.network = network.eval().to(memory_format=torch.channels_last)
        self.gauge = gauge
        self._accelerated: Forward | None = None

    @classmethod
    def load(cls, model: str | Path | None = None, *, device: str | None = None) -> Classifier:
        """Load a model from its card and weights.

        Parameters
        ----------
        model : str or pathlib.Path, optional
            A shipped model's name, a card file or its folder; the default model if not given.
        device : str, optional
            ``cpu``, ``cuda`` or ``mps``; the fastest there is if not given.

        Raises
        ------
        FileNotFoundError
            If there is no such model.
        ModelError
            If its files are damaged, do not belong together, or are not safetensors.
        RuntimeError, AssertionError
            If torch cannot use the device.
        """
        card_path = find_model(model)
        try:
            card = ModelCard.from_json(card_path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{card_path}: not a valid model card: {error}; copy it again, or correct it") from error
        weights_path = card_path.with_suffix(".safetensors")
        state = _read_weights(weights_path, card)
        try:
            network = build(card.network, len(card.classes), **card.head)
            network.load_state_dict({k: v.float() for k, v in state.items() if not k.startswith(PREFIX)})
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"{weights_path}: the weights do not fit the card's network {card.network!r} with "
                f"{len(card.classes)} classes; use the card and the weights of one model "
                f"({str(error).splitlines()[0]})"
            ) from error
        device = device or best_device()
        network = fold_batch_norm(network)
        try:
            gauge = Gauge.load(network, card.unlikeness, state, card.crop.pixels)
        except ValueError as error:
            raise ModelError(f"{weights_path}: {error}; use the card and the weights of one model") from error
        classifier = cls(card, network.to(device), gauge and gauge.to(device))
        if device == "cpu":
            keep_blocks(1 << 25)
            classifier._accelerated = accelerated(classifier, card_path)
        return classifier

    @property
    def engine(self) -> str:
        """What runs the network: ``torch``, or ``openvino`` where it is installed and there is no GPU."""
        return "openvino" if self._accelerated else "torch"

    def predict(
        self,
        crops: npt.NDArray[np.uint8],
        *,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Classify crops.

        Parameters
        ----------
        crops : (n, S, S, 3) uint8 array
            Crops of the card's size (`napari_wbc.crop.crop_cells`).
        batch_size : int
            Crops at once; halved by itself when memory runs out.
        progress : callable, optional
            Called with the number of crops done after each batch.

        Returns
        -------
        (n, k) float32 array
            Calibrated probabilities in the order of the card's classes.

        Raises
        ------
        ValueError
            If the crops are not uint8 of the card's size.
        """
        return self.judge(crops, batch_size=batch_size, progress=progress)[0]

    def judge(
        self,
        crops: npt.NDArray[np.uint8],
        *,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Classify crops and say how unlike they are to what the model knows.

        Parameters
        ----------
        crops, batch_size, progress
            As `predict`.

        Returns
        -------
        (n, k) float32 array
            Calibrated probabilities in the order of the card's classes.
        (n,) float32 array
            Unlikeness from 0 to 1 (`napari_wbc.unlikeness`); NaN if the model cannot tell.

        Raises
        ------
        ValueError
            If the crops are not uint8 of the card's size.
        """
        size = self.card.crop.pixels
        if crops.shape[1:] != (size, size, 3) or crops.dtype != np.uint8:
            raise ValueError(f"the model takes uint8 crops of {size} × {size} × 3, not {crops.dtype} {crops.shape[1:]}")
        out = np.empty((len(crops), len(self.card.classes)), np.float32)
        unlikeness = np.full(len(crops), np.nan, np.float32)
        start = 0
        with self._threads() as pool:
            while start < len(crops):
                batch = crops[start : start + batch_size]
                try:
                    part = slice(start, start + len(batch))
                    out[part], unlikeness[part] = self._shared(batch, pool) if pool else self._look(batch)
                except RuntimeError as error:
                    if not _out_of_memory(error) or batch_size == 1:
                        raise
                    batch_size = max(1, min(batch_size, len(batch)) // 2)
                    continue
                start += len(batch)
                if progress is not None:
                    progress(start)
        return out, unlikeness

    @contextmanager
    def _threads(self) -> Iterator[ThreadPoolExecutor | None]:
        """Threads that share a CPU's work, with what watches the network; none beside a GPU."""
        import torch

        with self.gauge.watching() if self.gauge and not self._accelerated else nullcontext():
            if next(self.network.parameters()).device.type != "cpu":
                yield None
                return
            threads = torch.get_num_threads()
            try:
                with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                    yield pool
            finally:
                torch.set_num_threads(threads)  # threads that begin later take over the number that was set last

    def _shared(
        self, batch: npt.NDArray[np.uint8], pool: ThreadPoolExecutor
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Probabilities and unlikeness of a batch on a CPU.

        Each part is the work of one thread: torch's own would share the sums out, and their number change the last
        digits. So a laptop, a cluster and the dock write the same table.
        """
        at_once = max(1, CPU_PIXELS // self.card.crop.pixels**2 // len(self.card.ways))
        at_once = min(at_once, -(-len(batch) // 2))  # two cells keep two processors busy
        parts = [batch[start : start + at_once] for start in range(0, len(batch), at_once)]
        if self._accelerated:  # which has threads of its own
            # Sums of torch in this thread would leave its other threads spinning in the way.
            found = list(pool.map(self._weigh, list(self._accelerated(pool.map(self._views, parts)))))
        else:
            found = list(pool.map(self._look, parts))
        return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])

    def _look(self, part: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Probabilities and unlikeness of as many crops as go through the network at once."""
        import torch

        with torch.inference_mode():
            logits = self.network(self._views(part).contiguous(memory_format=torch.channels_last))
        return self._weigh((logits, self.gauge.statistics() if self.gauge else None))

    def _views(self, part: npt.NDArray[np.uint8]) -> torch.Tensor:
        """What the network sees of some crops: (ways x n, 3, S, S)."""
        import torch

        device = next(self.network.parameters()).device
        with torch.inference_mode():
            crops = to_unit(torch.from_numpy(np.ascontiguousarray(part)).to(device).permute(0, 3, 1, 2))
            return torch.cat([apply_steps(crops, steps, self.card.crop) for steps in self.card.ways])

    def _weigh(
        self, seen: tuple[torch.Tensor, torch.Tensor | None]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Probabilities and unlikeness from the logits and statistics of all views."""
        import torch

        logits, statistics = seen
        ways = len(self.card.ways)
        with torch.inference_mode():
            mean = logits.reshape(ways, len(logits) // ways, -1).mean(0)
            result: npt.NDArray[np.float32] = (mean / self.card.temperature).softmax(1).cpu().numpy()
            if self.gauge is None or statistics is None:
                return result, np.full(len(result), np.nan, np.float32)
            score: npt.NDArray[np.float32] = (
                self.gauge.score(statistics).reshape(ways, -1).mean(0).sigmoid().cpu().numpy()
            )
            return result, score


def save_model(path: str | Path, card: ModelCard, state: Mapping[str, torch.Tensor]) -> ModelCard:
    """Write ``<path>.safetensors`` (half precision) and ``<path>.json``.

    Parameters
    ----------
    path : str or pathlib.Path
        Without a suffix, or with ``.json``.
    card : ModelCard
        Its hash is filled in.
    state : mapping of str to tensor
        The network's state, before batch norms were folded.

    Returns
    -------
    ModelCard
        The card with the hash of the weights.
    """
    import torch
    from safetensors.torch import save

    from .atomic import new_file

    path = Path(path)
    if path.suffix != ".json":
        path = path.with_name(path.name + ".json")
    half = {
        name: tensor.detach().cpu().to(torch.float16).contiguous()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    data = save(half)
    card = replace(card, sha256=hashlib.sha256(data).hexdigest())
    with new_file(path.with_suffix(".safetensors")) as fresh:
        fresh.write_bytes(data)
    with new_file(path) as fresh:
        fresh.write_text(card.to_json(), encoding="utf-8")
    return card


def best_device() -> str:
    """Return ``cuda``, ``mps`` or ``cpu``: the first that there is."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _read_weights(path: Path, card: ModelCard) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise ModelError(f"{path}: the weights are missing; put them beside the card")
    if path.stat().st_size > MAX_WEIGHTS_BYTES:
        raise ModelError(f"{path}: more than {MAX_WEIGHTS_BYTES >> 30} GiB of weights; not a model of this package")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise ModelError(
            f"{path}: not the weights that the card was written for (its SHA-256 differs), or damaged; "
            "copy the card and the weights again"
        )
    try:
        return dict(load(data))
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file ({error}); other formats are not loaded") from error


def _out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "memory" in str(error).lower()

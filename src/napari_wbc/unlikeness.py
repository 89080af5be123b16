"""How unlike a cell is to those that a network knows.

A softmax names everything with confidence, also what no class stands for. Here the mean and the standard deviation of
each channel of some of the network's blocks, in the middle of the crop, are weighed by a logistic regression that was
trained to tell known cells from crops made strange on purpose (outlier exposure: Hendrycks et al., "Deep anomaly
detection with outlier exposure", ICLR 2019; statistics of inner layers: Sastry and Oore, "Detecting out-of-distribution
examples with Gram matrices", ICML 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PREFIX = "unlikeness."
"""Begins the names of its tensors in a model's weights."""
MARGIN = 0.2
"""Part of a feature map on each side that is not looked at: the neighbours are there."""


def check_unlikeness(told: Mapping[str, Any]) -> None:
    """Raise ValueError unless this is what a model card says of unlikeness: nothing, or ``blocks`` and ``above``."""
    if not told:
        return
    blocks, above = told.get("blocks"), told.get("above")
    if not isinstance(blocks, list | tuple) or not blocks or not all(isinstance(name, str) for name in blocks):
        raise ValueError("unlikeness: blocks must be a list of names of the network's parts")
    if not isinstance(above, int | float) or not 0 <= above <= 1:
        raise ValueError("unlikeness: above must be a number from 0 to 1")


class Gauge:
    """Watches a network at work and scores what it sees.

    Parameters
    ----------
    blocks : sequence of torch.nn.Module
        Parts of the network that give feature maps (n, c, h, w).
    weight : (d,) tensor
        Of the statistics of all blocks, in their order: means, then standard deviations.
    bias : () tensor
        Of the regression.
    """

    def __init__(self, blocks: Sequence[nn.Module], weight: Tensor, bias: Tensor) -> None:
        self.blocks, self.weight, self.bias = tuple(blocks), weight, bias
        self._seen: dict[int, list[Tensor]] = {}

    @classmethod
    def load(
        cls, network: nn.Module, told: Mapping[str, Any], state: Mapping[str, Tensor], pixels: int
    ) -> Gauge | None:
        """Return the gauge of a model card, or None if the card has none.

        Raises
        ------
        ValueError
            If the network lacks a block, or the weights are missing or do not fit.
        """
        if not told:
            return None
        import torch

        try:
            blocks = [network.get_submodule(name) for name in told["blocks"]]
            weight, bias = state[PREFIX + "weight"].float(), state[PREFIX + "bias"].float()
        except (AttributeError, KeyError) as error:
            raise ValueError(f"unlikeness: the network or the weights lack {error}") from error
        gauge = cls(blocks, weight, bias)
        with torch.inference_mode(), gauge.watching():
            network(torch.zeros(1, 3, pixels, pixels))
        if gauge.statistics().shape[1:] != weight.shape or bias.shape != ():
            raise ValueError("unlikeness: the weights do not fit the blocks that the card names")
        return gauge

    def to(self, device: torch.device | str) -> Gauge:
        """Return the gauge of a network that was moved there."""
        return Gauge(self.blocks, self.weight.to(device), self.bias.to(device))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect the statistics of passes through the network, of each thread its own."""
        self._seen = {}
        hooks = [block.register_forward_hook(self._see) for block in self.blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def statistics(self) -> Tensor:
        """Return the statistics (n, d) of this thread's last pass that was watched; once."""
        import torch

        return torch.cat(self._seen.pop(get_ident()), 1)

    def score(self, statistics: Tensor) -> Tensor:
        """Return the score (n,) of statistics (n, d); above 0 is unlike rather than like."""
        import torch

        # In double precision: a library's order of summation, which it may change, must not change the digits shown.
        total = statistics.cpu().double() @ self.weight.cpu().double() + self.bias.cpu().double()
        return torch.nan_to_num(total, nan=30.0).float()

    def _see(self, _module: nn.Module, _inputs: Any, maps: Tensor) -> None:
        if maps.dim() != 4:
            raise ValueError("unlikeness: a block of the network gives no feature maps (n, c, h, w)")
        rows, columns = (int(side * MARGIN) for side in maps.shape[2:])
        # Pixels first, as the maps lie in memory: along them torch sums many times as fast as along rows and columns.
        middle = maps[:, :, rows : maps.shape[2] - rows, columns : maps.shape[3] - columns].float().permute(0, 2, 3, 1)
        middle = middle.flatten(1, 2)
        mean = middle.mean(1, keepdim=True)
        deviation = (middle - mean).square_().mean(1).sqrt_()
        self._seen.setdefault(get_ident(), []).extend([mean[:, 0], deviation])

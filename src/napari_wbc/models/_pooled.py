"""The head that all networks share."""

from __future__ import annotations

from torch import Tensor, nn


class Head(nn.Sequential):
    """Optional dense layer with ReLU, dropout, classes; takes pooled features (n, inputs)."""

    def __init__(self, inputs: int, n_classes: int, hidden: int, dropout: float) -> None:
        layers: list[nn.Module] = [nn.Linear(inputs, hidden), nn.ReLU()] if hidden else []
        last = nn.Linear(hidden or inputs, n_classes)
        nn.init.normal_(last.weight, 0, 0.01)
        nn.init.zeros_(last.bias)
        super().__init__(*layers, nn.Dropout(dropout), last)


class Pooled(nn.Module):
    """Feature maps, their global mean, and a head."""

    def __init__(self, features: nn.Module, head: Head) -> None:
        super().__init__()
        self.features, self.classifier = features, head

    def embed(self, x: Tensor) -> Tensor:
        """Pooled features (n, c) of crops (n, 3, S, S)."""
        pooled: Tensor = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1)).flatten(1)
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes) of crops (n, 3, S, S)."""
        logits: Tensor = self.classifier(self.embed(x))
        return logits

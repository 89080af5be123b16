"""MobileNetV2 in torch alone.

Importing torchvision pulls in the compiler triton, whose LLVM clashes with that of software
OpenGL (Mesa) and ends a process that already shows a napari window.
"""

from __future__ import annotations

import torch
from torch import nn

# Expansion, channels, repeats, stride of the first: table 2 of the paper.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class _Residual(nn.Module):
    """Inverted residual: expand, filter each channel, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [_convolution(inputs, hidden, 1)]
        layers.append(_convolution(hidden, hidden, 3, stride, groups=hidden))
        self.conv = nn.Sequential(*layers, nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return x + y if self.shortcut else y


def mobilenet_features() -> nn.Sequential:
    """Feature maps of MobileNetV2, width 1: (n, 1280, S/32, S/32); parameters carry torchvision's names."""
    layers: list[nn.Module] = [_convolution(3, 32, 3, 2)]
    inputs = 32
    for expansion, outputs, repeats, stride in _STAGES:
        for k in range(repeats):
            layers.append(_Residual(inputs, outputs, stride if k == 0 else 1, expansion))
            inputs = outputs
    features = nn.Sequential(*layers, _convolution(inputs, 1280, 1))
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return features


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )

"""Two architectures of our own, for what the libraries' models do not have: in-place ReLU and a recurrent kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions with batch norm, in-place ReLU and a shortcut that is added in place."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    """A stem, two residual blocks, average pooling and a linear head; given labels, it returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layer1, self.layer2 = Block(8, 8), Block(8, 16)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 5)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.layer2(self.layer1(self.stem(pixel_values)))
        logits = self.head(self.pool(hidden).flatten(1))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Tagger(nn.Module):
    """A bidirectional LSTM of two layers with dropout, a tag per token; given labels, it returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 12)
        self.lstm = nn.LSTM(12, 10, num_layers=2, bidirectional=True, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(20)
        self.head = nn.Linear(20, 5)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        hidden, _ = self.lstm(self.words(input_ids))
        logits = self.head(self.norm(hidden))
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def images(generator: torch.Generator) -> dict[str, Tensor]:
    """Pixels and one label per image."""
    return {
        "pixel_values": torch.randn(4, 3, 8, 8, generator=generator),
        "labels": torch.randint(5, (4,), generator=generator),
    }


def sentences(generator: torch.Generator) -> dict[str, Tensor]:
    """Tokens and one label per token."""
    return {
        "input_ids": torch.randint(40, (3, 8), generator=generator),
        "labels": torch.randint(5, (3, 8), generator=generator),
    }

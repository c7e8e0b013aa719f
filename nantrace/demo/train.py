"""Train a small network to read handwritten digits, with a loss that looks right.

python train.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.progress import Progress, TextColumn
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import nantrace

STEPS = 400
LEARNING_RATE = 5e-3


class DigitNet(nn.Module):
    """Two convolutions and two linear layers; one output per digit."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(images)
        logits: Tensor = self.head(features)
        return logits


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,797 scanned digits, 8 by 8 pixels of 0 to 16: 1,437 to train on and 360 to test on."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images))
    train, test = order[:1437], order[1437:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Ten yes-or-no questions per image: is it a 0, is it a 1, ..."""
    target = F.one_hot(labels, 10).float()
    p = torch.sigmoid(logits)
    yes = target * torch.log(p)
    no = (1 - target) * torch.log(1 - p)
    return -(yes + no).sum(dim=1).mean()


def fixed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The same, computed from the logits."""
    target = F.one_hot(labels, 10).float()
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=1).mean()


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """The share of images that are read correctly."""
    images, labels = data.tensors
    return float((model(images).argmax(dim=1) == labels).float().mean())


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[TensorDataset, TensorDataset],
    loss_function: Callable[[Tensor, Tensor], Tensor],
    steps: range = range(STEPS),
    dump_dir: str | None = None,
) -> float:
    """Train for these steps and return the last loss."""
    train_set, test_set = data
    loader = DataLoader(train_set, batch_size=32, shuffle=True, drop_last=True)
    batches = (batch for _ in iter(int, 1) for batch in loader)
    columns = TextColumn("loss {task.fields[loss]:.4f}  test accuracy {task.fields[accuracy]:.1%}")
    with Progress(*Progress.get_default_columns(), columns) as progress:
        task = progress.add_task("training", total=STEPS, completed=steps.start, loss=0.0, accuracy=0.0)
        with nantrace.watch(model, dump_dir=dump_dir):
            for step, (images, labels) in zip(steps, batches):
                loss = loss_function(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress.update(task, completed=step + 1, loss=loss.item())
                if step % 20 == 0:
                    progress.update(task, accuracy=accuracy(model, test_set))
    return loss.item()


def main() -> None:
    """Train, watched."""
    torch.manual_seed(0)
    data = digits()
    model = DigitNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    train(model, optimizer, data, cross_entropy, dump_dir=".")


if __name__ == "__main__":
    main()

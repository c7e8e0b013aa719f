"""What watching adds to the peak memory of a step: `python tests/benchmarks/memory.py`.

Each figure is the peak resident memory of a child process over 6 steps, less that of the same process before its first
step; the table compares watched with plain. The model has large logits and a loss written out op by op.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys

import torch
from torch import nn

import nantrace

ROWS, VOCABULARY, WIDTH = 4096, 8192, 128


def loss_by_hand(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with label smoothing and a z-loss, written out: many temporaries as large as the logits."""
    shifted = logits - logits.amax(1, keepdim=True)
    weights = shifted.exp()
    total = weights.sum(1, keepdim=True)
    scores = shifted - total.log()
    picked = scores.gather(1, targets[:, None]).mean()
    smooth = scores.mean()
    penalty = (logits.logsumexp(1) ** 2).mean() * 1e-4
    return -(0.9 * picked + 0.1 * smooth) + penalty


def child(observed: bool) -> None:
    """Train 6 steps and print the peak over them, in bytes."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, VOCABULARY))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    torch.ones(8).sum().item()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with nantrace.watch(model) if observed else contextlib.nullcontext():
        for _ in range(6):
            x = torch.randn(ROWS, WIDTH, generator=generator)
            y = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
            optimizer.zero_grad()
            loss_by_hand(model(x), y).backward()
            optimizer.step()
    print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))


def peak(mode: str) -> int:
    """The peak of one child process."""
    result = subprocess.run([sys.executable, __file__, mode], capture_output=True, text=True, check=True)
    return int(json.loads(result.stdout))


def main() -> None:
    """Print plain and watched peaks and their ratio."""
    pairs = [(peak("plain"), peak("watched")) for _ in range(3)]
    for plain, watched in pairs:
        print(f"plain {plain / 2**20:.0f} MiB, watched {watched / 2**20:.0f} MiB: {watched / plain:.3f}x")


if __name__ == "__main__":
    if sys.argv[1:] in (["plain"], ["watched"]):
        child(sys.argv[1] == "watched")
    else:
        main()

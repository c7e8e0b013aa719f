"""How long it takes from the alarm to the printed report, by the size of the autograd graph: run it, read the table.

    python tests/benchmarks/alarm_to_report.py [NODES ...]

A stack of small residual blocks of linear layers. The one in the middle takes the logarithm of a negative number
("forward"), or the root of zero, whose derivative is infinite ("backward": the whole step is replayed). The step time
is that of the model without a watch; the alarm is the optimizer's call of `step`, the report is there when its text
is. The bound is 25 steps and a second. All times are CPU time on one thread, so that other work on the machine does
not count.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import Tensor, nn

import nantrace

SIZES = (600, 1200, 2400, 4800)
NODES_PER_BLOCK = 15
HEALTHY_STEPS = 3
PLAIN_STEPS = 20
REPEATS = 5
BOUND_STEPS, BOUND_SECONDS = 25, 1.0


class Block(nn.Module):
    """A residual block with layer norm; `fault` says in which pass it makes a NaN, if at all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.fault = ""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.down(nn.functional.gelu(self.up(self.norm(x))))
        match self.fault:
            case "forward":
                return x + torch.log(hidden - hidden.abs() - 1)
            case "backward":
                return x + torch.sqrt((hidden - hidden.detach()).square())
        return x + torch.log1p(hidden.square())


class Stack(nn.Module):
    """As many blocks as give about that many autograd nodes."""

    def __init__(self, nodes: int, width: int = 32) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width) for _ in range(max(1, nodes // NODES_PER_BLOCK))))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def nodes_behind(loss: Tensor) -> int:
    """How many nodes the loss's autograd graph has, those of the parameters included."""
    seen, stack = {loss.grad_fn}, [loss.grad_fn]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
    return len(seen)


def loss_of(model: nn.Module) -> Tensor:
    """The loss of a random batch."""
    return model(torch.randn(16, 32)).square().mean()


def step_time(model: nn.Module) -> float:
    """The median of plain steps, in seconds."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    taken = []
    for _ in range(PLAIN_STEPS):
        started = time.process_time()
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        taken.append(time.process_time() - started)
    return statistics.median(taken[3:])


def report_time(model: Stack, born: str) -> float:
    """Seconds from the call of the optimizer's step to the text of the report."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    block = model.blocks[len(model.blocks) // 2]
    started = 0.0
    try:
        with nantrace.watch(model):
            for step in range(HEALTHY_STEPS + 1):
                block.fault = born if step == HEALTHY_STEPS else ""
                optimizer.zero_grad()
                loss_of(model).backward()
                started = time.process_time()
                optimizer.step()
    except nantrace.NumericalAnomaly as anomaly:
        text, taken = str(anomaly), time.process_time() - started
        if anomaly.report.phase != born:
            raise RuntimeError(f"the wrong report:\n{text}") from anomaly
        return taken
    finally:
        block.fault = ""
    raise RuntimeError("no alarm was raised")


def line_through(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line."""
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, slope


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(
        f"{'born in':8} {'nodes':>6} {'step ms':>8} {'report ms':>10} {'worst ms':>9} {'in steps':>9} {'bound ms':>9}"
    )
    for born in ("forward", "backward"):
        points = []
        for size in [int(argument) for argument in sys.argv[1:]] or SIZES:
            torch.manual_seed(0)
            model = Stack(size)
            nodes, plain = nodes_behind(loss_of(model)), step_time(model)
            taken = sorted(report_time(model, born) for _ in range(REPEATS))
            middle, bound = statistics.median(taken), BOUND_STEPS * plain + BOUND_SECONDS
            points.append((nodes, middle))
            row = f"{born:8} {nodes:>6} {plain * 1e3:>8.1f} {middle * 1e3:>10.0f} {taken[-1] * 1e3:>9.0f}"
            held = "held" if taken[-1] <= bound else "MISSED"
            print(f"{row} {middle / plain:>9.1f} {bound * 1e3:>9.0f} {held}", flush=True)
        if len(points) > 1:
            start, slope = line_through(points)
            print(f"report = {start * 1e3:.0f} ms + {slope * 1e6:.0f} µs per node")


if __name__ == "__main__":
    main()

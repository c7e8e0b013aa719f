"""Whether anything grows while a model is watched: `python tests/benchmarks/growth.py`.

Trains 1,000 steps inside one watch and prints process memory, live tensors, tape length and hooks every 200 steps.
"""

from __future__ import annotations

import argparse
import gc

import torch
from torch.nn.modules import module as torch_module
from workloads import transformer

import nantrace


def resident() -> float:
    """The resident memory of this process in MiB (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def main() -> None:
    """Print one line every 200 steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = transformer("small Transformer", 200, 64, 4, 4, 4, 17)
    with nantrace.watch(work.model) as tracer:
        for step in range(arguments.steps + 1):
            work.step()
            if step % 200 == 0:
                gc.collect()
                tensors = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
                hooks = len(torch_module._global_forward_hooks)
                held = len(tracer.history)
                memory = resident()
                print(f"step {step:5}: {memory:7.1f} MiB, {tensors} tensors, {held} events, {hooks} hooks", flush=True)


if __name__ == "__main__":
    main()

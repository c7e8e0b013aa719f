"""What `apart` runs: one task from stdin, its result to stdout."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .memory import peak
from .overhead import paired_works

TASKS: Mapping[str, Callable[..., Any]] = {"paired_works": paired_works, "peak": peak}


def main() -> None:
    """Do the task. What a program prints meanwhile goes to stderr, so that stdout holds the result alone."""
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task, arguments = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(arguments["plan"].threads)
    result = TASKS[task](**arguments)
    with os.fdopen(answer, "wb") as stream:
        stream.write(pickle.dumps(result))


if __name__ == "__main__":
    main()

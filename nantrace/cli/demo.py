"""Train a small network on real images until it fails by itself, and explain why.

The program that is trained is copied into a folder as train.py, and the dump and the picture of the failure
are written beside it. Takes a few seconds; needs scikit-learn for its images (`pip install nantrace[demo]`).
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import NantraceError, NumericalAnomaly
from .graph import draw
from .printing import print_report


def prepare(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    parser.add_argument("--dir", metavar="FOLDER", default="nantrace-demo", help="where to write (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Train until it fails, explain, and show that the fix trains on."""
    if find_spec("sklearn") is None:
        raise NantraceError("the demo trains on the images that scikit-learn brings: pip install nantrace[demo]")
    folder = Path(options.dir)
    script = _script_in(folder)
    import torch

    torch.set_num_threads(1)  # so small a network is no faster with more, and a busy machine makes them wait
    torch.manual_seed(0)
    data, model = script.digits(), script.DigitNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=script.LEARNING_RATE)
    print(f"Training a small network on {len(data[0]):,} handwritten digits: {folder / 'train.py'}")
    anomaly = _train_until_it_fails(script, model, optimizer, data, folder)
    print()
    print_report(anomaly.report)
    print()
    _say_what_was_kept(script, model, data)
    dump = _newest_dump(folder)
    picture = draw(anomaly.report, str(folder / "graph.svg"))
    print(f"Wrote {dump} and {picture}.")
    print()
    _train_on_with_the_fix(script, model, optimizer, data, anomaly.report.step)
    print()
    print("Next, try:")
    print(f"  nantrace show {dump}")
    print(f"  nantrace graph {dump} -o {folder / 'graph.png'}")
    return 0


def _script_in(folder: Path) -> ModuleType:
    """The training program, copied into the folder and loaded from there: reports then name lines the user can open."""
    from .. import demo

    source = (Path(demo.__file__).parent / "train.py").read_text(encoding="utf-8")
    path = folder / "train.py"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != source:
            raise NantraceError(f"{path} is another program; remove it, or choose another folder with --dir")
        path.write_text(source, encoding="utf-8")
    except OSError as error:
        raise NantraceError(f"cannot write {path}: {error.strerror}; choose another folder with --dir") from error
    script = ModuleType("train")
    script.__file__ = str(path.resolve())
    exec(compile(source, script.__file__, "exec"), script.__dict__)
    return script


def _train_until_it_fails(script: ModuleType, model: Any, optimizer: Any, data: Any, folder: Path) -> NumericalAnomaly:
    try:
        script.train(model, optimizer, data, script.cross_entropy, dump_dir=str(folder))
    except NumericalAnomaly as anomaly:
        return anomaly
    raise NantraceError(f"the training did not fail on this machine in {script.STEPS} steps; please report that")


def _say_what_was_kept(script: ModuleType, model: Any, data: Any) -> None:
    import torch

    values = list(model.parameters())
    finite = sum(int(torch.isfinite(parameter).sum()) for parameter in values)
    total = sum(parameter.numel() for parameter in values)
    state = f"all {total:,} weights are finite" if finite == total else f"{total - finite:,} weights are NOT finite"
    print(f"Stopped in time: {state}, and test accuracy is {script.accuracy(model, data[1]):.1%}.")


def _train_on_with_the_fix(script: ModuleType, model: Any, optimizer: Any, data: Any, step: int) -> None:
    loss = script.train(model, optimizer, data, script.fixed_cross_entropy, range(step, script.STEPS))
    print(
        f"With the loss computed from the logits it trains on: {script.STEPS - step} steps more,"
        f" loss {loss:.4f}, test accuracy {script.accuracy(model, data[1]):.1%}."
    )


def _newest_dump(folder: Path) -> Path:
    dumps = sorted(folder.glob("*.nantrace"), key=lambda path: path.stat().st_mtime_ns)
    if not dumps:
        raise NantraceError(f"no dump was written to {folder}; see the warning above")
    return dumps[-1]

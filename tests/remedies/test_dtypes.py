"""Overflow and lost precision: the first remedy is an edit in place, was tried, and the edited program trains on."""

from __future__ import annotations

from pathlib import Path

import pytest

from .applying import in_place, report_of, trains_on, written
from .programs import of_parameter

LARGE = [300.0, 2.0]
HALF = "x = self.w.half()\n"
# name -> the parameter, the forward, the line that the first edit must put in place
OVERFLOWING = {
    "square": (LARGE, HALF + "y = x.pow(2)\nreturn y.float()", "y = x.float().pow(2)"),
    "sum": ([3e4] * 4, HALF + "y = x.sum()\nreturn y.float()", "y = x.float().sum()"),
    "mse_loss": (
        LARGE,
        HALF + "y = x.detach() - 300\nreturn F.mse_loss(x, y)",
        "return F.mse_loss(x.float(), y.float())",
    ),
    "product": (LARGE, HALF + "y = x * x\nreturn y.float()", "y = x.float() * x"),
    "cumsum": ([4e4, 4e4], HALF + "y = torch.cumsum(x, dim=0)\nreturn y.float()", "y = torch.cumsum(x.float(), dim=0)"),
    "cast": ([7e4, 1.0], "y = self.w.half()\nreturn y.float()", "y = self.w.clamp(-65504, 65504).half()"),
    "scale": ([95.0, 1.0], "s = self.w\nreturn torch.exp(s)", "return torch.exp(5 * torch.tanh(s / 5))"),
    "softmax by hand": (
        [95.0, 1.0],
        "e = torch.exp(self.w)\nreturn e / e.sum(dim=0) * e.detach().sign()",
        "e = torch.exp(self.w - self.w.amax(dim=0, keepdim=True))",
    ),
    "log-sum-exp by hand": (
        [95.0, 1.0],
        "return torch.log(torch.exp(self.w).sum(dim=0))",
        "return torch.logsumexp(self.w, dim=0)",
    ),
    "softplus by hand": (
        [95.0, 1.0],
        "return torch.log(1 + torch.exp(self.w))",
        "return torch.nn.functional.softplus(self.w)",
    ),
    "sigmoid by hand": ([-95.0, 1.0], "return 1 / (1 + torch.exp(-self.w))", "return torch.sigmoid(self.w)"),
    "sinh": ([95.0, 1.0], "return torch.sinh(self.w)", "return torch.sinh(self.w.clamp(-20, 20))"),
    "augmented": ([3e4, 1.0], HALF + "x = x * 1\nx *= 5\nreturn x.float()", "x = x.clamp(-6000, 6000) * 5"),
    "mask": (
        [-300.0, -300.0],
        HALF + "mask = torch.full_like(x, torch.finfo(x.dtype).min)\nx = x + mask\nreturn x.softmax(0).float()",
        "x = x + mask.clamp_min(-32752.0)",
    ),
}  # fmt: skip
LOST = {
    "eps beside a norm": ([0.0, 0.0], HALF + "y = x / (x.abs() + 1e-8)\nreturn y.float()", "y = x / (x.abs() + 1e-3)"),
    "eps under a root": (
        [0.0, 0.0],
        HALF + "y = x / torch.sqrt(x * x + 1e-12)\nreturn y.float()",
        "y = x / torch.sqrt(x * x + 1e-4)",
    ),
    "eps in a logarithm": (
        [0.0, 1.0],
        HALF + "y = torch.log(x.relu() + 1e-8)\nreturn y.float()",
        "y = torch.log(x.relu() + 1e-4)",
    ),
    "eps next to 1": (
        [100.0, 1.0],
        "p = torch.sigmoid(self.w).clamp(1e-8, 1 - 1e-8)\nreturn torch.log(1 - p)",
        "p = torch.sigmoid(self.w).clamp(1e-8, 1 - 1e-6)",
    ),
    "underflow before a division": (
        [30.0, 30.5],
        HALF + "e = torch.exp(-x)\nw = e / e.sum(dim=0)\nreturn w.float()",
        "e = torch.exp((-x) - (-x).amax(dim=0, keepdim=True))",
    ),
}


@pytest.mark.parametrize(
    ("cause", "program"),
    [*(("overflow", one) for one in OVERFLOWING.values()), *(("precision", one) for one in LOST.values())],
    ids=[*OVERFLOWING, *LOST],
)
def test_the_first_remedy_is_an_edit_that_helps(
    cause: str, program: tuple[list[float], str, str], tmp_path: Path
) -> None:
    """It was tried with success, it reads as an engineer would write it, and the program trains on with it."""
    w, forward, expected = program
    path = written(tmp_path, of_parameter(w, forward))
    report = report_of(path)
    first = report.remedies[0]

    assert (report.cause, first.code, first.verified) == (cause, expected, True)
    assert len(trains_on(path, first)) == 4


@pytest.mark.parametrize("program", [*OVERFLOWING.values(), *LOST.values()], ids=[*OVERFLOWING, *LOST])
def test_no_edit_that_counts_as_verified_fails(program: tuple[list[float], str, str], tmp_path: Path) -> None:
    """What a trial found finite is finite in the edited program too, for every edit that is offered."""
    path = written(tmp_path, of_parameter(program[0], program[1]))

    edits = [remedy for remedy in in_place(report_of(path)) if remedy.verified]
    assert edits
    for remedy in edits:
        assert trains_on(path, remedy)


def test_the_wider_dtype_is_named_with_its_headroom(tmp_path: Path) -> None:
    """300 ** 2 = 90000 in float16: float32 ends 3.8e33 times further, and bfloat16 where float32 does."""
    report = report_of(written(tmp_path, of_parameter(*OVERFLOWING["square"][:2])))

    assert "float32 would have held it with a factor of 3.8e+33 to spare; bfloat16 too" in report.evidence


def test_a_value_that_no_dtype_holds_is_said_to_be_so(tmp_path: Path) -> None:
    """exp(1000) = 2e434 is past float64."""
    report = report_of(written(tmp_path, of_parameter([1000.0], "return torch.exp(self.w)")))

    assert "a wider dtype does not help: the value is 2.0e+434 (float64 ends at 1.8e+308)" in report.evidence


AUTOCAST = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(1, 4)
        with torch.no_grad():
            self.up.weight.fill_(200.0)

    def forward(self, x):
        return self.up(x).softmax(-1)


def make():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(i):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            out = model(torch.full((2, 1), 1000.0))
        loss = out.float().square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, step, 3
"""


def test_a_module_under_autocast_is_run_outside_of_it(tmp_path: Path) -> None:
    """The line stands in a block without autocast, with its operand in float32; a return stays a return."""
    path = written(tmp_path, AUTOCAST)
    first = report_of(path).remedies[0]

    assert first.code == 'with torch.autocast("cpu", enabled=False):\n    return self.up(x.float()).softmax(-1)'
    assert first.verified is True
    assert trains_on(path, first)

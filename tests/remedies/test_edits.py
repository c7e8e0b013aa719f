"""The first remedy is an edit of the failing line (or of the line where it belongs), and training goes on with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nantrace.diagnosis import changes_to_try

from .applying import report_of, trains_on, written
from .programs import of_parameter

INF = "float('inf')"

# What the parameter holds, the forward, the first remedy's code, and what trying it changes.
EDITS = [
    # logarithms
    ("log", [0.0, 1.0], "return torch.log(self.w)", "return torch.log(self.w.clamp_min(1e-8))", "clamp"),
    (
        "log, a method",
        [0.0, 1.0],
        "return -self.w.log().mean()",
        "return -self.w.clamp_min(1e-8).log().mean()",
        "clamp",
    ),
    (
        "log of a difference",
        [1.0],
        "return torch.log(1 - self.w)",
        "return torch.log((1 - self.w).clamp_min(1e-8))",
        "clamp",
    ),
    ("log1p", [-1.0, 1.0], "return torch.log1p(self.w)", "return torch.log1p(self.w.clamp_min(-1 + 1e-6))", "clamp"),
    (
        "xlogy",
        [0.5, 2.0],
        "return torch.xlogy(1, self.w - 0.5)",
        "return torch.xlogy(1, (self.w - 0.5).clamp_min(1e-8))",
        "clamp",
    ),
    ("logit", [1.0, 0.5], "return self.w.logit()", "return self.w.clamp(1e-6, 1 - 1e-6).logit()", "clamp"),
    (
        "log of softmax",
        [[200.0, 0.0]],
        "return -torch.log(torch.softmax(self.w, dim=-1))[:, 1]",
        "return -torch.log_softmax(self.w, dim=-1)[:, 1]",
        "fused",
    ),
    (
        "log of softmax, methods",
        [[200.0, 0.0]],
        "return -self.w.softmax(-1).log()[:, 1]",
        "return -self.w.log_softmax(-1)[:, 1]",
        "fused",
    ),
    (
        "log of a softmax above",
        [[200.0, 0.0]],
        "p = F.softmax(self.w * 2, dim=1)\nnll = -p.log()\nreturn nll[:, 1]",
        "nll = -F.log_softmax(self.w * 2, dim=1)",
        "fused",
    ),
    (
        "log of sigmoid",
        [-200.0, 1.0],
        "return -torch.log(torch.sigmoid(self.w))",
        "return -torch.nn.functional.logsigmoid(self.w)",
        "fused",
    ),
    (
        "log of one minus sigmoid",
        [200.0, 1.0],
        "p = self.w.sigmoid()\nreturn -torch.log(1 - p)",
        "return -torch.nn.functional.logsigmoid(-self.w)",
        "fused",
    ),
    (
        "log of a sum of exponentials",
        [[-200.0, -300.0]],
        "return torch.log(torch.exp(self.w).sum(-1))",
        "return self.w.logsumexp(-1)",
        "fused",
    ),
    # divisions
    (
        "x / |x|",
        [[0.0, 0.0], [1.0, 2.0]],
        "s = self.w.abs().sum(-1, keepdim=True)\nreturn (self.w / s)[:, 0]",
        "return (self.w / s.clamp_min(1e-8))[:, 0]",
        "clamp",
    ),
    (
        "a count",
        [1.0, 2.0],
        "m = self.w > 5\nreturn (self.w * m).sum() / m.sum()",
        "return (self.w * m).sum() / m.sum().clamp_min(1)",
        "clamp",
    ),
    (
        "a Python count",
        [1.0, 2.0],
        "kept = []\nreturn self.w.sum() / len(kept)",
        "return self.w.sum() / max(len(kept), 1)",
        "argument",
    ),
    (
        "both signs",
        [0.0, -1.0, 2.0],
        "y = self.w * 3\nreturn torch.ones(3) / y",
        "return torch.ones(3) / y.where(y != 0, 1e-8)",
        "nonzero",
    ),
    (
        "both signs, an expression",
        [0.0, -1.0],
        "return torch.ones(2) / torch.sin(self.w)",
        "operand = torch.sin(self.w)\nreturn torch.ones(2) / operand.where(operand != 0, 1e-8)",
        "nonzero",
    ),
    (
        "in place",
        [[0.0, 0.0], [1.0, 2.0]],
        "x = self.w * 1\nx /= x.sum(-1, keepdim=True)\nreturn x[:, 0]",
        "x /= x.sum(-1, keepdim=True).clamp_min(1e-8)",
        "clamp",
    ),
    ("one over", [0.0, 2.0], "return 1 / self.w.abs()", "return 1 / self.w.abs().clamp_min(1e-8)", "clamp"),
    (
        "rsqrt",
        [[0.0, 0.0]],
        "return torch.rsqrt(self.w.pow(2).mean(-1))",
        "return torch.rsqrt(self.w.pow(2).mean(-1).clamp_min(1e-8))",
        "clamp",
    ),
    (
        "negative power",
        [0.0, 2.0],
        "return self.w.abs() ** -0.5",
        "return self.w.abs().clamp_min(1e-8) ** -0.5",
        "clamp",
    ),
    (
        "a root below",
        [[2.0, 2.0], [1.0, 2.0]],
        "x = self.w - self.w.mean(1, keepdim=True)\nsd = x.pow(2).mean(1, keepdim=True).sqrt()\nreturn (x / sd)[:, 0]",
        "sd = x.pow(2).mean(1, keepdim=True).clamp_min(1e-8).sqrt()",
        "clamp",
    ),
    (
        "normalize without eps",
        [[0.0, 0.0], [1.0, 2.0]],
        "return F.normalize(self.w, dim=-1, eps=0.0)[:, 0]",
        "return F.normalize(self.w, dim=-1, eps=1e-6)[:, 0]",
        "argument",
    ),
    (
        "layer_norm without eps",
        [[2.0, 2.0], [1.0, 2.0]],
        "return F.layer_norm(self.w, (2,), eps=0.0)[:, 0]",
        "return F.layer_norm(self.w, (2,), eps=1e-5)[:, 0]",
        "argument",
    ),
    # domains
    ("sqrt", [-1.0, 2.0], "return torch.sqrt(self.w)", "return torch.sqrt(self.w.clamp_min(1e-8))", "clamp"),
    ("pow", [-1.0, 2.0], "return self.w ** 0.5", "return self.w.clamp_min(1e-8) ** 0.5", "clamp"),
    (
        "acos",
        [1.2, 0.5],
        "return torch.arccos(self.w)",
        "return torch.arccos(self.w.clamp(-1 + 1e-6, 1 - 1e-6))",
        "clamp",
    ),
    ("acosh", [0.5, 2.0], "return self.w.acosh()", "return self.w.clamp_min(1 + 1e-6).acosh()", "clamp"),
    ("lgamma", [0.0, 2.0], "return torch.lgamma(self.w)", "return torch.lgamma(self.w.clamp_min(1e-6))", "clamp"),
    (
        "polygamma",
        [0.0, 2.0],
        "return torch.polygamma(1, self.w)",
        "return torch.polygamma(1, self.w.clamp_min(1e-6))",
        "clamp",
    ),
    # derivatives
    (
        "sqrt at 0",
        [[0.0, 0.0]],
        "return self.w.pow(2).sum(-1).sqrt()",
        "return self.w.pow(2).sum(-1).clamp_min(1e-12).sqrt()",
        "clamp",
    ),
    ("power below 1 at 0", [0.0, 2.0], "return self.w ** 0.5", "return self.w.clamp_min(1e-8) ** 0.5", "clamp"),
    (
        "acos at 1, clamped",
        [1.0, 0.5],
        "return torch.acos(torch.clamp(self.w, -1.0, 1.0))",
        "return torch.acos(self.w.clamp(-1 + 1e-6, 1 - 1e-6))",
        "clamp",
    ),
    (
        "sqrt of what is clamped at 0",
        [0.0, 0.5],
        "return self.w.clamp(min=0).sqrt()",
        "return self.w.clamp_min(1e-12).sqrt()",
        "clamp",
    ),
    (
        "xlogy at 0",
        [0.0, 2.0],
        "p = self.w\nreturn torch.xlogy(p, p)",
        "return torch.xlogy(p, p.clamp_min(1e-8))",
        "clamp",
    ),
    (
        "hypot at 0",
        [0.0, 2.0],
        "return torch.hypot(self.w, torch.zeros(2))",
        "return torch.hypot(self.w.where(self.w != 0, 1e-8), torch.zeros(2))",
        "nonzero",
    ),
    (
        "equal eigenvalues",
        [[1.0, 0.0], [0.0, 1.0]],
        "v = torch.linalg.eigh(self.w)[1]\nreturn v[0, 1]",
        "v = torch.linalg.eigh(self.w + 1e-4 * self.w.new_ones(self.w.shape[-1]).cumsum(0).diag())[1]",
        "spread",
    ),
    # masks
    (
        "where",
        [0.0, 2.0],
        "return torch.where(self.w > 0, torch.sqrt(self.w), 0.0)",
        "return torch.where(self.w > 0, torch.sqrt(torch.where(self.w > 0, self.w, 1.0)), 0.0)",
        "fill",
    ),
    (
        "where, the other branch",
        [0.0, 2.0],
        "x = self.w\nreturn torch.where(x == 0, torch.ones(2), torch.sin(x) / x)",
        "return torch.where(x == 0, torch.ones(2), torch.sin(x) / torch.where(x == 0, 1.0, x))",
        "nonzero",
    ),
    (
        "where below",
        [0.0, 2.0],
        "s = torch.sqrt(self.w)\nreturn torch.where(self.w > 0, s, torch.zeros(2))",
        "s = torch.sqrt(self.w.where(self.w > 0, 1.0))",
        "fill",
    ),
    (
        "where hides an overflow",
        [100.0, 2.0],
        "x = self.w\nreturn torch.where(x > 50, x, torch.log1p(torch.exp(x)))",
        "return torch.where(x > 50, x, torch.log1p(torch.exp(torch.where(x > 50, 0.0, x))))",
        "fill",
    ),
    (
        "rows that are all masked",
        [[1.0, 2.0]],
        f"z = self.w.masked_fill(torch.tensor([True, True]), -{INF})\nreturn torch.softmax(z, dim=-1)[:, 0]",
        "return torch.softmax(z.masked_fill(z.isneginf().all(-1, keepdim=True), 0.0), dim=-1)[:, 0]",
        "unmask",
    ),
    (
        "the same by hand",
        [[1.0, 2.0]],
        f"z = self.w.masked_fill(torch.tensor([True, True]), -{INF})\n"
        "e = torch.exp(z - z.amax(-1, keepdim=True))\nreturn (e / e.sum(-1, keepdim=True))[:, 0]",
        "z = z.masked_fill(z.isneginf().all(-1, keepdim=True), 0.0)\ne = torch.exp(z - z.amax(-1, keepdim=True))",
        "unmask",
    ),
    (
        "0 * inf",
        [1.0, 2.0],
        f"z = self.w.masked_fill(torch.tensor([True, False]), -{INF})\np = torch.tensor([0.0, 1.0])\nreturn p * z",
        "return p * z.masked_fill(p == 0, 0.0)",
        "where-zero",
    ),
    (
        "inf - inf",
        [1.0, 2.0],
        f"a = self.w.masked_fill(torch.tensor([True, False]), -{INF})\nreturn a - a.detach()",
        "return a.clamp_min(-1e4) - a.detach().clamp_min(-1e4)",
        "clamp",
    ),
    (
        "logsumexp of -inf",
        [[1.0, 2.0]],
        f"z = self.w.masked_fill(torch.tensor([True, True]), -{INF})\nreturn torch.logsumexp(z, -1)",
        "return torch.logsumexp(z.clamp_min(-1e4), -1)",
        "clamp",
    ),
    # nothing to reduce
    (
        "mean of nothing",
        [1.0, 2.0],
        "x = self.w[self.w > 5]\nreturn x.mean()",
        "return (x.mean() if x.numel() else x.sum())",
        "zero",
    ),
    (
        "mean of nothing along a dimension",
        [[1.0], [2.0]],
        "x = self.w[self.w[:, 0] > 5]\nreturn x.mean(0)",
        "return x.sum(0) / max(x.shape[0], 1)",
        "zero",
    ),
    (
        "a loss of nothing",
        [1.0, 2.0],
        "criterion = nn.MSELoss()\nm = self.w > 7\nreturn criterion(self.w[m], torch.ones(2)[m])",
        "return (criterion(self.w[m], torch.ones(2)[m]) if self.w[m].numel() else self.w[m].sum())",
        "zero",
    ),
    (
        "every label ignored",
        [[1.0, 2.0]],
        "y = torch.tensor([-100])\nreturn F.cross_entropy(self.w, y)",
        'return F.cross_entropy(self.w, y, reduction="sum") / (y != -100).sum().clamp_min(1)',
        "zero",
    ),
    (
        "every label ignored, a module",
        [[1.0, 2.0]],
        "criterion = nn.CrossEntropyLoss(ignore_index=0)\ny = torch.tensor([0])\nreturn criterion(self.w, y)",
        "return (criterion(self.w, y) if (y != 0).any() else self.w.sum() * 0.0)",
        "zero",
    ),
    (
        "deviation of one",
        [[1.0], [2.0]],
        "return self.w.std(dim=1)",
        "return self.w.std(dim=1, correction=0)",
        "zero",
    ),
    (
        "deviation of one, unbiased",
        [[1.0], [2.0]],
        "return self.w.var(dim=1, unbiased=True)",
        "return self.w.var(dim=1, unbiased=False)",
        "zero",
    ),
    # linear algebra, alignments
    (
        "inverse",
        [[1.0, 0.0], [0.0, 0.0]],
        "a = self.w @ self.w.T\nreturn torch.linalg.inv(a).sum() * 1e-6",
        "return torch.linalg.inv(a + 0.0003 * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)).sum() * 1e-6",
        "jitter",
    ),
    (
        "ctc",
        [[[0.1, 0.2]], [[0.1, 0.2]]],
        "p = self.w.log_softmax(-1)\nreturn F.ctc_loss(p, torch.tensor([[1, 1]]), (2,), (2,))",
        "return F.ctc_loss(p, torch.tensor([[1, 1]]), (2,), (2,), zero_infinity=True)",
        "zero",
    ),
]


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize(("w", "forward", "code", "act"), [pytest.param(*row[1:], id=row[0]) for row in EDITS])
def test_the_first_remedy_is_an_edit_that_trains_on(
    tmp_path: Path, w: object, forward: str, code: str, act: str
) -> None:
    """The line is written anew with the program's own names, and the change to try says the same."""
    path = written(tmp_path, of_parameter(w, forward))
    report = report_of(path)
    remedy = report.remedies[0]
    # What torch itself refused with an exception has no step to try a change in.
    tried = report.snapshot.symptom.kind != "exception"

    assert report.confidence in ("certain", "likely")
    assert remedy.code == code
    assert remedy.change is not None and remedy.change.act == act
    assert remedy.change == changes_to_try(report.snapshot)[0]
    assert remedy.verified is (True if tried else None)
    assert trains_on(path, remedy)


ELSEWHERE = {
    "the op stands in a library, its operand is a parameter": (
        "d = torch.distributions.Normal(torch.zeros(2), self.w, validate_args=False)\nreturn d.log_prob(torch.ones(2))",
        [],
    ),
    "the operand is written to": ("x = self.w * 1\nreturn x.log_()", ["x = (self.w * 1).clamp_min(1e-8)"]),
    "one of two": (
        "return torch.log(self.w) + torch.log(self.w * 1)",
        ["return torch.log(self.w.clamp_min(1e-8)) + torch.log(self.w * 1)"],
    ),
}


@pytest.mark.parametrize(("forward", "edits"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_line_that_could_be_spoiled_is_left_alone(tmp_path: Path, forward: str, edits: list[str]) -> None:
    """An edit is complete and right, in this line or in the one that made the operand, or there is none."""
    report = report_of(written(tmp_path, of_parameter([0.0, 1.0], forward)))

    assert [remedy.code for remedy in report.remedies if remedy.replaces is not None] == edits


def test_what_stands_between_two_fused_ops_stays_in_the_edit(tmp_path: Path) -> None:
    """Choosing from the probabilities becomes choosing from their logarithms; tried as such, it is the better
    advice."""
    forward = "p = F.softmax(self.w, dim=-1)\nreturn -p.gather(1, torch.tensor([[1]])).log()"
    path = written(tmp_path, of_parameter([[200.0, 0.0]], forward))
    fused, clamp = report_of(path).remedies

    assert (fused.verified, clamp.verified) == (True, True)
    assert fused.code == "return -F.log_softmax(self.w, dim=-1).gather(1, torch.tensor([[1]]))"
    assert trains_on(path, fused)

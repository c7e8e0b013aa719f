"""Composite functions: the report says which part failed, at which numbers, and is certain only where they prove it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nantrace import Cause

from .applying import report_of, trains_on, written
from .programs import of_parameter

INF = "float('inf')"

# What the parameter holds, the forward, the cause, how sure it is, and a sentence of the evidence.
PARTS = [
    (
        "normalize",
        [[0.0, 0.0], [1.0, 2.0]],
        "return F.normalize(self.w, dim=-1, eps=0.0)[:, 0]",
        (Cause.ZERO_DIVISION, "certain", "out[0, 0] = 0 / 0 = nan"),
    ),
    (
        "cosine similarity",
        [[0.0, 0.0], [1.0, 2.0]],
        "return F.cosine_similarity(self.w, torch.ones(2, 2), eps=0.0)",
        (Cause.ZERO_DIVISION, "certain", "out[0, 0] = 0 / 0 = nan"),
    ),
    (
        "gaussian_nll",
        [0.0, 1.0],
        "return F.gaussian_nll_loss(torch.zeros(2), torch.ones(2), self.w.abs(), eps=0.0)",
        (Cause.LOG_DOMAIN, "certain", "out[0] = log(0) = -inf"),
    ),
    (
        "rms_norm",
        [[0.0, 0.0], [1.0, 2.0]],
        "return F.rms_norm(self.w, (2,), eps=0.0)[:, 0]",
        (Cause.ZERO_DIVISION, "certain", "out[0, 0] = 1 / sqrt(0) = inf"),
    ),
    (
        "ctc, too long",
        [[[0.1, 0.2, 0.3]], [[0.1, 0.2, 0.3]]],
        "p = self.w.log_softmax(-1)\n"
        "return F.ctc_loss(p, torch.tensor([[1, 2, 1]]), torch.tensor([2]), torch.tensor([3]))",
        (Cause.BAD_LABEL, "certain", "sample 0 has 3 labels for 2 frames: no alignment exists"),
    ),
    (
        "ctc, a repeated label",
        [[[0.1, 0.2, 0.3]], [[0.1, 0.2, 0.3]]],
        "p = self.w.log_softmax(-1)\nreturn F.ctc_loss(p, torch.tensor([[1, 1]]), (2,), (2,))",
        (
            Cause.BAD_LABEL,
            "certain",
            "2 labels of which 1 repeat the one before, so it needs 3 frames and has 2: no alignment exists",
        ),
    ),
    (
        "inverse",
        [[1.0, 2.0], [2.0, 4.0]],
        "return torch.linalg.inv(self.w)",
        (
            Cause.DOMAIN,
            "certain",
            "self.w is singular: elimination met a pivot of exactly 0 in column 2: float32[2, 2], 1 .. 4",
        ),
    ),
    (
        "triangular solve",
        [[0.0, 0.0], [2.0, 4.0]],
        "return torch.linalg.solve_triangular(self.w, torch.ones(2, 1), upper=False)",
        (Cause.DOMAIN, "certain", "self.w is singular: its diagonal is 0 at [0, 0]: float32[2, 2], 0 .. 4"),
    ),
    (
        "cholesky",
        [[1.0, 2.0], [2.0, 1.0]],
        "return torch.linalg.cholesky(self.w)",
        (Cause.DOMAIN, "likely", "not positive-definite"),
    ),
    (
        "logdet of a singular matrix",
        [[0.0, 0.0], [0.0, 1.0]],
        "return torch.logdet(self.w)",
        (Cause.LOG_DOMAIN, "certain", "the determinant is zero, so the matrix is singular"),
    ),
    (
        "logdet of a negative determinant",
        [[-1.0, 0.0], [0.0, 1.0]],
        "return torch.logdet(self.w)",
        (Cause.LOG_DOMAIN, "certain", "the determinant of self.w is negative, and a negative number has no logarithm"),
    ),
    (
        "logsumexp of nothing",
        [[1.0, 2.0]],
        f"z = self.w.masked_fill(torch.tensor([True, True]), -{INF})\nreturn torch.logsumexp(z, -1)",
        (Cause.INF_ARITHMETIC, "certain", "logsumexp reads 2 values that are all -inf, so it is -inf"),
    ),
    (
        "a distribution's scale",
        [0.0, 1.0],
        "scale = self.w.abs()\n"
        "d = torch.distributions.Normal(torch.zeros(2), scale, validate_args=False)\nreturn d.log_prob(torch.ones(2))",
        (Cause.LOG_DOMAIN, "certain", "the operand was made by abs in `scale = self.w.abs()`"),
    ),
    (
        "a geometric mean",
        [0.0, 2.0],
        "return self.w.log().mean().exp()",
        (Cause.LOG_DOMAIN, "likely", "exp in `return self.w.log().mean().exp()` made a finite one of it again"),
    ),
    (
        "a branch that where hides",
        [0.0, 2.0],
        "x = self.w\nreturn torch.where(x > 0, x * torch.log(x), torch.zeros(2))",
        (Cause.MASKED_GRADIENT, "certain", "takes that value out again, so the loss is finite; but log is"),
    ),
    (
        "weights of 0",
        [[1.0, 2.0]],
        "c = torch.tensor([1.0, 0.0])\nreturn F.cross_entropy(self.w, torch.tensor([1]), weight=c)",
        (Cause.EMPTY_REDUCTION, "certain", "the labels that count have total weight 0, so the mean over 1 labels"),
    ),
]


@pytest.mark.parametrize(("w", "forward", "expected"), [pytest.param(*row[1:], id=row[0]) for row in PARTS])
def test_the_part_that_failed_is_named(
    tmp_path: Path, w: object, forward: str, expected: tuple[Cause, str, str]
) -> None:
    """The cause is that of the part, its evidence holds the numbers, and there is something to change."""
    report = report_of(written(tmp_path, of_parameter(w, forward)))
    cause, confidence, sentence = expected

    assert (report.cause, report.confidence) == (cause, confidence)
    assert sentence in " | ".join(report.evidence)
    assert report.remedies


MADE_EARLIER = {
    "a distribution's scale": (
        "scale = self.w.abs()\n"
        "d = torch.distributions.Normal(torch.zeros(2), scale, validate_args=False)\nreturn -d.log_prob(torch.ones(2))",
        "scale = self.w.abs().clamp_min(1e-3)",
    ),
    "both sides of a probability": (
        "p = torch.sigmoid((self.w - 0.5) * 1e3)\nreturn -(torch.log(p) + torch.log(1 - p)).mean()",
        "p = torch.sigmoid((self.w - 0.5) * 1e3).clamp(1e-6, 1 - 1e-6)",
    ),
}


@pytest.mark.parametrize(("forward", "code"), MADE_EARLIER.values(), ids=MADE_EARLIER)
def test_what_fails_twice_is_mended_where_it_is_made(tmp_path: Path, forward: str, code: str) -> None:
    """An operand that a library, or a second logarithm, reads too is bounded in the line that gives it its value."""
    path = written(tmp_path, of_parameter([0.0, 1.0], forward))
    remedy = report_of(path).remedies[0]

    assert (remedy.code, remedy.verified) == (code, True)
    assert trains_on(path, remedy)

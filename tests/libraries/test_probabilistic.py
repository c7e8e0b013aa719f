"""Differential equations, sequences, processes, distributions (torchdiffeq, torchcrf, gpytorch, pyro)."""

from __future__ import annotations

import torch
from torch import nn

from ..builders import Program
from .training import expected, library, report_of, told

torchdiffeq = library("torchdiffeq")
torchcrf = library("torchcrf")
gpytorch = library("gpytorch")
pyro = library("pyro.distributions")


def test_a_stiff_equation() -> None:
    """rtqichen/torchdiffeq#149 "The NaN problems": the output of rk4 is suddenly NaN.

    The third stage is still finite; the step that it takes is not.
    """
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.15e12)

    report = report_of(
        model,
        lambda end: torchdiffeq.odeint(lambda t, y: model(y), torch.ones(1, 1), torch.tensor([0.0, end]), method="rk4")[
            -1
        ].sum(),
        [10.0],
    )

    assert told(report) == expected(
        phase="loss",
        op="mul",
        module=None,
        file="torchdiffeq/_impl/rk_common.py",
        code="k4 = func(t1, y0 + dt * (k1 - k2 + k3), perturb=Perturb.PREV if perturb else Perturb.NONE)",
        cause="overflow",
    )


def test_a_forbidden_transition_in_the_padding() -> None:
    """kmkurn/pytorch-crf#90 "Should I manually set the transition probability to zero where O->I in NER task?"

    "A large negative number (say -1e9)", says the answer. With -inf it is -inf * 0 where the sequence is padded: a
    value of the parameter, read by `self.transitions[...]`.
    """
    crf = torchcrf.CRF(3, batch_first=True)
    with torch.no_grad():
        crf.transitions[1, 0] = -torch.inf
    model = nn.Linear(4, 3)
    x, tags = torch.randn(1, 3, 4), torch.tensor([[2, 1, 0]])
    mask = torch.tensor([[True, True, False]])

    report = report_of(model, lambda x: -crf(model(x), tags, mask), [x], also_watched=(crf,))

    assert told(report) == expected(
        phase="parameters",
        op="index",
        module="",
        file="torchcrf/__init__.py",
        code="score += self.transitions[tags[i - 1], tags[i]] * mask[i]",
        cause="bad-parameter",
    )
    assert report.snapshot.source_value.name == "transitions"


def test_a_length_scale_of_zero() -> None:
    """meta-pytorch/botorch#160 "Convergence issues when fitting simple GPs with scipy".

    softplus(-391) is zero, "to machine precision". gpytorch calls `forward` without `nn.Module.__call__`, inside a
    Function of its own: all of it is code of the loss.
    """
    model = gpytorch.kernels.MaternKernel(nu=2.5)
    with torch.no_grad():
        model.raw_lengthscale.fill_(-391.0)
    x, y = torch.randn(4, 2), torch.randn(4)

    report = report_of(model, lambda x: -(y @ model(x).to_dense() @ y), [x])

    assert told(report) == expected(
        phase="loss",
        op="div",
        module=None,
        file="gpytorch/functions/matern_covariance.py",
        code="x1_ = (x1 - mean).div(lengthscale)",
        cause="zero-division",
    )


def test_a_zero_that_the_base_distribution_does_not_have() -> None:
    """pyro-ppl/pyro#3228 "Updated ZeroInflatedDistribution Class".

    "Otherwise `self.base_dist.log_prob(value)` returns `inf`", for values whose support begins above zero. The
    logarithm of the zero is inside torch's transform: the line is the one that asked for it.
    """
    model = Program(lambda w: w, [0.5, 1.0])
    counts = torch.tensor([1.0, 2.0, 0.0])

    def loss(values: torch.Tensor) -> torch.Tensor:
        loc, scale = model()
        base = pyro.LogNormal(loc, scale, validate_args=False)
        inflated = pyro.ZeroInflatedDistribution(base, gate=torch.tensor(0.3), validate_args=False)
        return -inflated.log_prob(values).mean()

    report = report_of(model, loss, [counts[:2], counts])

    assert told(report) == expected(
        step=1,
        phase="loss",
        op="log",
        module=None,
        file="pyro/distributions/zero_inflated.py",
        code="log_prob = (-gate).log1p() + self.base_dist.log_prob(value)",
        cause="log-domain",
    )

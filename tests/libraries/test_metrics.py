"""Metrics used as losses, metric learning (torchmetrics, pytorch_metric_learning)."""

from __future__ import annotations

import torch
from torch import nn

from .training import expected, library, report_of, told

regression = library("torchmetrics.functional.regression")
losses = library("pytorch_metric_learning.losses")


def test_a_large_residual() -> None:
    """Lightning-AI/torchmetrics#3488 "LogCoshError returns inf for finite large residuals"."""
    model = nn.Linear(2, 1)
    x = torch.randn(4, 2)

    report = report_of(
        model,
        lambda target: regression.log_cosh_error(model(x).squeeze(1), target),
        [torch.zeros(4), torch.tensor([0.0, 0.0, 1000.0, 0.0])],
    )

    assert told(report) == expected(
        step=1,
        phase="loss",
        op="exp",
        module=None,
        file="torchmetrics/functional/regression/log_cosh.py",
        code="sum_log_cosh_error = torch.log((torch.exp(diff) + torch.exp(-diff)) / 2).sum(0).squeeze()",
        cause="overflow",
    )


def test_an_embedding_that_is_its_class_centre() -> None:
    """KevinMusgrave/pytorch-metric-learning#209 "ArcFaceLoss parameters become nan after several epochs".

    The cosine is clamped to [-1, 1], but acos has no derivative at the ends either.
    """
    model = nn.Linear(3, 3, bias=False)
    nn.init.eye_(model.weight)
    arcface = losses.ArcFaceLoss(num_classes=3, embedding_size=3)
    with torch.no_grad():
        arcface.W.copy_(torch.eye(3))

    report = report_of(model, lambda x: arcface(model(x), torch.tensor([0, 1])), [torch.eye(3)[:2]])

    assert told(report) == expected(
        phase="backward",
        op="acos",
        module=None,
        file="pytorch_metric_learning/losses/large_margin_softmax_loss.py",
        code="angles = torch.acos(torch.clamp(cosine_of_target_classes, -1, 1))",
        cause="singular-gradient",
    )

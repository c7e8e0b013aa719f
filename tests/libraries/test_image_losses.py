"""Losses on images and boxes (piq, torchmetrics, torchvision)."""

from __future__ import annotations

import torch
from torch import nn

from ..builders import Program
from .training import expected, library, report_of, told

piq = library("piq")
metrics = library("torchmetrics.functional.image")
boxes = library("torchvision.ops")


def test_the_gradient_map_of_a_constant_image() -> None:
    """photosynthesis-team/piq#308 "GMSD produced NaN gradient".

    `detect_anomaly` blamed PowBackward0 in that report; the infinity is born in the sqrt of zero.
    """
    model = Program(
        lambda w, i: torch.sigmoid(w[i : i + 1]), torch.stack([torch.randn(3, 16, 16), torch.zeros(3, 16, 16)])
    )
    loss = piq.GMSDLoss()
    target = torch.rand(1, 3, 16, 16)

    report = report_of(model, lambda i: loss(target, model(i)), [0, 1])

    assert told(report) == expected(
        step=1,
        phase="backward",
        op="sqrt",
        module=None,
        file="piq/functional/base.py",
        code="return torch.sqrt(torch.sum(grads ** 2, dim=-3, keepdim=True))",
        cause="singular-gradient",
    )
    assert report.origin.autograd_node == "SqrtBackward0"


def test_one_black_pixel() -> None:
    """Lightning-AI/torchmetrics#3322 "`spectral_angle_mapper` NaNs even with one zero pixel"."""
    model = nn.Conv2d(3, 3, 1, bias=False)
    clean, target = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    black = clean.clone()
    black[:, :, 2, 1] = 0

    report = report_of(model, lambda x: metrics.spectral_angle_mapper(model(x), target), [clean, black])

    assert told(report) == expected(
        step=1,
        phase="loss",
        op="div",
        module=None,
        file="torchmetrics/functional/image/sam.py",
        code="sam_score = torch.clamp(dot_product / (preds_norm * target_norm), -1, 1).acos()",
        cause="zero-division",
    )


def test_a_box_without_height() -> None:
    """Zzh-tju/DIoU-pytorch-detectron#19 "Got Nan": CIoU of a predicted box with y1 = y2.

    The ratio of the sides is divided by zero; atan makes a finite value of the infinity in forward, and backward
    does not.
    """
    model = Program(
        lambda w, i: w[i : i + 1],
        torch.tensor([[200.0, 500.0, 300.0, 599.0], [200.0, 599.0, 300.0, 599.0]]),
    )
    truth = torch.tensor([[200.0, 500.0, 300.0, 600.0]])

    report = report_of(model, lambda i: boxes.complete_box_iou_loss(model(i), truth, reduction="mean"), [0, 1])

    assert told(report) == expected(
        step=1,
        phase="backward",
        op="div",
        module=None,
        file="torchvision/ops/ciou_loss.py",
        code="v = (4 / (torch.pi**2)) * torch.pow((torch.atan(w_gt / h_gt) - torch.atan(w_pred / h_pred)), 2)",
        cause="zero-division",
    )

"""Losses of segmentation and multi-label classification (segmentation_models_pytorch, MONAI, timm)."""

from __future__ import annotations

import torch
from torch import nn

from .training import expected, library, report_of, told

smp = library("segmentation_models_pytorch.losses")
monai = library("monai.losses")
timm = library("timm.loss")


def test_a_focal_exponent_on_an_image_without_the_class() -> None:
    """nabsabraham/focal-tversky-unet#29 "loss: Nan.", avoided there "when gamma is set to 1".

    Without a positive pixel the loss is zero, and x**0.75 has no derivative at zero.
    """
    model = nn.Conv2d(1, 1, 1)
    loss = smp.TverskyLoss("binary", gamma=0.75)
    x = torch.randn(2, 1, 4, 4)

    report = report_of(model, lambda mask: loss(model(x), mask), [torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)])

    assert told(report) == expected(
        step=1,
        phase="backward",
        op="pow",
        module=None,
        file="segmentation_models_pytorch/losses/tversky.py",
        code="return loss.mean() ** self.gamma",
        cause="singular-gradient",
    )


def test_dice_of_nothing() -> None:
    """Project-MONAI/research-contributions#27 "WARNING:root:NaN or Inf found in input tensor when training UNETR ...".

    "Most likely caused by DiceCELoss as the values of denominator become very small", with `squared_pred`. The default
    smoothing prevents it today; without it an empty mask and a confident net give 0/0.
    """
    model = nn.Conv2d(1, 1, 1)
    nn.init.ones_(model.weight)
    loss = monai.DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=0.0)
    seen, nothing = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)

    report = report_of(model, lambda batch: loss(model(batch[0]), batch[1]), [(seen, seen), (seen * -200, nothing)])

    assert told(report) == expected(
        step=1,
        phase="loss",
        op="div",
        module=None,
        file="monai/losses/dice.py",
        code="f: torch.Tensor = 1 - numerator / denominator",
        cause="zero-division",
    )


def test_a_fractional_focusing_exponent_on_a_certain_prediction() -> None:
    """Alibaba-MIIL/ASL#53 "NaNs with fp16".

    timm computes this loss in float32 now; a focusing exponent below one still has no derivative where the
    probability has saturated.
    """
    model = nn.Linear(4, 3)
    nn.init.ones_(model.weight)
    loss = timm.AsymmetricLossMultiLabel(gamma_pos=0.5)
    y = torch.tensor([[1.0, 0.0, 0.0]])

    report = report_of(model, lambda x: loss(model(x), y), [torch.zeros(1, 4), torch.full((1, 4), 20.0)])

    assert told(report) == expected(
        step=1,
        phase="backward",
        op="pow",
        module=None,
        file="timm/loss/asymmetric_loss.py",
        code="one_sided_w = torch.pow(1 - pt, one_sided_gamma)",
        cause="singular-gradient",
    )

"""Imports torchvision where its compiled operators do not load: other packages import it if it is installed."""

from __future__ import annotations

import importlib.util
import warnings

import torch


def import_torchvision() -> None:
    """Import torchvision beside a CPU build of torch.

    Its published wheels are built for CUDA: their compiled operators do not load there, and the import stops where it
    describes two of them. Declaring these is enough for its Python code, which is all that timm, piq and
    segmentation_models_pytorch use here.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            for name in ("nms", "qnms"):
                torch.library.define(
                    f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            importlib.import_module("torchvision")

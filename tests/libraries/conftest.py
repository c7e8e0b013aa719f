"""The marker `libraries`, and what other people's packages need to be imported."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is marked; the warnings of other people's packages are not ours to fix."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.libraries)
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def _import_torchvision() -> None:
    """Import torchvision beside a CPU build of torch.

    Its wheels on PyPI are built for CUDA: their compiled operators do not load there, and the import stops where it
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


_import_torchvision()

"""The marker `libraries`, and what other people's packages need to be imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..torchvision_import import import_torchvision


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is marked; the warnings of other people's packages are not ours to fix."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.libraries)
            item.add_marker(pytest.mark.filterwarnings("ignore"))


import_torchvision()

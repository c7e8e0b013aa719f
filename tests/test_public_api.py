"""The public names, and the tree of errors that user code may rely on."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nantrace
from nantrace import errors

PUBLIC = [
    "Cause",
    "DumpError",
    "ForecastWarning",
    "NantraceError",
    "NotAModuleError",
    "NumericalAnomaly",
    "NumericalAnomalyWarning",
    "OptionError",
    "Remedy",
    "RenderError",
    "Report",
    "TensorSummary",
    "TraceError",
    "Tracer",
    "WatchError",
    "__version__",
    "expect_nonfinite",
    "load",
    "report_of",
    "trace",
    "watch",
]


def test_the_public_names() -> None:
    """A name that is added or removed must be added or removed here, too: it is a promise."""
    assert sorted(nantrace.__all__) == PUBLIC
    assert dir(nantrace) == nantrace.__all__


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported(name: str) -> None:
    """`from nantrace import NAME` works for each."""
    assert getattr(nantrace, name) is not None


def test_type_checkers_see_the_same_names() -> None:
    """The imports that only type checkers read list what is loaded lazily."""
    tree = ast.parse(Path(nantrace.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = [alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]

    assert sorted([*filter(None, seen), "__version__"]) == PUBLIC


def test_a_name_that_is_not_there() -> None:
    """The error lists the names that are."""
    with pytest.raises(AttributeError, match=r"no attribute 'wtach'; it has .*watch"):
        nantrace.wtach


@pytest.mark.parametrize(
    ("error", "also"),
    [
        (errors.OptionError, ValueError),
        (errors.NotAModuleError, TypeError),
        (errors.WatchError, RuntimeError),
        (errors.DumpError, Exception),
        (errors.RenderError, Exception),
        (errors.NumericalAnomaly, FloatingPointError),
    ],
)
def test_errors_derive_as_documented(error: type[Exception], also: type[Exception]) -> None:
    """One `except NantraceError` catches all, and each is what Python calls such a thing."""
    assert issubclass(error, nantrace.NantraceError)
    assert issubclass(error, also)
    assert f"── {error.__name__}" in (errors.__doc__ or "")


def test_the_warning_is_no_error() -> None:
    """`on_anomaly="warn"` can be silenced as any warning of a library's users."""
    assert issubclass(nantrace.NumericalAnomalyWarning, UserWarning)


def test_the_package_is_typed() -> None:
    """Type checkers read our annotations only where this file is."""
    assert Path(nantrace.__file__).with_name("py.typed").exists()

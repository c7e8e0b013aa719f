"""The exceptions and warnings of nantrace.

NantraceError                  everything nantrace raises itself derives from this
├── OptionError                a bad option of watch() (also a ValueError)
├── NotAModuleError            something that is no module was given to watch() (also a TypeError)
├── WatchError                 a watch started, stopped or nested in a way that cannot work (also a RuntimeError)
├── TraceError                 a tensor that trace() cannot explain: finite, or without a graph (also a ValueError)
├── DumpError                  a dump that is missing, torn, or of an unknown version
├── RenderError                a picture or file that could not be made
└── NumericalAnomaly           a non-finite value was about to have consequences (also a FloatingPointError)
NumericalAnomalyWarning        the same, with on_anomaly="warn" (a UserWarning)
└── ForecastWarning            nothing has happened yet: values will overflow soon, with forecast=True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model.forecast import Forecast
    from .report import Report


class NantraceError(Exception):
    """The base of everything that nantrace raises itself."""


class OptionError(NantraceError, ValueError):
    """An option of `watch` has a value that is not allowed."""


class NotAModuleError(NantraceError, TypeError):
    """Something that is no `torch.nn.Module` was given where a module is needed."""


class WatchError(NantraceError, RuntimeError):
    """A watch was started, stopped or nested in a way that cannot work."""


class TraceError(NantraceError, ValueError):
    """A tensor was given to `trace` that cannot be explained: all of it is finite, or no graph leads back from it."""


class DumpError(NantraceError):
    """A dump could not be read: missing, torn, or of a version this nantrace does not know."""


class RenderError(NantraceError):
    """A picture or a file could not be made; the message says what to install or change."""


class NumericalAnomaly(NantraceError, FloatingPointError):
    """A non-finite value was about to have consequences. `report` explains it; `str()` is its plain text."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return "\n" + self.report.text()


class NumericalAnomalyWarning(UserWarning):
    """A non-finite value was seen and the run goes on: see `on_anomaly`. `report` explains it, where there is one."""

    report: Report | None = None


class ForecastWarning(NumericalAnomalyWarning):
    """Values grow so that they will overflow soon: see `forecast`. `forecasts` holds each, the soonest first."""

    forecasts: tuple[Forecast, ...] = ()


# users see `nantrace.NumericalAnomaly` in a traceback, the name they import
for _public in (
    NantraceError,
    OptionError,
    NotAModuleError,
    WatchError,
    TraceError,
    DumpError,
    RenderError,
    NumericalAnomaly,
    NumericalAnomalyWarning,
    ForecastWarning,
):
    _public.__module__ = "nantrace"

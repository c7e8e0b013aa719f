"""nantrace: find the op, the layer and the line that made the first NaN, and say why.

    with nantrace.watch(model):
        ...  # the training loop, unchanged

The public names are loaded when they are first used, so that opening a dump needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dump import load as load
    from .errors import DumpError as DumpError
    from .errors import ForecastWarning as ForecastWarning
    from .errors import NantraceError as NantraceError
    from .errors import NotAModuleError as NotAModuleError
    from .errors import NumericalAnomaly as NumericalAnomaly
    from .errors import NumericalAnomalyWarning as NumericalAnomalyWarning
    from .errors import OptionError as OptionError
    from .errors import RenderError as RenderError
    from .errors import TraceError as TraceError
    from .errors import WatchError as WatchError
    from .explaining import report_of as report_of
    from .model import Cause as Cause
    from .model import Remedy as Remedy
    from .model import TensorSummary as TensorSummary
    from .recording.expecting import expect_nonfinite as expect_nonfinite
    from .report import Report as Report
    from .tracer import Tracer as Tracer
    from .tracer import watch as watch
    from .unwatched import trace as trace

__version__ = "0.1.0"

_HOMES = {
    "Cause": "model",
    "DumpError": "errors",
    "ForecastWarning": "errors",
    "NantraceError": "errors",
    "NotAModuleError": "errors",
    "NumericalAnomaly": "errors",
    "NumericalAnomalyWarning": "errors",
    "OptionError": "errors",
    "Remedy": "model",
    "RenderError": "errors",
    "Report": "report",
    "TensorSummary": "model",
    "TraceError": "errors",
    "Tracer": "tracer",
    "WatchError": "errors",
    "expect_nonfinite": "recording.expecting",
    "load": "dump",
    "report_of": "explaining",
    "trace": "unwatched",
    "watch": "tracer",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nantrace' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)

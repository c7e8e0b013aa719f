"""`expect_nonfinite`: code whose non-finite values are meant."""

from __future__ import annotations

from contextlib import ContextDecorator
from contextvars import ContextVar
from types import TracebackType

_depth: ContextVar[int] = ContextVar("nantrace_expecting", default=0)


class expect_nonfinite(ContextDecorator):
    """Declare that NaN and infinities generated inside are meant: a log of probabilities that may be 0, a bound search.

        with nantrace.expect_nonfinite():
            score = torch.log(p)

    They are no origin of an anomaly and raise nothing by themselves; a report lists them in `report.expected`. What
    they do later is not excused: where they spoil a gradient that an optimizer is about to use, that is an anomaly, and
    the op that let them out is its origin. The derivative of an op inside belongs to the backward, which runs where
    `backward` is called.

    Also a decorator. May be nested and used in several threads; without a watch it does nothing.
    """

    def __enter__(self) -> expect_nonfinite:
        _depth.set(_depth.get() + 1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _depth.set(_depth.get() - 1)


def expecting() -> bool:
    """Whether the running code has declared its non-finite values."""
    return _depth.get() > 0


expect_nonfinite.__module__ = "nantrace"

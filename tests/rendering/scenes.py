"""Every hand-written report by name: what real failures look like once they are plain data."""

from __future__ import annotations

from collections.abc import Callable

from nantrace.report import Report

from .born_elsewhere import bad_input, bad_parameter, embedding_index, nothing_known, optimizer_update
from .born_in_ops import gan_log, sqrt_backward
from .overflowing import diverging, t5_overflow

REPORTS: dict[str, Callable[[], Report]] = {
    made.__name__: made
    for made in (
        gan_log,
        sqrt_backward,
        bad_input,
        embedding_index,
        diverging,
        t5_overflow,
        bad_parameter,
        optimizer_update,
        nothing_known,
    )
}

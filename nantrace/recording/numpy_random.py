"""numpy's global random stream: read at every entry call, so cheaply, and exactly once a model draws from it.

`numpy.random.get_state` copies 624 numbers one by one (60 µs). The same numbers lie at an address that numpy makes
public (`BitGenerator.ctypes.state_address`); only the spare normal deviate of `numpy.random.randn` is not among them.
So a call keeps the bytes, and from the first call that is seen to draw on, the whole state is kept.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_KEYS = 624  # the words of a Mersenne Twister's state; its position follows them
_BYTES = 4 * (_KEYS + 1)


class NumpyStream:
    """Reads the state of numpy's global generator, and notices whether a call has drawn from it."""

    def __init__(self) -> None:
        self._drawn = False
        self._generator: Any = None  # the bit generator whose address is known
        self._address = 0
        self._before: bytes | None = None

    def before(self) -> Any:
        """The state as a call begins: its bytes, or the whole where a call has drawn before. None without numpy."""
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return None
        self._before = None if self._drawn else self._bytes(numpy)
        return self._before if self._before is not None else whole_state()

    def after(self) -> None:
        """The call has ended: if the stream has moved, the next calls keep the whole state."""
        numpy = sys.modules.get("numpy")
        if numpy is not None and self._before is not None:
            self._drawn = self._bytes(numpy) != self._before
            self._before = None

    def _bytes(self, numpy: Any) -> bytes | None:
        """The keys and the position, or None where the generator is another one, or numpy older than 1.24."""
        find = getattr(numpy.random, "get_bit_generator", None)
        if find is None:
            return None
        generator = find()
        if generator is not self._generator:
            known = type(generator) is numpy.random.MT19937
            self._generator, self._address = generator, generator.ctypes.state_address if known else 0
        return ctypes.string_at(self._address, _BYTES) if self._address else None


def whole_state() -> Any:
    """Everything that numpy's global generator keeps, or None where numpy is not loaded."""
    numpy = sys.modules.get("numpy")
    return numpy.random.get_state(legacy=False) if numpy is not None else None


def restore(state: Any) -> None:
    """Put the stream back to where it stood when `state` was read."""
    numpy = sys.modules["numpy"]
    if isinstance(state, bytes):
        words = numpy.frombuffer(state, numpy.uint32)
        state = ("MT19937", words[:_KEYS], int(words[_KEYS]), 0, 0.0)
    numpy.random.set_state(state)

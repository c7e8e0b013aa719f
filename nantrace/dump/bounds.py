"""How large a member may be: held by the writer, and checked by the reader before it takes any memory."""

from __future__ import annotations

from .schema import MAX_ITEMS, MEGABYTE, MEMBER_BYTES

_MAX_RATIO = 400  # deflate reaches 1032; a trace of twenty thousand equal ops stays near 50
_RATIO_FREE_BYTES = 4 * MEGABYTE  # so little does no harm at any ratio


class OutOfBounds(ValueError):
    """A member is larger than a dump may hold."""


def check_size(member: str, size: int) -> None:
    """Refuse a member of more bytes than its bound."""
    if size > MEMBER_BYTES[member]:
        raise OutOfBounds(f"{member} takes {size:,} bytes, more than {MEMBER_BYTES[member] // MEGABYTE} MB")


def check_ratio(member: str, size: int, compressed: int) -> None:
    """Refuse a member that grows more than any honest one when it is unpacked."""
    if size > _RATIO_FREE_BYTES and size > _MAX_RATIO * compressed:
        raise OutOfBounds(f"{member} would grow {size // max(1, compressed)}-fold when unpacked")


def check_items(member: str, content: bytes) -> None:
    """Refuse JSON that would become very many values: each costs far more in memory than in the file."""
    items = content.count(b",") + content.count(b"[") + content.count(b"{")
    if items > MAX_ITEMS:
        raise OutOfBounds(f"{member} holds {items:,} values, more than {MAX_ITEMS:,}")

"""Makes text that comes from a user's program safe and measurable on a screen.

Names, code lines and messages may hold anything: escape sequences that repaint a terminal,
right-to-left marks that reorder a line, 300-character names. This file knows nothing of reports.
"""

from __future__ import annotations

import unicodedata

# Control, format (zero-width and bidirectional marks), surrogate, private, line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_LONGEST = 500  # of a sentence: an exception may carry a whole tensor in its message


def harmless(text: object) -> str:
    """The text on one line, with everything that a terminal or a viewer would act on spelled out."""
    plain = str(text).replace("\t", "    ")
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(_spelled(character) for character in plain)


def prose(text: object) -> str:
    """The same for a sentence: line breaks and runs of blanks become one blank first."""
    return cut(harmless(" ".join(str(text).split())), _LONGEST)


def encodable(text: str, encoding: str) -> str:
    """The text with what `encoding` cannot show spelled as an escape."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def cells(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(_cell(character) for character in text)


def cut(text: str, limit: int, ellipsis: str = "...") -> str:
    """The beginning of the text, with an ellipsis where the end did not fit."""
    if cells(text) <= limit:
        return text
    return _fitting(text, max(0, limit - cells(ellipsis))) + ellipsis[: max(0, limit)]


def shorten(text: str, limit: int, ellipsis: str = "...") -> str:
    """The beginning and the end of the text; names differ at their ends, so the middle goes."""
    if cells(text) <= limit:
        return text
    room = max(2, limit - cells(ellipsis))
    head = _fitting(text, room // 2)
    tail = _fitting(text[::-1], room - room // 2)[::-1]
    return head + ellipsis + tail


def wrapped(text: str, width: int) -> list[str]:
    """The words of the text in lines of at most `width` columns; a longer word is broken."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        candidate = f"{line} {word}" if line else word
        if cells(candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        line = word
        while cells(line) > width:
            head = _fitting(line, width) or line[0]
            lines.append(head)
            line = line[len(head) :]
    return [*lines, line] if line or not lines else lines


def _fitting(text: str, room: int) -> str:
    taken = 0
    for position, character in enumerate(text):
        taken += _cell(character)
        if taken > room:
            return text[:position]
    return text


def _cell(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _spelled(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")

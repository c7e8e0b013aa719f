"""Explain a cause: what it is, how it arises, an example that runs, the fixes, how it is recognised.

CAUSE is a cause in any spelling (log-domain, LOG_DOMAIN, log domain), or a dump, whose cause is
explained. Without CAUSE: all causes, with one line about each.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from difflib import SequenceMatcher
from pathlib import Path

from ..errors import NantraceError
from ..model import Cause
from .printing import columns, print_lines

_DUMP = ".nantrace"
_ALIKE = 0.6  # of 1, the same: below this a suggestion would be a guess


def prepare(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    parser.add_argument("cause", metavar="CAUSE", nargs="*", help="a cause, or a dump (.nantrace)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--example", action="store_true", help="print only the program that has this cause")
    form.add_argument("--fixed", action="store_true", help="print only that program with the first fix")
    form.add_argument("--json", action="store_true", help="print everything as JSON, for programs")
    form.add_argument("--width", metavar="N", type=columns, help="the most columns (default: the terminal's, or 100)")


def run(options: argparse.Namespace) -> int:
    """Explain one cause, or list all."""
    wanted = " ".join(options.cause)
    if wanted:
        _explain(_cause_of_dump(wanted) if _is_dump(wanted) else _cause_named(wanted), options)
    elif options.example or options.fixed:
        raise NantraceError("say of which cause; `nantrace explain` lists them all")
    else:
        _list(options)
    return 0


def _explain(cause: Cause, options: argparse.Namespace) -> None:
    from ..diagnosis.catalogue import entry
    from ..rendering.explanation import explanation
    from ..rendering.json import jsonable

    found = entry(cause)
    if options.example:
        sys.stdout.write(found.example)
    elif options.fixed:
        sys.stdout.write(found.fixed)
    elif options.json:
        print(json.dumps({**jsonable(found), "fixed": found.fixed}, indent=1))
    else:
        print_lines(lambda width, glyphs: explanation(found, width, glyphs), options.width)


def _list(options: argparse.Namespace) -> None:
    from ..diagnosis.catalogue import MEANING
    from ..rendering.explanation import contents

    if options.json:
        print(json.dumps([{"cause": cause.value, "meaning": MEANING[cause]} for cause in Cause], indent=1))
    else:
        print_lines(lambda width, _: contents(MEANING, width), options.width)


def _is_dump(text: str) -> bool:
    return text.endswith(_DUMP) or _spelling(text) not in _SPELLINGS and Path(text).is_file()


def _cause_of_dump(path: str) -> Cause:
    from ..dump import load

    return load(path).cause


def _cause_named(text: str) -> Cause:
    cause = _SPELLINGS.get(_spelling(text))
    if cause is not None:
        return cause
    near = " or ".join(_nearest(text))
    meant = f"; did you mean {near}?" if near else ";"
    raise NantraceError(f"there is no cause {text!r}{meant} `nantrace explain` lists them all")


def _nearest(text: str) -> list[str]:
    """The causes that are most like the text, as a whole or in one of their words."""
    spelling = _spelling(text)
    likeness = {cause.value: max(_likeness(spelling, part) for part in (cause, *cause.split("-"))) for cause in Cause}
    best = max(likeness.values())
    return [name for name, alike in likeness.items() if alike == best] if best >= _ALIKE else []


def _likeness(spelling: str, part: str) -> float:
    return SequenceMatcher(None, spelling, _spelling(part)).ratio()


def _spelling(text: str) -> str:
    """A cause in lower-case letters alone, from log-domain, LOG_DOMAIN, "log domain" and Cause.LOG_DOMAIN."""
    return re.sub(r"[\W_]+", "", text.lower().removeprefix("cause."))


_SPELLINGS = {_spelling(cause.value): cause for cause in Cause}

"""Every cause: in one plain line for headlines, and at length for `nantrace explain`."""

from __future__ import annotations

from .entry import CataloguedFix as CataloguedFix
from .entry import Entry as Entry
from .entry import entry as entry
from .meanings import MEANING as MEANING
from .meanings import meaning as meaning
from .recognition import Recognition as Recognition
from .recognition import recognition as recognition

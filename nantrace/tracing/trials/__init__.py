"""Remedies, tried: the step is replayed with one change in it, on copies, and judged by its loss and gradients.

A change is made above autograd, where an edit of the user's line would make it: the function call that ran the op is
given another operand, another argument or another dtype, wherever the same line runs. What a trial finds stands in the
snapshot; nothing of it lasts.
"""

from __future__ import annotations

from .site import Site as Site
from .site import sites_of as sites_of
from .trying import try_changes as try_changes

"""A dump: one snapshot in one file that can be mailed, kept and opened on any machine.

    manifest.json         which format, which versions, which rank and step
    trace.json            the snapshot without the ring buffer
    history.json          the ring buffer's steps, and the names that its columns refer to
    tensors.safetensors   the ring buffer's events as columns, readable by `safetensors.safe_open`

It is a zip file without code in it: nothing is unpickled, evaluated or imported when it is opened, and
neither torch nor numpy is needed. What was concluded is not stored: a loaded dump is diagnosed anew.
"""

from __future__ import annotations

from .loading import load as load
from .loading import read_snapshot as read_snapshot
from .saving import save as save

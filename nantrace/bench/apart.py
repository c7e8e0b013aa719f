"""Measures in a child process: for what is chosen when nantrace is loaded, and for peaks of memory.

The parent sends the name of a task and its arguments as a pickle, and reads the result as one: both are of this
package's own making, between two of its own processes.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import NantraceError

_ROOT = Path(__file__).resolve().parents[2]


def run(task: str, changes: Mapping[str, str], **arguments: Any) -> Any:
    """Do a task of `child` in a new process, whose environment has these changes."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    ended = subprocess.run(
        [sys.executable, "-m", f"{__package__}.child"],
        input=pickle.dumps((task, arguments)),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path, **changes},
        check=False,
    )
    if ended.returncode:
        last = next(iter(reversed(ended.stderr.decode(errors="replace").strip().splitlines())), "it said nothing")
        raise NantraceError(f"a measurement in a child process failed (exit code {ended.returncode}): {last}")
    return pickle.loads(ended.stdout)

"""Builds the C kernel: by hand (`python -m nantrace.recording.kernel.build`), or while the package is installed.

The build backend loads this file by its path, before the package and torch are there: it imports the standard library
alone, and hatchling where that is what runs it. Without a compiler the package is pure Python, and complete.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

_HERE = Path(__file__).resolve().parent
_SOURCE = _HERE / "statistics.c"
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden")
_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
LIBRARY = _HERE / f"_statistics{_SUFFIX}"


class Outcome(NamedTuple):
    """Whether the library was built, and why not."""

    built: bool
    reason: str


def build(target: Path = LIBRARY, compiler: str | None = None) -> Outcome:
    """Compile the kernel to `target` with `compiler`, $CC or cc. The target is replaced as a whole or not touched."""
    if sys.platform == "win32":
        return Outcome(False, "on Windows the kernel is not built")
    command = shlex.split(compiler or os.environ.get("CC") or "cc")
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        line = [*command, *_FLAGS, str(_SOURCE), "-o", str(unfinished), "-lm"]
        run = subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if run.returncode:
            return Outcome(False, f"{shlex.join(command)} failed: {run.stderr.strip()[-500:]}")
        os.replace(unfinished, target)
    except OSError as error:
        return Outcome(False, f"{shlex.join(command)} could not be run: {error}")
    finally:
        unfinished.unlink(missing_ok=True)
    return Outcome(True, "")


def _platform_tag() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


if TYPE_CHECKING:
    _Interface = object
else:
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface as _Interface
    except ImportError:  # not run by the build backend
        _Interface = object


class KernelBuildHook(_Interface):
    """Puts the library into the wheel and names the wheel's platform; without a compiler the wheel is for any."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build before the files are collected. An editable install finds the library where it was built."""
        if self.target_name != "wheel":  # type: ignore[attr-defined]
            return
        outcome = build()
        if not outcome.built:
            self.app.display_info(f"nantrace without its C kernel: {outcome.reason}")  # type: ignore[attr-defined]
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"
        build_data["artifacts"].append(f"nantrace/recording/kernel/{LIBRARY.name}")


if __name__ == "__main__":
    outcome = build()
    print(f"built {LIBRARY}" if outcome.built else outcome.reason)
    sys.exit(not outcome.built)

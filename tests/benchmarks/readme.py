"""Puts the tables of `nantrace bench` into the README: `python tests/benchmarks/readme.py [OPTIONS OF THE COMMAND]`.

What stands between the two marks there is replaced as a whole; the first mark keeps the command that made it.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
MARKED = re.compile(r"<!-- nantrace (bench .*?) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def main() -> None:
    """Measure, then write."""
    command = ["bench", "--markdown", *sys.argv[1:]]
    run = subprocess.run([sys.executable, "-m", "nantrace", *command], stdout=subprocess.PIPE, text=True, check=True)
    part = f"<!-- nantrace {shlex.join(command)} -->\n\n{run.stdout}\n<!-- end -->\n"
    text, found = MARKED.subn(lambda _: part, README.read_text(encoding="utf-8"))
    if found != 1:
        sys.exit(f"{README} has {found} places for the tables, marked as {MARKED.pattern!r}")
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

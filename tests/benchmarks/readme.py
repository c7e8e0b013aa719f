"""Puts the tables of `nantrace bench` into the README: `python tests/benchmarks/readme.py [OPTIONS OF THE COMMAND]`.

What stands between the two marks there is replaced as a whole.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- made by nantrace bench --markdown -->\n", "<!-- end -->\n"


def main() -> None:
    """Measure, then write."""
    command = [sys.executable, "-m", "nantrace", "bench", "--markdown", *sys.argv[1:]]
    made = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        sys.exit(f"{README} has not both marks, {BEGIN.strip()} and {END.strip()}")
    README.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The command line. One file per command: its docstring is the help, `prepare` names its options, `run` does it.

Nothing here, nor any command's module, imports torch or networkx at module level: `--help` and `show` answer at once.
Exit codes: 0 fine, 1 an anomaly was found, 2 wrong usage or a file that cannot be read.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from .. import __version__
from ..errors import NantraceError
from . import bench, demo, explain, graph, history, ops, show

FINE = 0
ANOMALY = 1
UNUSABLE = 2
INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended

COMMANDS: tuple[ModuleType, ...] = (demo, show, graph, history, ops, explain, bench)

_DESCRIPTION = "Find the op, the layer and the line that made the first NaN, and say why."
_EPILOG = "Exit codes: 0 fine, 1 an anomaly was found, 2 wrong usage or a file that cannot be read."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the only place that turns an error into stderr and a code."""
    _spell_what_the_terminal_lacks()
    try:
        options = _parser().parse_args(argv)
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except NantraceError as error:
        print(f"nantrace: {error}", file=sys.stderr)
        return UNUSABLE
    except BrokenPipeError:
        _let_go_of_stdout()
        return FINE
    except OSError as error:  # a full disk below stdout
        print(f"nantrace: {error.strerror or error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nantrace", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"nantrace {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        text = (module.__doc__ or "").strip()
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
            help=text.splitlines()[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.prepare(command)
        command.set_defaults(run=module.run)
    return parser


def _spell_what_the_terminal_lacks() -> None:
    """A code line with a character that the terminal's encoding lacks is printed with an escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _let_go_of_stdout() -> None:
    """The reader of the pipe (`head`) has gone: let the interpreter's last flush go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        pass

"""`hso-jax`: the parser, the exit codes, and one line for whatever goes wrong."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hso_jax.cli import bridge_commands, searches, views
from hso_jax.shown import shown

EXIT_BAD_INPUT, EXIT_UNEXPECTED, EXIT_IO, EXIT_INTERRUPTED = 2, 70, 74, 130

_EPILOG = """\
examples:
  hso-jax search                                    Stable Diffusion 2.1-base, N = 4..20, both layouts
  hso-jax search --model sdxl --nfe 6 --layout node --json
  hso-jax compare --model pixart-alpha --nfe 4,6
  hso-jax show schedules-sd21-base.json --as sigmas --nfe 8

exit codes:
  0    done
  1    done, but some schedules did not converge (they are marked)
  2    bad input: nothing was written
  70   unexpected error: one line says where its log is
  74   could not be written: disk full, standard output closed or its reader gone
  130  interrupted by Ctrl-C
Where a file was written before 70, 74 or 130, the message names it.
"""

# What the system says where a write fails that was allowed.
_IO_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE, errno.EBADF)


class _Parser(argparse.ArgumentParser):
    """Shows what the user wrote as it is fit to be shown, and hides no failure to write its help."""

    def error(self, message: str) -> NoReturn:
        super().error(shown(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code and raises nothing."""
    written: list[Path] = []
    if sys.stderr is None:  # closed by the caller; nothing opened later shall get its number
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        return _say(EXIT_IO, "cannot write standard output: it is closed", written)
    try:
        code = _command(argv, written)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _say(EXIT_INTERRUPTED, "interrupted", written)
    except OSError as error:
        if error.errno not in _IO_ERRORS:
            what = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
            return _say(EXIT_BAD_INPUT, what, written)
        _abandon_stdout()
        where = "standard output" if error.filename is None else error.filename
        return _say(EXIT_IO, f"cannot write {where}: {error.strerror}", written)
    except ValueError as error:
        return _say(EXIT_BAD_INPUT, str(error), written)
    except Exception as error:
        what = f"unexpected {type(error).__name__}: {error}"
        return _say(EXIT_UNEXPECTED, f"{what}; please report it with {_log()}", written)


def _command(argv: Sequence[str] | None, written: list[Path]) -> int:
    parser: argparse.ArgumentParser = _Parser(
        prog="hso-jax",
        description="Finds the few noise levels at which a diffusion or flow model is best evaluated.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    searches.add_parsers(subparsers)
    views.add_parsers(subparsers)
    bridge_commands.add_parsers(subparsers)
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:  # after --help, or with a message about the arguments
        return end.code if isinstance(end.code, int) else 0
    args.written = written
    return int(args.run(args))


def _say(code: int, what: str, written: Sequence[Path]) -> int:
    """One line on standard error: what happened, and which files are there all the same."""
    if written:
        what += f"; written: {', '.join(map(str, written))}"
    elif code != EXIT_BAD_INPUT:
        what += "; nothing was written"
    start = "" if code == EXIT_INTERRUPTED else "error: "
    with contextlib.suppress(OSError):
        print(start + shown(what), file=sys.stderr, flush=True)
    return code


def _log() -> str:
    """The traceback in a file of its own."""
    try:
        handle, name = tempfile.mkstemp(prefix="hso-jax-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(traceback.format_exc())
        return name
    except OSError as error:
        return f"what you called it with (its log could not be written: {error})"


def _abandon_stdout() -> None:
    """What cannot be written is not tried again when the process ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

"""`hso-jax`: its parser, its exit codes, and one line for whatever goes wrong."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hso_jax._moved import NO_PROFILE
from hso_jax._version import __version__
from hso_jax.checks import nearest, printable
from hso_jax.cli import commands
from hso_jax.cli.common import silent
from hso_jax.noise.presets import is_preset, preset_name

_COMMAND = "COMMAND"
EXIT_BAD_INPUT, EXIT_UNEXPECTED, EXIT_IO, EXIT_INTERRUPTED = 2, 70, 74, 130
_EPILOG = """\
examples:
  hso-jax recommend --model sdxl --nfe 6      which steps and which solver to use
  hso-jax search                              the paper's method, N = 4..20
  hso-jax search --model sdxl --nfe 6 --layout node --json
  hso-jax compare --model pixart-alpha --nfe 4,6
  hso-jax show schedules-sd21-base.json --as sigmas --nfe 8

exit codes:
  0    done
  1    done, but some schedules did not converge (they are marked)
  2    bad input; nothing was written
  70   unexpected error; the message names its log file
  74   a write failed: the disk is full, or standard output is closed
  130  interrupted by Ctrl-C
If a file was written before 70, 74 or 130, the message names it.
"""

# What the system reports if a write fails although it was allowed.
_IO_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE, errno.EBADF)


_CHOICE = re.compile(r"(?:argument (\S+): )?invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)
_VALUE = re.compile(r"argument (\S+): invalid (int|float) value: '(.*)'", re.DOTALL)
_COUNT = re.compile(r"argument (\S+): expected (?:(at least )?(one|\d+)) arguments?")
_REQUIRED = "the following arguments are required: "
_LANE = re.compile(r"lanes\[\d+\]: ")  # what Python calls one of several searches


class _Parser(argparse.ArgumentParser):
    """Reports an error in one printable line, and lets the failure to write its help through."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"error: {printable(self._in_words(message))} (see {self.prog} --help)\n")

    def _in_words(self, message: str) -> str:
        """The message of argparse in plain words, with the name that the user probably meant."""
        if message.startswith(_REQUIRED):
            return f"{message.removeprefix(_REQUIRED)} must be given"
        if found := _COUNT.fullmatch(message):
            option, least, many = found.groups()
            return f"{option} needs {least or ''}{many} value{'' if many == 'one' else 's'}"
        if found := _CHOICE.fullmatch(message):
            option, given, known = found.groups()
            names = [name.strip("'") for name in known.split(", ")]
            what = "command" if option in (None, _COMMAND) else option
            if (what, given) == ("command", "profile"):
                return f"`hso-jax profile` {NO_PROFILE}"
            if what == "command" and is_preset(given):
                return f"{given!r} is a model, not a command; write hso-jax recommend --model {given}"
            return f"{what} is {given!r}" + (nearest(given, names) or f"; use one of {', '.join(names)}")
        if found := _VALUE.fullmatch(message):
            option, kind, given = found.groups()
            return f"{option} is {given!r}; write {'a whole number' if kind == 'int' else 'a number'}"
        return message

    def refuse(self, given: str) -> NoReturn:
        """Report an argument that this command does not take."""
        if given.startswith("-"):
            self.error(f"{given!r} is no option of `{self.prog}`{nearest(given, self._option_string_actions)}")
        named = is_preset(given) and "--model" in self._option_string_actions
        self.error(f"{given!r} is no argument of `{self.prog}`{f'; write --model {given}' if named else ''}")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)


class _Completion(argparse.Action):
    """Prints the completion script of a shell and exits."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, option: str | None = None) -> None:
        try:
            import shtab
        except ImportError:
            parser.error(f"{option} needs shtab: pip install shtab")
        sys.stdout.write(shtab.complete(parser, shell))
        parser.exit()


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code and raises nothing."""
    written: list[Path] = []
    if sys.stderr is None:  # the caller closed it; no file that is opened later may get its number
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
        if isinstance(error, FileNotFoundError) and error.filename is not None:
            return _say(EXIT_BAD_INPUT, _no_file(str(error.filename)), written)
        if error.errno not in _IO_ERRORS:
            what = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
            return _say(EXIT_BAD_INPUT, what, written)
        _abandon_stdout()
        where = "standard output" if error.filename is None else error.filename
        return _say(EXIT_IO, f"cannot write {where}: {error.strerror}", written)
    except ValueError as error:
        return _say(EXIT_BAD_INPUT, _with_command(error), written)
    except ModuleNotFoundError as error:
        if (package := (error.name or "hso_jax").partition(".")[0]) in ("hso_jax", "bridge"):
            return _unexpected(error, written)
        what = f"this command needs {package}, which is not installed in this Python: pip install {package}"
        return _say(EXIT_BAD_INPUT, what, written)
    except Exception as error:
        return _unexpected(error, written)


def _unexpected(error: Exception, written: Sequence[Path]) -> int:
    """Say that this is no fault of the input, and where its traceback is."""
    what = f"unexpected {type(error).__name__}: {error}"
    return _say(EXIT_UNEXPECTED, f"{what}; please report it with {_log()}", written)


def _command(argv: Sequence[str] | None, written: list[Path]) -> int:
    parser, of_command = _parser()
    try:
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            of_command[args.command].refuse(unknown[0])
    except SystemExit as end:  # after --help, or with a message about the arguments
        return end.code if isinstance(end.code, int) else 0
    args.written = written
    before = silent.set(args.quiet)
    try:
        return commands.call(args.command, args)
    finally:
        silent.reset(before)


def _parser() -> tuple[_Parser, Mapping[str, _Parser]]:
    """The parser, and that of each command."""
    parser = _Parser(
        prog="hso-jax",
        description="Finds the few noise levels at which a diffusion or flow model is best evaluated.",
        epilog=_EPILOG,
        formatter_class=commands.HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hso-jax {__version__}")
    parser.add_argument("--quiet", action="store_true", help=commands.QUIET)
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "tcsh"),
        action=_Completion,
        help="print the completion script of a shell",
    )
    subparsers: Any = parser.add_subparsers(title="commands", dest="command", metavar=_COMMAND, required=True)
    for name in commands.COMMANDS:
        commands.add(subparsers, name)
    return parser, subparsers.choices


def _with_command(error: ValueError) -> str:
    """The message. If a schedule is not shipped, it names the command that searches for it, not the Python call."""
    why = getattr(error, "why", None)  # NotInZooError has it; not every command imports that class
    if why is None:
        return _LANE.sub("", str(error), count=1)
    solver = "" if error.solver is None else f" --solver {error.solver}"  # type: ignore[attr-defined]
    command = f"hso-jax search --method solver-error{solver} --guidance {error.guidance:g}"  # type: ignore[attr-defined]
    return f"{why}; to search for one: {command} --model MODEL --nfe N"


def _no_file(name: str) -> str:
    """What to say of a file that is not there; a preset's name in its place is a common mistake."""
    if not is_preset(name):
        return f"{name} does not exist"
    short = preset_name(name)
    return f"{name} is a model, and a file is needed; to write one: hso-jax recommend --model {short} -o {short}.json"


def _say(code: int, what: str, written: Sequence[Path]) -> int:
    """Print one line on standard error: what happened, and which files were written. Returns the code."""
    if written:
        what += f"; written: {', '.join(map(str, written))}"
    elif code != EXIT_BAD_INPUT:
        what += "; nothing was written"
    start = "" if code == EXIT_INTERRUPTED else "error: "
    with contextlib.suppress(OSError):
        print(start + printable(what), file=sys.stderr, flush=True)
    return code


def _log() -> str:
    """Write the traceback into a new file; returns its name."""
    try:
        handle, name = tempfile.mkstemp(prefix="hso-jax-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(traceback.format_exc())
        return name
    except OSError as error:
        return f"the command that you ran (its log could not be written: {error})"


def _abandon_stdout() -> None:
    """Keep Python from writing the rest again when the process ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

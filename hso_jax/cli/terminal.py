"""What the commands print: readable on every width, and never a byte that a terminal obeys."""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hso_jax.checks import printable

_silent: contextvars.ContextVar[bool] = contextvars.ContextVar("silent", default=False)


@contextlib.contextmanager
def silence(silent: bool) -> Iterator[None]:
    """Inside, `say`, `warn` and `progress` show nothing, if `silent`."""
    token = _silent.set(silent)
    try:
        yield
    finally:
        _silent.reset(token)


def say(*things: Any) -> None:
    """Print texts (already fit to be shown, may have several lines) and tables on standard output."""
    _print(sys.stdout, things)


def warn(text: str, style: str | None = None) -> None:
    """Print one line on standard error, made fit to be shown."""
    _print(sys.stderr, [printable(text)], style)


def write(text: str) -> None:
    """Write a document on standard output as it is."""
    sys.stdout.write(text)


def width() -> int:
    """Columns of the terminal; COLUMNS wins where it is a number above 0."""
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and len(given) < 5 and int(given) else max(_console(sys.stdout).width, 1)


def progress() -> Progress:
    """A bar on standard error that vanishes when it is done; none in a file."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = _console(sys.stderr)
    return Progress(*columns, console=console, transient=True, disable=_silent.get() or not console.is_terminal)


def _print(file: TextIO, things: Any, style: str | None = None) -> None:
    if _silent.get():
        return
    console = _console(file)
    with console.capture() as captured:
        for thing in things:
            if isinstance(thing, str):
                console.print(thing, style=style, soft_wrap=True)
            else:
                console.width = width()
                console.print(thing)
    encoding = file.encoding or "utf-8"
    file.write(captured.get().encode(encoding, "backslashreplace").decode(encoding))


def _console(file: TextIO) -> Console:
    # Rich takes COLUMNS=0 by its word.
    environ = {k: v for k, v in os.environ.items() if k != "COLUMNS" or v.strip("0")}
    return Console(file=file, markup=False, emoji=False, highlight=False, _environ=environ)

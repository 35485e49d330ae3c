"""The command line `hso-jax`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

_EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Without `argv` this function is the whole process. Ctrl-C then ends it at once while packages are imported, because
    compiled modules may swallow KeyboardInterrupt. After the work Ctrl-C is ignored, so that the exit code tells how
    the work ended.

    Args:
        argv: the arguments; default: those of the process.

    Returns:
        The exit code; `hso-jax --help` lists them.
    """
    is_process = argv is None
    heard = is_process and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so under nohup
    if heard:
        signal.signal(signal.SIGINT, _stop)
    if is_process:  # imports and traces make a million objects that stay: looking through them takes a seventh
        gc.set_threshold(100_000)
    shown = is_process and "--quiet" not in sys.argv and sys.stderr is not None and sys.stderr.isatty()
    if shown:  # importing JAX is the first second's work, before a progress bar can be drawn
        sys.stderr.write("loading")
        sys.stderr.flush()
    from hso_jax.cli.program import run

    if shown:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
    try:
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run(argv)
    except KeyboardInterrupt:  # before the first or after the last line of `run`
        if not is_process:
            raise
        _stop()
    finally:
        if is_process:  # nor are they looked through at the end: a quarter of a second
            gc.freeze()
        if heard:  # while the interpreter ends it would kill the process, were it not ignored
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(*_: Any) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(_EXIT_INTERRUPTED)

"""The command line `hso-jax`."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any, NoReturn

_EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Without `argv` it is the whole process. While the packages are imported Ctrl-C then ends it at once: compiled
    modules may swallow the exception that it otherwise is. When the work is done Ctrl-C changes nothing any more: the
    exit code says how the work ended.

    Args:
        argv: the arguments, by default the process's own.

    Returns:
        The exit code; `hso-jax --help` lists them.
    """
    is_process = argv is None
    heard = is_process and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so under nohup
    if heard:
        signal.signal(signal.SIGINT, _stop)
    from hso_jax.cli.program import run

    try:
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run(argv)
    except KeyboardInterrupt:  # before the first or after the last line of `run`
        if not is_process:
            raise
        _stop()
    finally:
        if heard:  # while the interpreter ends it would kill the process, were it not ignored
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(*_: Any) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(_EXIT_INTERRUPTED)

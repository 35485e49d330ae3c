"""The program `hso-jax`: a package of its own because importing `hso_jax` takes a second, in which Ctrl-C is heard."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

_EXIT_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line and end the process with its exit code.

    While the packages are imported, and after the work is done, Ctrl-C ends the process at once: compiled modules
    may swallow the exception that it otherwise is.
    """
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so under nohup
    if heard:
        signal.signal(signal.SIGINT, _stop)
    from hso_jax.cli.program import run

    try:
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run()
    except KeyboardInterrupt:  # before the first or after the last line of `run`
        _stop()
    finally:
        if heard:
            signal.signal(signal.SIGINT, _stop)
    sys.exit(code)


def _stop(*_: Any) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(_EXIT_INTERRUPTED)

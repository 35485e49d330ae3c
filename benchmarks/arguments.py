"""What the benchmarks' command lines share: values of options, and exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from hso_jax.cli.arguments import parse_nfe


def parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser that describes itself by a module's docstring: its first line, and the rest below the options."""
    summary, _, examples = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=prog, description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def names(text: str) -> tuple[str, ...]:
    """Of a comma-separated list."""
    return tuple(part.strip() for part in text.split(","))


def budgets(text: str) -> list[int]:
    """Numbers of evaluations such as 4,6,8 or 4-8."""
    try:
        return parse_nfe(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def exit_code(run: Callable[[argparse.Namespace], int], args: argparse.Namespace, kept: str) -> int:
    """Of a run: 2 for bad input, 130 when interrupted, with a line on stderr; `kept` is what is not lost then."""
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {kept} are kept, the same command goes on", file=sys.stderr)
        return 130

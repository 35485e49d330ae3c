"""The command line `hso-jax`."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (`hso-jax --help` lists them)."""
    from hso_jax.cli.program import run

    return run(argv)

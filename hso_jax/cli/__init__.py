"""The command line `hso-jax`."""

from hso_jax.cli.main import main as main

"""`python -m hso_jax.cli`."""

from hso_jax_cli import main

main()

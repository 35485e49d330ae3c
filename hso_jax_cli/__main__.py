"""`python -m hso_jax_cli`."""

from hso_jax_cli import main

main()

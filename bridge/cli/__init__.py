"""The work of `hso-jax apply` and `hso-jax sample`; their parsers are in `hso_jax.cli.bridge_commands`."""

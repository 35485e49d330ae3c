"""What `hso-jax apply`, `sample`, `profile` and `tune` do."""

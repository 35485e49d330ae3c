"""What `hso-jax apply`, `sample`, `recommend --pipeline` and `tune` do."""

"""Makes the files behind `hso_jax.zoo` and `recommend`, part by part: a run that is stopped goes on."""

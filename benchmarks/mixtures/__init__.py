"""Studies on Gaussian mixtures, where the exact solution is known."""

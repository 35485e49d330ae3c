"""Speed benchmarks, and the SciPy reference that they and the tests compare with."""

"""How a minimisation ended: codes that compiled programs return, and their names in a `Schedule`."""

CONVERGED, MAX_STEPS, NOT_FINITE = 0, 1, 2
RESULTS = ("converged", "max_steps", "not_finite")

"""`python -m hso_jax.cli`."""

import sys

from hso_jax.cli import main

sys.exit(main())

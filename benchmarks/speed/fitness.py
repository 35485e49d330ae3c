"""Fitness of the search beside the reference search's stored results (SciPy, tests/data/reference_search.json).

python -m benchmarks.speed.fitness            prints the table of docs/method.md
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.tables import markdown
from hso_jax import Hso, lanes, preset, search_many

GOLDENS = Path(__file__).parents[2] / "tests" / "data" / "reference_search.json"


def table() -> str:
    """A row an N and layout: the reference's F, ours with the spacing as penalty and as constraint."""
    kept = json.loads(GOLDENS.read_text())["results"]
    nfes = sorted({row["nfe"] for row in kept})
    found: dict[tuple[str, int, str], float] = {}
    for spacing in ("penalty", "constraint"):
        many = lanes([preset("sd21-base")], nfes, layouts=("node", "interval"), method=Hso(spacing_as=spacing))
        found |= {(s.layout, s.nfe, spacing): s.spf for s in search_many(many)}
    rows = []
    for layout, nfe, fitness in sorted((row["layout"], row["nfe"], row["F"]) for row in kept):
        ours = (found[layout, nfe, spacing] for spacing in ("penalty", "constraint"))
        rows.append([f"{nfe} {layout}", *(f"{x:.6g}" for x in (fitness, *ours))])
    return markdown(["N", "reference", "penalty", "constraint"], rows)


if __name__ == "__main__":
    print(table())

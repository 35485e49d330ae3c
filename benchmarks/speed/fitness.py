"""Fitness of the search beside the reference search's stored results (SciPy, tests/data/reference_search.json).

python -m benchmarks.speed.fitness            prints the README's table
"""

from __future__ import annotations

import json
from pathlib import Path

import hso_jax

GOLDENS = Path(__file__).parents[2] / "tests" / "data" / "reference_search.json"


def table() -> str:
    """Markdown rows: N and layout, the reference's F, ours with the spacing as penalty and as constraint."""
    rows = json.loads(GOLDENS.read_text())["results"]
    noise = hso_jax.preset("sd21-base")
    found: dict[tuple[int, str, str], hso_jax.Schedule] = {}
    for spacing_as in ("penalty", "constraint"):
        nfes = sorted({row["nfe"] for row in rows})
        lanes = hso_jax.lanes([noise], nfes, layouts=("node", "interval"), method=hso_jax.Hso(spacing_as=spacing_as))
        for schedule in hso_jax.search_many(lanes):
            found[schedule.nfe, schedule.layout, spacing_as] = schedule
    lines = []
    for row in sorted(rows, key=lambda row: (row["layout"], row["nfe"])):
        ours = [found[row["nfe"], row["layout"], name].spf for name in ("penalty", "constraint")]
        cells = [f"{row['nfe']} {row['layout']}", *(f"{value:.6g}" for value in (row["F"], *ours))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

"""docs/presets.md says what `PRESETS` says, and its code runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from hso_jax import zoo
from hso_jax.noise import PRESETS, preset
from hso_jax.shipped.zoo import shipped_guidance, zoo_key

PAGE = (Path(__file__).parent.parent / "docs" / "presets.md").read_text(encoding="utf-8")
KEYS = list(dict.fromkeys(zoo_key(preset(name)) for name in PRESETS))


def row(name: str) -> str:
    """The table's line of a preset; the shift is that of 1024 x 1024 pixels (4096 tokens)."""
    entry, noise = PRESETS[name], preset(name)
    shift = f"{float(noise.ksigma(0.5)):.3g}" if noise.kind == "flow" else "-"
    letter = "ABCDEFGH"[KEYS.index(zoo_key(noise))]
    data = "latents" if entry.latent else "pixels"
    cells = (f"`{name}`", entry.description, data, noise.prediction, shift, f"{entry.guidance:g}")
    return f"| {' | '.join((*cells, entry.resolution or '-', letter, entry.source))} |"


def test_the_table_is_the_presets() -> None:
    table = PAGE.split("| model |")[1].split("\n\n")[0].splitlines()[2:]
    assert table == [row(name) for name in PRESETS]


def test_the_keys_are_the_zoo_s() -> None:
    table = PAGE.split("\n| zoo |")[1].split("\n\n")[0].splitlines()[2:]
    firsts = {zoo_key(preset(name)): name for name in reversed(PRESETS)}
    wanted = []
    for letter, key in zip("ABCDEFGH", KEYS, strict=False):
        low, high, unbounded = key
        ends = f"{'pure noise' if low is None else f'{low:g}'} .. {high:g}"
        weights = ", ".join(f"{w:g}" for w in shipped_guidance(preset(firsts[key])))
        wanted.append(f"| {letter} | {ends} | {'epsilon' if unbounded else 'bounded'} | {weights} |")
    assert table == wanted


def test_the_code_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
    names: dict[str, object] = {}
    exec(compile(block, "docs/presets.md", "exec"), names)
    high, low = np.asarray(names["high"]), np.asarray(names["low"])
    assert len(high) and len(low) and high.min() >= 0.875 > low.max()


def test_the_steps_of_each_expert_are_counted() -> None:
    heads, _, *rows = PAGE.split("fall to the high-noise expert:\n\n")[1].split("\n\n")[0].splitlines()
    nfes = [int(cell) for cell in heads.strip("|").split("|")[1:]]
    for line in rows:
        name, *counts = (cell.strip(" `") for cell in line.strip("|").split("|"))
        boundary = PRESETS[name].boundary
        assert [int(n) for n in counts] == [int((zoo(name, n).sampler_sigmas()[:-1] >= boundary).sum()) for n in nfes]

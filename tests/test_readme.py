"""The README's examples run, its commands are the ones CI runs, its numbers are those shipped and measured."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import jax
import pytest
from marks import slow_but

import hso_jax
from benchmarks import runner
from benchmarks.heldout.measure import FREE, RULES, SEARCHED

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(marker: str, language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"<!-- {marker} -->\n```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def _table(marker: str, page: str = "README.md") -> list[list[str]]:
    """The cells of each row below the marker, without the head."""
    (lines,) = re.findall(rf"<!-- {marker} -->\n\n((?:\|.*\n)+)", (ROOT / page).read_text(encoding="utf-8"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()[2:]]


@pytest.mark.parametrize("page", slow_but(["docs/method.md"], ["docs/method.md", "docs/recommend.md"]))
def test_python_examples_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in (found := _blocks("example", "python", page)):
        exec(compile(block, page, "exec"), names)
    assert found
    printed = capsys.readouterr().out
    if page == "docs/method.md":
        assert "[959 822 655 458 238  29]" in printed  # as the comment says
        assert len(names["every"]) == 17 and (tmp_path / "sdxl.json").is_file()


def test_the_lines_that_keep_compiled_programs_run() -> None:
    before = jax.config.jax_compilation_cache_dir
    (block,) = _blocks("cache-example", "python", "docs/batch.md")
    try:
        exec(compile(block, "docs/batch.md", "exec"), {})
        assert jax.config.jax_compilation_cache_dir == "/tmp/hso-jax-programs"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_commands_are_there_and_ci_uses_the_second() -> None:
    (main_job,) = _blocks("main job", "bash")
    (tests,) = _blocks("tests", "bash")
    assert main_job.strip().endswith("hso-jax search") and "/pytest -n " in tests
    assert "<!-- tests -->" in (ROOT / ".ci" / "run").read_text()


def test_the_numbers_to_paste_are_the_recommended_ones() -> None:
    rows = _table("numbers")
    assert len(rows) == 5
    for name, guidance, sigmas, timesteps in rows:
        model = name.strip("`")
        schedule = hso_jax.recommend(model, 6, solver="dpmpp-2m").schedule
        assert float(guidance) == hso_jax.noise.PRESETS[model].guidance
        assert sigmas == ", ".join(f"{x:.3f}" for x in schedule.sampler_sigmas()[:-1])
        assert timesteps in ("", ", ".join(map(str, schedule.integer_timesteps())))


def test_the_gains_are_those_of_the_records() -> None:
    found = runner.read(ROOT / "docs" / "results" / "tuning.jsonl").cells
    error = {(r.model, r.nfe, r.method): r.rmse for r in found}
    for nfe, *told in _table("gains"):
        found = []
        for method in ("zoo", "tune"):
            ratios = [x / error[n, k, "rule"] for (n, k, m), x in error.items() if m == method and k == int(nfe)]
            assert len(ratios) == 8
            found += [math.exp(sum(map(math.log, ratios)) / len(ratios)), max(ratios)]
        assert told == [f"{x:.2f}" for x in found]


def test_the_gains_over_pipelines_are_those_of_the_records() -> None:
    told = re.search(r"leaves ([\d.]+), ([\d.]+)\s+and ([\d.]+) of the error at N = 4, 6, 8", README)
    lines = [json.loads(x) for x in (ROOT / "docs" / "results" / "heldout.jsonl").read_text().splitlines()]
    cells = [x for x in lines if "setup" not in x]
    plain = {(x["model"], x["nfe"]): x["rmse"] for x in cells if (x["method"], x["solver"]) == ("trailing", "ddim")}
    own = {(x["model"], x["nfe"]): x["rmse"] for x in cells if x["method"] == "nonstationary"}
    assert told and len(own) == 30 and all(own[cell] < plain[cell] for cell in own)
    for nfe, text in zip((4, 6, 8), told.groups(), strict=True):
        logs = [math.log(own[n, k] / plain[n, k]) for n, k in own if k == nfe]
        assert text == f"{math.exp(sum(logs) / len(logs)):.2f}"


def test_solver_ratios_are_those_of_the_records() -> None:
    """In README and the docs: coefficients of their own; beside them what was measured of profiles before they went."""
    found = runner.read(ROOT / "docs" / "results" / "heldout.jsonl").cells
    budgets, ratios = (4, 5, 6, 7, 8, 10), {}
    known = {m: min(r.rmse for r in found if (r.model, r.nfe) == m and r.method in (*RULES, *SEARCHED) and r.rmse)
             for m in {(r.model, r.nfe) for r in found}}  # fmt: skip
    for method in (FREE, "nonstationary-profile"):
        for r in (r for r in found if r.method == method):
            assert r.rmse is not None
            ratios[method, r.model, r.nfe] = r.rmse / known[r.model, r.nfe]
    networks = list(dict.fromkeys(name for _, name, _ in ratios))

    def mean(method: str, nfe: int) -> str:
        return f"{math.exp(sum(math.log(ratios[method, name, nfe]) for name in networks) / len(networks)):.2f}"

    rows = _table("heldout-ratios", "docs/nonstationary.md")
    assert rows[-1][1:] == [mean(FREE, n) for n in budgets] and len(rows) == len(networks) + 1
    for name, *told in rows[:-1]:
        assert told == [f"{ratios[FREE, name.split()[0], n]:.2f}" for n in budgets]
    without, with_one = ([mean(method, n) for n in (4, 6, 8)] for method in (FREE, "nonstationary-profile"))
    said = re.search(r"Free coefficients leave ([\d.]+), ([\d.]+) and ([\d.]+) of the best known", README)
    assert said and [*said.groups()] == without
    page = (ROOT / "docs" / "results" / "index.md").read_text()
    said = re.search(
        r"it had ([\d.]+), ([\d.]+) and ([\d.]+) of .*?without it ([\d.]+), ([\d.]+) and (\d\.\d+)", page, re.S
    )
    assert said and [*said.groups()] == with_one + without


def test_the_counts_are_right() -> None:
    (count,) = re.findall(r"`hso-jax models` lists (\d+)", README)
    assert int(count) == len(hso_jax.noise.PRESETS)

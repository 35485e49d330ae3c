"""`choose`: what is best is found by running it, within the budget, resumable, on pipelines and bare models."""

from __future__ import annotations

import importlib
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from closed_form import Network, latents
from marks import slow_but
from pipelines import family_of

import bridge
from bridge import choose, choose_denoiser
from bridge.sampling import converged
from bridge.tuning import models
from bridge.tuning.candidates import Candidate, candidates, is_rule
from bridge.tuning.race import Measured, interval, race, rungs, sure
from hso_jax import Schedule, load, preset, save

SD, N = preset("sd15"), 4
SMALL: dict[str, Any] = {"latents": latents(), "teacher_steps": 12, "samples": 6, "budget": 500}
LITTLE: dict[str, Any] = {"teacher_steps": 8, "samples": 2, "budget": 140}
pytestmark = pytest.mark.filterwarnings("ignore:the schedule (has coefficients|is for solver):UserWarning")


def small(network: Any = None, nfe: Any = N, **options: Any) -> bridge.Chosen:
    return choose_denoiser(network or Network(), SD, nfe, **{**SMALL, **options})


@pytest.fixture(scope="module")
def found() -> bridge.Chosen:
    return small()


class Table:
    """A judge that knows every candidate's error on every noise."""

    def __init__(self, errors: Any, nfe: int = 1) -> None:
        self.table, self.spent = np.asarray(errors, np.float64), 0
        self.list = [Candidate(f"rule {i}", SimpleNamespace(i=i, nfe=nfe)) for i in range(len(self.table))]  # type: ignore[arg-type]

    def errors(self, schedule: Any, rows: Any) -> np.ndarray:
        self.spent += schedule.nfe * len(rows)
        return self.table[schedule.i, list(rows)]

    def race(self, budget: int) -> list[str]:
        return [m.name for m in race(self, self.list, range(self.table.shape[1]), budget)]  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [20, 61, 200, 1000, 10**6])
def test_a_race_keeps_its_budget_and_ends_with_the_best(budget: int) -> None:
    rng = np.random.default_rng(budget)
    table = Table(np.arange(1, 41)[:, None] * rng.uniform(0.9, 1.1, (1, 16)), nfe=2)
    ranked = table.race(budget)
    assert ranked[0] == "rule 0" and table.spent <= budget
    assert len(ranked) == min(40, len(set(ranked))) and (budget < 1000 or len(ranked) == 40)


@pytest.mark.parametrize(("width", "noises", "samples"), [(1, 8, 8), (150, 12, 130), (150, 32, 10**6), (3, 2, 9)])
def test_rounds_narrow_and_never_cost_more(width: int, noises: int, samples: int) -> None:
    rounds = list(rungs(width, noises, samples))
    cost = sum(k * (n - m) for (k, n), m in zip(rounds, [0, *(n for _, n in rounds)], strict=False))
    assert cost <= samples and rounds[0][1] == 1 and rounds[0][0] <= width
    assert all(a >= b and m < n for (a, m), (b, n) in itertools.pairwise(rounds))
    assert rounds[-1][1] == noises or rounds[-1][0] == 1


def test_ties_go_to_the_more_promising() -> None:
    assert Table(np.ones((9, 8))).race(10**6)[0] == "rule 0"


def test_what_is_not_finite_never_wins() -> None:
    errors = np.arange(1.0, 10.0)[:, None] * np.ones((9, 8))
    errors[0, 0], errors[1, 3], errors[2] = math.nan, math.inf, -math.inf
    assert Table(errors).race(10**6)[0] == "rule 3"


def test_no_more_noises_are_looked_at_once_it_is_sure() -> None:
    clear, rng = Table(np.outer([1.0, 9.0, 9.0, 9.0], np.ones(32))), np.random.default_rng(0)
    clear.race(10**6)
    assert clear.spent == 4 * 8
    alike = Table(rng.uniform(0.5, 1.5, (4, 32)))
    alike.race(10**6)
    assert alike.spent == 4 * 32
    assert not sure([Measured("", None, e) for e in alike.table])  # type: ignore[arg-type]


def test_the_best_to_compare_with_is_seen_on_as_many_noises() -> None:
    table = Table(np.outer([1.0, 1.01, 1.02, 1.03, 5.0, 6.0], np.random.default_rng(0).uniform(0.5, 1.5, 12)))
    ranked = race(table, table.list, range(12), 1000, beside=lambda name: name in ("rule 4", "rule 5"))  # type: ignore[arg-type]
    seen = {m.name: len(m.errors) for m in ranked}
    assert seen["rule 4"] == seen["rule 0"] > seen["rule 5"] and ranked[0].name == "rule 0"


def test_what_was_seen_on_more_noises_stands_first() -> None:
    """One that is the best on all noises, but not on the first, is left behind and does not stand before the winner."""
    errors = np.outer(np.arange(1.0, 13.0), np.ones(12)) * (1.0 + np.arange(12.0))
    table = Table(errors)
    ranked = race(table, table.list, range(12), 10**6)  # type: ignore[arg-type]
    lengths = [len(m.errors) for m in ranked]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1] == 1
    assert ranked[-1].mean < ranked[0].mean * 12 and all(
        m.errors.tolist() == errors[m.schedule.i, : len(m.errors)].tolist() for m in ranked
    )
    late = Table(np.vstack([errors, 20.0 * np.eye(1, 12, 0)]))  # 20 on the first noise, nothing on the others
    assert late.race(10**6)[0] == "rule 0"


def test_an_interval_holds_the_ratio_of_paired_errors() -> None:
    rng = np.random.default_rng(1)
    common = rng.exponential(size=400)
    one, other = (Measured("", None, scale * common * rng.uniform(0.8, 1.2, 400)) for scale in (0.25, 1.0))  # type: ignore[arg-type]
    ratio, low, high = interval(one, other)
    assert low < 0.5 < high and low < ratio < high and high - low < 0.04
    assert math.isnan(interval(one, Measured("", None, np.full(4, math.nan)))[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [SD, preset("sd3-medium"), preset("edm-cifar10")])
def test_every_candidate_is_for_the_model(noise: Any) -> None:
    every = candidates(noise, 5, 1.0)
    names = [c.name for c in every]
    assert len(set(names)) == len(names) and sum(map(is_rule, names)) > 30 and not is_rule(names[0])
    assert {"trailing with ddim", "flow-2 with unipc-3", "ays with dpmpp-2m", "tangent with unipc-3"} <= set(names)
    for name, schedule in every:
        assert schedule.nfe == 5 and schedule.end == "clean" and schedule.noise == noise.fingerprint(), name
        assert schedule.coefficients is not None or name.endswith(schedule.solver)
        assert schedule.lams[0] >= noise.noise_end - 1e-6 and (np.diff(schedule.lams[:5]) > 0).all()
    assert {c.schedule.solver for c in candidates(noise, 5, 1.0, "unipc-3")} == {"unipc-3"}


@pytest.mark.parametrize(("budget", "nfe"), [(331, 3), (650, [3, 4])])
def test_all_evaluations_are_counted_and_none_is_too_many(budget: int, nfe: Any) -> None:
    network, told = Network(), []
    chosen = small(network, nfe, budget=budget, progress=lambda *x: told.append(x))
    assert network.calls == chosen.evaluations <= budget
    assert [x[0] for x in told] == sorted(x[0] for x in told) and told[-1][0] <= budget
    assert set(chosen.schedules) == set(np.atleast_1d(nfe)) == set(chosen.measured)


def test_the_best_measured_is_installed_and_its_error_is_true(found: bridge.Chosen) -> None:
    best = found.measured[N][0]
    start = latents()[:6]
    made = bridge.sample(Network(), found.schedule, start)
    teacher = Schedule.from_t(SD, converged(SD, 12).t)
    wanted = bridge.sample(Network(), teacher, start, "dpmpp-2m")
    assert best.error == pytest.approx(float((made - wanted).square().mean().sqrt()), rel=1e-6)
    assert all(best.mean <= m.mean for m in found.measured[N] if len(m.errors) == len(best.errors))
    ((what, (ratio, low, high)),) = found.against(N).items()
    assert found.rule(N).name in what and 0 < low <= ratio <= high
    assert best.name in str(found) and best.name in found.table(N) and "converged samples of 12 steps" in str(found)


def test_what_it_was_chosen_on_stands_in_the_file(found: bridge.Chosen, tmp_path: Path) -> None:
    save(found.schedule, tmp_path / "s.json")
    (read,) = load(tmp_path / "s.json")
    assert read == found.schedule and read.origin.tuned is not None
    assert read.origin.tuned["chosen"] == found.measured[N][0].name and read.origin.tuned["samples"] == 6
    found.plot(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000 and json.dumps(found.plain())


def test_an_interrupted_one_goes_on_to_the_same_bytes(found: bridge.Chosen, tmp_path: Path) -> None:
    whole, file, spent = tmp_path / "whole.json", tmp_path / "resumed.json", Network()
    assert small(checkpoint=whole).plain() == found.plain()
    for place in (100, 260, 420):

        def stop(evaluations: int, budget: int, error: Any, place: int = place) -> None:
            if evaluations >= place:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            small(spent, checkpoint=file, progress=stop)
    again = small(spent, checkpoint=file)
    assert again.plain() == found.plain() and again.schedule == found.schedule
    assert file.read_bytes() == whole.read_bytes() and spent.calls == found.evaluations
    assert small(spent, checkpoint=file).schedule == found.schedule and spent.calls == found.evaluations
    with pytest.raises(ValueError, match="made with other arguments"):
        small(checkpoint=file, budget=501)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_checkpoint_of_other_schedules_of_the_same_names_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline's own schedule may have been replaced since, or those that are shipped."""
    module, file = importlib.import_module("bridge.tuning.choose"), tmp_path / "c.json"
    with pytest.raises(KeyboardInterrupt):
        small(checkpoint=file, progress=interrupt)
    text = file.read_text()

    def moved(*given: Any) -> list[Candidate]:
        first, *rest = candidates(*given)
        return [first._replace(schedule=rest[0].schedule), *rest]

    monkeypatch.setattr(module, "candidates", moved)
    with pytest.raises(ValueError, match=r"made with other arguments: steps\.4 was"):
        small(checkpoint=file)
    assert file.read_text() == text


def test_several_numbers_of_steps_share_the_converged_samples() -> None:
    chosen = small(nfe=[3, 5])
    assert chosen.samples == 6 and {n: s.nfe for n, s in chosen.schedules.items()} == {3: 3, 5: 5}
    assert "N = 3" in str(chosen) and "N = 5" in str(chosen)
    with pytest.raises(ValueError):
        _ = chosen.schedule


def test_a_network_that_fails_at_some_levels_still_gets_an_answer() -> None:
    class Fails(Network):
        def __call__(self, x: torch.Tensor, level: Any) -> torch.Tensor:
            found = super().__call__(x, level)
            return found * math.nan if 3 < level.sigma / level.alpha < 4 else found

    class Late(Fails):
        def __call__(self, x: torch.Tensor, level: Any) -> torch.Tensor:
            return Network.__call__(self, x, level) if self.calls < 72 else super().__call__(x, level)

    chosen = small(Late())
    assert math.isfinite(chosen.measured[N][0].error) and any(m.error == math.inf for m in chosen.measured[N])
    with pytest.raises(ValueError, match=r"converged samples .* are not finite"):
        small(Fails())


@pytest.mark.slow
def test_a_condition_and_a_solver_are_the_caller_s() -> None:
    seen: list[int] = []
    network = Network()

    def conditioned(x: torch.Tensor, level: Any, label: torch.Tensor) -> torch.Tensor:
        seen.extend(label.tolist())
        return network(x, level) * (1.0 + 0.1 * label[:, None, None, None])

    chosen = small(conditioned, condition=torch.arange(24) % 3, solver="UniPC", guidance=7.5)
    assert set(seen) == {0, 1, 2} and {m.schedule.solver for m in chosen.measured[N]} == {"unipc-2"}
    assert chosen.schedule.guidance == 7.5


BAD: list[tuple[dict[str, Any], str]] = [
    ({"budget": 200}, "budget is 200; 6 converged samples of 12 steps and 12 candidates"),
    ({"nfe": []}, "nfe"),
    ({"nfe": 0}, "nfe"),
    ({"nfe": 12}, "nfe is 12 and teacher_steps 12"),
    ({"solver": "heun"}, "heun"),
    ({"samples": 1}, "samples"),
    ({"samples": 30, "budget": 5000}, "latents has 24 samples; give 30"),
    ({"latents": [1.0]}, "latents is"),
    ({"condition": [1]}, "condition is"),
    ({"guidance": -1.0}, "guidance"),
    ({"batch": 0}, "batch"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused_before_any_evaluation(options: dict[str, Any], message: str) -> None:
    network = Network()
    with pytest.raises(ValueError, match=message):
        small(network, **options)
    assert network.calls == 0


def built(kind: str) -> tuple[Any, dict[str, Any], list[int]]:
    family = family_of(kind)
    pipe, calls = family.build(0), [0]
    getattr(pipe, family.network).register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    return pipe, {k: v for k, v in family.call.items() if k != "prompt"}, calls


def made(pipe: Any, prompt: str, seed: int, steps: int, call: dict[str, Any]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": steps, "generator": generator, "output_type": "latent", "return_dict": False}
    return pipe(prompt=prompt, **options, **call)[0].float()


@pytest.mark.parametrize(
    "kind", slow_but(["StableDiffusionPipeline"], ["StableDiffusionPipeline", "FluxPipeline", "own solver"])
)
def test_what_was_measured_is_what_the_pipeline_makes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, call, calls = built("StableDiffusionPipeline" if kind == "own solver" else kind)
    if kind == "own solver":  # as pipelines whose scheduler takes arguments of its own
        pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipe.scheduler.config)
        monkeypatch.setattr(models.TableScheduler, "from_schedule", refuse)
    before = pipe.scheduler
    chosen = choose(pipe, 3, prompts=["a fox", "rain"], batch=1, **LITTLE, **call)
    assert calls[0] == chosen.evaluations <= 140 and pipe.scheduler is before
    best, now = chosen.measured[3][0], chosen.current[3]
    assert now is not None and now.name.startswith("as it is") and len(now.errors) == 2
    if kind == "own solver":
        assert {m.schedule.solver for m in chosen.measured[3]} == {"unipc-2"}
    rows = list(enumerate(["a fox", "rain"]))[: len(best.errors)]
    teacher = converged(bridge.noise_schedule_of(pipe), 8)
    solver = "unipc-2" if kind == "own solver" else "dpmpp-2m"
    bridge.install(pipe, Schedule.from_t(bridge.noise_schedule_of(pipe), teacher.t, origin=bridge_origin(solver)))
    wanted = torch.cat([made(pipe, prompt, seed, 8, call) for seed, prompt in rows])
    pipe.scheduler = before
    bridge.install(pipe, chosen.schedule)
    samples = torch.cat([made(pipe, prompt, seed, 3, call) for seed, prompt in rows])
    error = float((samples - wanted).square().mean().sqrt())
    assert error == pytest.approx(best.error, rel=2e-2)


def refuse(*args: Any, **options: Any) -> Any:
    raise ValueError("works with its own scheduler alone")


def bridge_origin(solver: str) -> Any:
    from hso_jax.schedule import Origin

    return Origin(method="converged", solver=solver)


def test_a_fixed_pipeline_refuses_another_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, call, calls = built("StableDiffusionPipeline")
    monkeypatch.setattr(models.TableScheduler, "from_schedule", refuse)
    with pytest.raises(ValueError, match="works with its own alone, 'ddim'"):
        choose(pipe, 3, solver="unipc-3", **LITTLE, **call)
    assert calls == [0]


def test_guidance_reaches_the_pipeline_and_one_prompt_will_do() -> None:
    pipe, call, _ = built("StableDiffusionPipeline")
    free, guided = (choose(pipe, 3, prompts=["a fox"], guidance=w, **LITTLE, **call) for w in (1.0, 7.5))
    assert (free.schedule.guidance, guided.schedule.guidance) == (1.0, 7.5)
    assert free.measured[3][0].errors.tolist() != guided.measured[3][0].errors.tolist()
    assert guided.schedule.origin.tuned["pipeline"] == "StableDiffusionPipeline"


@pytest.mark.slow
def test_image_to_image_is_chosen_for_the_steps_that_are_taken() -> None:
    pipe, call, calls = built("StableDiffusionImg2ImgPipeline")
    call["strength"] = 0.6
    chosen = choose(pipe, 6, prompts=["a fox"], batch=1, **{**LITTLE, "budget": 160}, **call)
    assert chosen.schedule.nfe == 6 and calls[0] == chosen.evaluations <= 160
    assert chosen.schedule.lams[-3] == pytest.approx(float(bridge.noise_schedule_of(pipe).lam(0.6)), abs=1e-6)
    with pytest.raises(ValueError, match="no step of 6 is taken"):
        choose(pipe, 6, prompts=["a fox"], **LITTLE, **{**call, "strength": 0.1})


def test_optimize_pipeline_measures_where_prompts_are_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pipe, call, calls = built("StableDiffusionPipeline")
    before = pipe.scheduler
    options = {"budget": 300, "call": call, "checkpoint": tmp_path / "c.json"}
    schedule = bridge.optimize_pipeline(pipe, 3, prompts=["a fox"], **options)
    said, spent = capsys.readouterr().err, calls[0]
    assert "(measured)\ncall:" in said and "of the error of the pipeline as it is (leading with ddim)" in said
    assert spent and bridge.schedule_of(pipe) is not None and "Measured: " in said
    exec(said.partition("undo:   ")[2].partition("\n")[0], {"pipe": pipe, "bridge": bridge})
    assert type(pipe.scheduler) is type(before)
    assert bridge.optimize_pipeline(pipe, 3, prompts=["a fox"], **options) == schedule and calls[0] == spent
    with pytest.raises(ValueError, match="method 'recommend' does not take budget"):
        bridge.optimize_pipeline(pipe, 3, budget=300)
    pipe.scheduler = diffusers.LCMScheduler.from_config(before.config)
    assert bridge.optimize_pipeline(pipe, 4, prompts=["a fox"]).method == "own-lcm" and calls[0] == spent

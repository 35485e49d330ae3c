"""What is recommended: never worse by prediction than what it is compared with, and said why."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from marks import slow_but

from hso_jax import Lane, Schedule, SolverError, baseline, preset, recommend, zoo
from hso_jax.checks import check_guidance
from hso_jax.noise import PRESETS, discrete, edm, flow
from hso_jax.schedule_file import select
from hso_jax.shipped import expected_gain
from hso_jax.shipped import recommend as module
from hso_jax.shipped.recommend import MARGIN, OWN, PREFERRED, SHIPPED, CurrentSampling
from hso_jax.shipped.zoo import HSO, MAX_NFE, RULES, SOLVERS, nearest_guidance, rule_errors
from hso_jax.solvers import NONSTATIONARY

MODELS = ("sd15", "sdxl", "sd21", "pixart-alpha", "edm-cifar10", "sd3-medium", "flux-dev", "qwen-image", "cogvideox-5b")


@pytest.mark.parametrize("model", slow_but(("sdxl", "edm-cifar10", "flux-dev"), MODELS))
def test_it_is_never_worse_than_what_there_is(model: str) -> None:
    """Than any usual rule that begins at the noise end, and any solver's own schedule, at any N; but for UniPC-3's."""
    noise, weight = preset(model), PRESETS[model].guidance
    for nfe in (1, 2, 4, 6, 9, 12, MAX_NFE):
        best = recommend(model, nfe)
        assert best.error is not None and best.better is None and best.guidance == weight and best.distilled is None
        assert set(best.errors["ddim"]) <= {SHIPPED, HSO, *RULES}
        begins = {rule: baseline(rule, noise, nfe).t[0] for rule in best.errors["ddim"] if rule in RULES}
        late = {HSO, *(rule for rule, t in begins.items() if t < float(noise.t_max) - 1e-3)}
        for solver in SOLVERS:
            rows = {SHIPPED: zoo(model, nfe, solver).error, **rule_errors(noise, nfe, weight, solver)}
            assert dict(best.errors[solver]) == rows
            least = min(error for name, error in rows.items() if name not in late)
            preferred = best.solver == PREFERRED and weight == 1.0
            room = 1.0 / (1.0 - MARGIN) if preferred else 1.0 if best.solver == NONSTATIONARY else 1.002
            assert best.error <= least * room, (nfe, solver)
            kept = recommend(model, nfe, solver=solver)
            assert kept.solver == solver and kept.error is not None and kept.error <= 1.002 * least
            assert kept.method not in late
            assert kept.better == (best.solver if best.error < kept.error else None)


def test_unipc_3_is_preferred_without_guidance() -> None:
    """Unless another solver is predicted to have a tenth less error."""
    close, far = ({"ddim": {SHIPPED: 2.0}, "dpmpp-2m": {SHIPPED: e}, "unipc-3": {SHIPPED: 1.0}} for e in (0.95, 0.85))
    assert [module._best_solver(close, 6, w) for w in (1.0, 2.0)] == ["unipc-3", "dpmpp-2m"]
    assert [module._best_solver(far, 6, w) for w in (1.0, 2.0)] == ["dpmpp-2m", "dpmpp-2m"]


def test_what_it_names_is_what_it_returns() -> None:
    for nfe in (2, 6, 14):
        best = recommend("sdxl", nfe)
        assert isinstance(best.schedule, Schedule) and best.schedule.nfe == best.nfe == nfe
        assert (best.schedule.solver, best.schedule.guidance, best.schedule.method) == (best.solver, 5.0, best.method)
        assert best.schedule.error == best.error == best.errors[best.solver][SHIPPED]
        assert best.schedule == zoo("sdxl", nfe, best.solver)
        assert best.reason == recommend("sdxl", nfe, guidance=5.0).reason
        assert best.solver in best.reason and f"N = {nfe} and guidance 5" in best.reason
        assert best.solver in repr(best) and "sdxl" in repr(best)


ROW = {"offset": 0.0, "slope": 0.5, "low": -0.3, "high": 0.2, "networks": 9, "coverage": 0.8}


@pytest.fixture
def gained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A calibration of gains that a test may change."""
    calibration = {"kinds": {"known": ROW, "free": ROW}, "free_pays": {"4": True, "8": False}}
    monkeypatch.setattr(expected_gain, "table", lambda: calibration)
    return calibration


def test_free_coefficients_are_taken_where_networks_gained(gained: dict[str, Any]) -> None:
    for model in ("sdxl", "sd15", "flux-schnell", "sd3-medium"):
        for nfe in (2, 4, 6, 7, 8, 12):
            found = recommend(model, nfe, distilled=False)
            known = min(min(found.choices[s].values()) for s in SOLVERS)
            free = found.choices.get(NONSTATIONARY, {}).get(SHIPPED, np.inf)
            assert (found.solver == NONSTATIONARY) == (nfe <= 6 and free < known)
            assert ("networks gained nothing" in found.reason) == (nfe > 6 and free < known)
            assert recommend(model, nfe, solver=NONSTATIONARY, distilled=False).solver in (NONSTATIONARY, found.solver)
    assert "networks gained nothing" in recommend("sdxl", 8, solver=NONSTATIONARY).reason


def test_a_kept_solver_is_told_of_a_better_one(gained: dict[str, Any]) -> None:
    kept, best = recommend("sdxl", 6, solver="euler", guidance=5), recommend("sdxl", 6)
    assert kept.solver == "ddim" and kept.better == best.solver and best.better is None
    assert f"By prediction {best.solver} has less error." in kept.reason and "By prediction" not in best.reason


@pytest.mark.parametrize(
    ("model", "solver", "rule"),
    [("sdxl", "dpmpp-2m", "trailing"), ("flux-dev", "ddim", "trailing"), ("edm-cifar10", "dpmpp-2m", "karras")],
)
def test_the_gain_is_told_against_the_usual_choice(gained: dict[str, Any], model: str, solver: str, rule: str) -> None:
    found = recommend(model, 8)
    assert found.expected is not None and found.expected.networks == 9
    assert found.expected.ratio == pytest.approx((found.error / found.errors[solver][rule]) ** 0.5)
    assert found.expected.words(f"the usual {solver} with {rule}") in found.reason
    assert "choose by measuring or tune" in found.reason
    gained["kinds"]["known"] = {**ROW, "offset": 2.0}
    assert f"times the error of the usual {solver}" in found.reason and "before you change anything" in found.reason


def test_no_prediction_is_told_as_a_gain() -> None:
    """Predicted errors stay in `errors`; the words have the expected gain alone."""
    for model in ("sdxl", "flux-dev"):
        found = recommend(model, 6)
        told = {f"{error:.3g}" for rows in found.errors.values() for error in rows.values()}
        assert not told & set(found.reason.replace(".", ". ").split())


def test_the_best_rule_begins_at_the_noise_end() -> None:
    found = recommend("pixart-alpha", 1)
    assert found.best_rule is not None
    solver, rule = found.best_rule
    begins = {r: baseline(r, preset("pixart-alpha"), 1).t[0] for r in found.errors["ddim"] if r in RULES}
    allowed = {r for r, t in begins.items() if t >= float(preset("pixart-alpha").t_max) - 1e-3}
    assert rule in allowed and "leading" not in allowed
    assert found.errors[solver][rule] == min(found.errors[s][r] for s in SOLVERS for r in allowed)


def test_the_nearest_shipped_weight_is_taken_and_named() -> None:
    assert nearest_guidance(preset("sdxl"), 6.0) == 5.0 and nearest_guidance(preset("sdxl"), 6.5) == 7.5
    assert nearest_guidance(preset("sdxl"), 0.0) == 1.0
    found = recommend("sdxl", 6, guidance=6)
    assert found.guidance == 5.0 and "the nearest to 6" in found.reason
    assert recommend(preset("sdxl"), 12).guidance == 1.0


def test_another_rule_is_taken_where_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.rule_errors
    better = {"karras": 1e-3, HSO: 1e-4}  # HSO's begin below the noise end
    changed = lambda *at: {**real(*at), **(better if at[-1] == "unipc-3" else {})}  # noqa: E731
    monkeypatch.setattr(module, "rule_errors", changed)
    found = recommend("sdxl", 6)
    assert (found.solver, found.method, found.error) == ("unipc-3", "karras", 1e-3)
    assert found.schedule.solver == "unipc-3" and found.schedule.error == 1e-3 and found.schedule.guidance == 5.0
    assert "karras" in found.reason


def test_a_custom_noise_schedule_may_have_no_rules() -> None:
    noise = preset("sdxl")
    levels = np.exp(2.0 * np.asarray(noise.lam(np.arange(1, 1001) / 1000)))
    bent = levels.copy()
    bent[1:-1] *= 1.0 + 0.01 * np.sin(np.arange(998) / 30.0)
    found = recommend(discrete(bent / (1.0 + bent)), 6, guidance=5.0)
    assert set(found.errors["ddim"]) == {SHIPPED} and found.best_rule is None and found.expected is None
    assert "What that gains over the usual rules is not known." in found.reason
    assert found.solver == recommend("sdxl", 6).solver


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recommend("sdlx", 6), "did you mean sdxl"),
        (lambda: recommend("sdxl", 21), "N = 1 to 20"),
        (lambda: recommend("sdxl", 0), "nfe"),
        (lambda: recommend("sdxl", 6, guidance=-1), "guidance"),
        (lambda: recommend("sdxl", 6, solver="heun"), "heun.*SolverError"),
        (lambda: recommend("sdxl", 6, solver="dpmp-2n"), "did you mean dpmpp-2m"),
        (lambda: recommend("sdxl", 6, distilled="lightnig"), "did you mean lightning"),
        (lambda: recommend(edm(0.01, 11.0), 6), "no preset has its noise range.*SolverError"),
        (lambda: recommend(6, 6), "noise is 6"),
        (lambda: recommend("flux-dev", 14, solver="nonstationary"), "N = 2 to 12"),
    ],
)
def test_a_bad_value_names_the_fix(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_distilled_models_keep_their_grid() -> None:
    found = recommend("flux-schnell", 4)
    assert found.distilled == "schnell" and found.solver == OWN and found.error is None and not found.errors
    np.testing.assert_allclose(found.schedule.t, [1.0, 0.75, 0.5, 0.25])
    assert "Schnell" in found.reason and "own-schnell" in repr(found)
    assert recommend("flux-schnell", 4, distilled=False).solver != OWN and recommend("z-image", 8).distilled is None
    assert recommend("sdxl", 4, distilled="lightning").schedule.integer_timesteps().tolist() == [999, 749, 499, 249]
    assert recommend("sdxl", 4, distilled=True).distilled == "few-step"
    assert recommend(flow(6.0), 8, distilled="turbo").schedule.sampler_sigmas()[1] == pytest.approx(42 / 43)
    assert "for N = 7, 8; for N = 4 these are a guess" in recommend("ltx-video", 4, distilled="ltx").reason
    assert "guess" not in recommend("ltx-video", 8, distilled="ltx").reason


def test_few_steps_without_guidance_mean_distilled() -> None:
    found = recommend("sdxl", 4, guidance=0)
    assert found.distilled == "few-step" and "distilled=False" in found.reason
    assert recommend("sdxl", 4, guidance=1, distilled=False).solver != OWN
    assert recommend("sdxl", 8, guidance=1).distilled == "few-step"  # the most that such models are used with
    assert recommend("sdxl", 9, guidance=1).solver != OWN  # too many for one
    assert recommend("flux-dev", 4).solver != OWN and recommend(flow(3.0), 4).solver != OWN  # used without guidance
    assert recommend(flow(3.0), 4, guidance=1, usual=7.0).distilled == "few-step"


def test_nodes_below_the_noise_end_are_not_taken() -> None:
    """PixArt's first level is far out: a rule that begins later has little error of the model, by prediction."""
    found = recommend("pixart-alpha", 1)
    assert found.errors["ddim"]["leading"] < found.error and found.method == SHIPPED
    for weight in (1, 5):
        found = recommend("sdxl", 6, guidance=weight, solver="ddim", distilled=False)
        assert found.method == SHIPPED and found.errors["ddim"][HSO] < found.error


@pytest.mark.parametrize("guidance", [0, 0.0, 0.5, 1, 1.0])
def test_guidance_up_to_1_is_none(guidance: float) -> None:
    """As in diffusers, whose pipelines evaluate twice for guidance_scale > 1 alone."""
    method = SolverError("ddim", guidance=guidance)
    assert check_guidance(guidance) == check_guidance(guidance, 7.5) == 1.0 and check_guidance(None, 7.5) == 7.5
    assert zoo("sdxl", 6, guidance=guidance) == zoo("sdxl", 6, guidance=1)
    assert all(
        recommend("sdxl", n, guidance=guidance).reason == recommend("sdxl", n, guidance=1).reason for n in (4, 12)
    )
    assert nearest_guidance(preset("sdxl"), guidance) == 1.0
    assert method.check(Lane(preset("sdxl"), 4, method=method)).method.guidance == 1.0
    shipped = [zoo("sdxl", 6, guidance=w) for w in (1, 5)]
    assert select(shipped, guidance=guidance) == shipped[0]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (preset("z-image"), {"guidance": 1.0, "usual": 4.0}),
        (flow(3.0, name="MODEL ZImage"), {"guidance": 1.0, "usual": 4.0}),
        ("z-image", {"guidance": 0}),
        *((name, {}) for name in ("z-image-turbo", "Z-Image-Turbo", "Tongyi-MAI/Z-Image-Turbo", "z_image_turbo")),
    ],
)
def test_few_steps_of_z_image_have_shift_3(model: Any, options: dict[str, float]) -> None:
    s = 1.0 - np.arange(8) / 8
    found = recommend(model, 8, **options)
    assert found.distilled in ("turbo", "few-step")
    np.testing.assert_allclose(found.schedule.sampler_sigmas(), [*(3.0 * s / (1.0 + 2.0 * s)), 0.0], rtol=1e-9)


def test_the_reason_is_made_from_the_fields() -> None:
    found = recommend("sdxl", 4, distilled="lcm")
    assert "you say so" in found.reason
    assert "its scheduler is X" in dataclasses.replace(found, told_by="its scheduler is X").reason


def test_a_pipeline_is_told_what_it_gains(gained: dict[str, Any]) -> None:
    best = recommend("sdxl", 8)

    def told(solver: str, nodes: str, error: float | None) -> str:
        now = CurrentSampling(solver, nodes, error)
        return dataclasses.replace(best, before=now, usual="by its pipeline").reason

    error = 2.0 * best.error
    reason = told("ddim", "leading", error)
    assert (
        reason.startswith("The pipeline now uses ddim with leading. Use ") and "Guidance 5: by its pipeline." in reason
    )
    assert expected_gain.expected_gain(1.0, 2.0, "ddim").words("the pipeline's ddim with leading") in reason
    assert "That is what the pipeline has." in told(best.solver, best.method, error)
    for unknown in (("ddim", "its own", None), ("ddim", "solver-error for N = 4", error), ("ddim", "leading", None)):
        assert "What that gains over what the pipeline has is not known." in told(*unknown)


@pytest.mark.parametrize(("loras", "said"), [(("default_0",), "An unnamed LoRA"), (("style",), "A LoRA"), ((), "")])
def test_an_active_lora_that_tells_nothing_is_named(loras: tuple[str, ...], said: str) -> None:
    few, many = (dataclasses.replace(recommend("sdxl", n), loras=loras) for n in (8, 9))
    assert few.reason.startswith(said) and ("`distilled=`" in few.reason) == bool(loras)
    assert "LoRA" not in many.reason  # too many steps for a distilled model

"""Solvers, rules and presets by the names that users know; what is none of them is answered with one that works."""

from __future__ import annotations

import re

import numpy as np
import pytest

import hso_jax
from hso_jax import solvers
from hso_jax.baselines import BASELINES, baseline, rule_named
from hso_jax.cli import main
from hso_jax.noise import preset
from hso_jax.shipped.zoo import CHOICES

SAME = {
    "ddim": "euler, Euler, DDIM, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, DDIMScheduler",
    "dpmpp-2m": "dpmpp_2m, DPM++ 2M, DPM++ 2M Karras, dpmpp2m, DPMSolverMultistepScheduler, DPM++ 2M SGM Uniform",
    "dpmpp-3m": "dpmpp_3m, DPM++ 3M",
    "unipc-2": "unipc, uni_pc, UniPC, UniPCMultistepScheduler, unipc_2",
    "unipc-3": "uni_pc_bh2, UniPC-3, unipc3",
    "heun": "Heun, HEUN, HeunDiscreteScheduler",
    "heun-flow": "FlowMatchHeunDiscreteScheduler, heun_flow",
    "nonstationary": "NonstationaryScheduler, Nonstationary",
}
NOISY = {
    "euler": "euler_ancestral, Euler a, EulerAncestralDiscreteScheduler, lcm, LCMScheduler, TCD, ddpm, DDPMScheduler",
    "heun": "dpm_2_ancestral, DPM2 a Karras, KDPM2AncestralDiscreteScheduler",
    "dpmpp-2m": "dpmpp_sde, DPM++ SDE Karras, dpmpp_2m_sde_gpu, DPM++ 2M SDE Exponential, DPM++ 2S a, er_sde",
    "dpmpp-3m": "dpmpp_3m_sde, DPM++ 3M SDE Karras",
    "unipc-3": "sa_solver, SASolverScheduler",
}
OTHER = {
    "heun": "dpm_2, DPM2 Karras, KDPM2DiscreteScheduler, heunpp2",
    "dpmpp-2m": "lms, LMS Karras, deis, ipndm, PNDM, PLMS, dpm_fast, DPM adaptive, DEISMultistepScheduler",
}


@pytest.mark.parametrize("solver", SAME)
def test_a_solver_goes_by_the_names_of_other_programs(solver: str) -> None:
    for name in SAME[solver].split(", "):
        assert solvers.canonical(name, solvers.EVERY) == solver


@pytest.mark.parametrize(
    ("table", "why", "noisy"), [(NOISY, "adds noise at each step", True), (OTHER, "not among", False)]
)
def test_other_solvers_are_answered_with_the_nearest(table: dict[str, str], why: str, noisy: bool) -> None:
    for instead, names in table.items():
        for name in names.split(", "):
            assert solvers.adds_noise(name) == noisy
            with pytest.raises(ValueError, match=f"{why}.*{instead!r}") as caught:
                solvers.canonical(name)
            assert len(str(caught.value)) <= 200


def test_what_is_named_instead_can_be_used_there() -> None:
    for name in (*solvers.STOCHASTIC, *solvers.UNKNOWN):
        with pytest.raises(ValueError, match="the nearest one") as caught:
            solvers.canonical(name, CHOICES)
        (near,) = re.findall(r": '(.*)'", str(caught.value))
        assert solvers.canonical(near, CHOICES) in CHOICES


@pytest.mark.parametrize("name", ["adams", "", "karras", "Euler x", None, 3, "x" * 9999])
def test_an_unknown_name_gets_the_list_of_the_door(name: object) -> None:
    for known in (tuple(solvers.SOLVERS), CHOICES):
        with pytest.raises(ValueError, match=f"use one of {', '.join(known)}$"):
            solvers.canonical(name, known)  # type: ignore[arg-type]


@pytest.mark.parametrize(("command", "names"), [("recommend", CHOICES), ("zoo", CHOICES), ("search", solvers.EVERY)])
def test_the_help_has_the_list_of_the_messages(
    command: str, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    assert ",".join(names) in "".join(capsys.readouterr().out.split())


def test_every_door_takes_them() -> None:
    noise = preset("sd15")
    assert hso_jax.zoo("sd15", 6, "DPM++ 2M").solver == "dpmpp-2m"
    assert hso_jax.recommend("sd15", 6, solver="uni_pc_bh2").solver == "unipc-3"
    (lane,) = hso_jax.lanes([noise], [4], method=hso_jax.SolverError("dpmpp_2m", compare=("Euler",)))
    assert lane.method.solver == "dpmpp-2m" and lane.method.compare == ("ddim",)  # type: ignore[union-attr]
    ours = hso_jax.schedule_file.select([hso_jax.zoo("sd15", 6, s) for s in CHOICES[:3]], solver="DPM++ 2M")
    assert ours.solver == "dpmpp-2m"
    assert main(["zoo", "--model", "sd15", "--solver", "DPM++ 2M Karras", "--nfe", "4", "--quiet"]) == 0
    assert solvers.find("Heun").calls == 2


RULES = {
    "karras": "Karras",
    "sgm-uniform": "sgm_uniform, SGM Uniform",
    "trailing": "simple",
    "linspace": "normal",
    "leading": "ddim_uniform",
    "uniform-lam": "exponential",
    "linear-quadratic": "linear_quadratic",
    "ays": "Align Your Steps",
    "beta": "use_beta_sigmas",
    "ays-sdxl": "AYS SDXL",
}


def test_rules_go_by_other_names_too() -> None:
    assert {name: rule_named(name) for name in BASELINES} == {name: name for name in BASELINES}
    for rule, names in RULES.items():
        for name in names.split(", "):
            found = baseline(name, preset("sdxl"), 6)
            assert found.method == rule
            np.testing.assert_array_equal(found.t, baseline(rule, preset("sdxl"), 6).t)


@pytest.mark.parametrize(
    ("method", "call", "command"),
    [
        ("karras", "baseline('karras', noise, nfe)", "compare (all rules), recommend or zoo"),
        ("simple", "baseline('trailing', noise, nfe)", "compare (all rules), recommend or zoo"),
        ("zoo", "zoo(noise, nfe)", "zoo"),
        ("recommend", "recommend(noise, nfe)", "recommend"),
    ],
)
def test_what_searches_nothing_names_what_makes_it(
    method: str, call: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=re.escape(call)):
        hso_jax.search("sd15", 4, method=method)
    doors = {name: getattr(hso_jax, name) for name in ("baseline", "zoo", "recommend")}
    assert eval(call, {**doors, "noise": preset("sd15"), "nfe": 4}).nfe == 4
    assert main(["search", "--method", method]) == 2
    assert f"use hso-jax {command}\n" in capsys.readouterr().err


def test_lanes_take_the_names_of_presets() -> None:
    noise = preset("sd15")
    mixed = hso_jax.lanes(["ddpm-cifar10", noise], [4])
    assert [lane.noise.name for lane in mixed] == ["ddpm-cifar10", "sd15"]
    assert [lane.method.p for lane in mixed] == [1.0, 2.0]  # type: ignore[union-attr]
    (single,) = hso_jax.lanes("sd15", [4])
    assert single.noise.fingerprint() == noise.fingerprint()
    with pytest.raises(ValueError, match="did you mean sdxl"):
        hso_jax.lanes(["sdlx"], [4])

"""diffusers configs: as a mapping, a file or a folder; every family; what is missing, unknown or wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import problems
import pytest

from hso_jax.noise import beta_table, from_config

T = np.arange(1, 1000) / 1000
SD = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
DYNAMIC = {**FLOW, "use_dynamic_shifting": True}


def lam_of_betas(betas: np.ndarray) -> np.ndarray:
    return problems.lam_of_bar(np.cumprod(1.0 - betas))[:999]


def flow(shift: float) -> np.ndarray:
    return np.log((1 - T) / T) - np.log(shift)


ROOT = np.sqrt(problems.SD_TABLE)
CASES: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "zero SNR": (
        {**SD, "rescale_betas_zero_snr": True},
        problems.lam_of_bar((((ROOT - ROOT[-1]) * ROOT[0] / (ROOT[0] - ROOT[-1])) ** 2)[:-1]),
    ),
    "sd": (SD, problems.lam_of_bar(problems.SD_TABLE)[:-1]),
    "ddpm by default": ({"_class_name": "DDPMScheduler"}, lam_of_betas(np.linspace(1e-4, 0.02, 1000))),
    "lcm by default": ({"_class_name": "LCMScheduler"}, problems.lam_of_bar(problems.SD_TABLE)[:-1]),
    "kdpm2 by default": ({"_class_name": "KDPM2DiscreteScheduler"}, lam_of_betas(np.linspace(0.00085, 0.012, 1000))),
    "heun by default": ({"_class_name": "HeunDiscreteScheduler"}, lam_of_betas(np.linspace(0.00085, 0.012, 1000))),
    "cosine rule": (
        {"_class_name": "UniPCMultistepScheduler", "beta_schedule": "squaredcos_cap_v2"},
        lam_of_betas(beta_table("squaredcos_cap_v2")),
    ),
    "trained betas": (
        {"_class_name": "DDIMScheduler", "trained_betas": np.linspace(0.001, 0.03, 1000).tolist()},
        lam_of_betas(np.linspace(0.001, 0.03, 1000)),
    ),
    "flow, no shift": (FLOW, flow(1.0)),
    "flow, shift": ({**FLOW, "shift": 5.0}, flow(5.0)),
    "flow, the other class's key": ({**FLOW, "flow_shift": 2.0}, flow(2.0)),
    "flow, both keys": ({**FLOW, "shift": 5.0, "flow_shift": 2.0}, flow(5.0)),
    "flow, dynamic": ({**FLOW, "use_dynamic_shifting": True, "shift": 3.0}, flow(np.exp(1.15))),
    "flow, nulls": ({**FLOW, "use_dynamic_shifting": True, "base_shift": None, "max_shift": None}, flow(np.exp(1.15))),
    "dpm++ flow": (
        {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 2.0},
        flow(2.0),
    ),
    "edm": ({"_class_name": "EDMEulerScheduler"}, problems.CLOSED_FORMS["edm"].lam(T)),
    "ve": (
        {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01, "sigma_max": 50.0},
        problems.CLOSED_FORMS["ve"].lam(T),
    ),
    "vp sde": ({"_class_name": "ScoreSdeVpScheduler"}, problems.CLOSED_FORMS["linear-vp"].lam(T)),
}


@pytest.mark.parametrize("name", CASES)
def test_families(name: str) -> None:
    config, lam = CASES[name]
    noise = from_config(config)
    np.testing.assert_allclose(noise.lam(T), lam, rtol=0, atol=1e-8)
    assert noise.name == config["_class_name"]


@pytest.mark.parametrize("name", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
def test_cogvideox_divides_the_snr_by_three(name: str) -> None:
    wanted = problems.lam_of_bar(problems.SD_TABLE)[:-1] - 0.5 * np.log(3.0)
    for config in ({}, {"snr_shift_scale": 3.0}):
        np.testing.assert_allclose(from_config({"_class_name": name, **config}).lam(T), wanted, atol=1e-9)


def test_file_scheduler_folder_and_model_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-model" / "scheduler"
    folder.mkdir(parents=True)
    file = folder / "scheduler_config.json"
    file.write_text(json.dumps(SD))
    for place in (file, str(file), folder, tmp_path / "my-model"):
        noise = from_config(place)
        assert noise.fingerprint() == from_config(SD).fingerprint()
        assert noise.name == "my-model"
    assert from_config(file, name="mine").name == "mine"


KEYS: list[tuple[dict[str, Any], str, list[Any], str]] = [
    (SD, "beta_schedule", ["sigmoid", ["linear"]], "beta_schedule is .*sigmoid|linear.*; use one of linear"),
    (SD, "beta_start", ["0.1", float("nan"), None], "PNDMScheduler: beta_start is .*; need a finite number"),
    (SD, "beta_end", [True, 1.5], "beta_end is True; need a finite number|0.00085, 1.5"),
    (
        SD,
        "num_train_timesteps",
        [1, 0, "1000", 10.5, float("nan"), 10**400, True, None, {}],
        "need a whole number from",
    ),
    (FLOW, "num_train_timesteps", [2, 0, "1000", float("inf"), 1e30, [1000]], "num_train_timesteps is .*; need"),
    (SD, "trained_betas", [[0.1, float("nan"), 0.2]], r"trained_betas\[1\] is nan"),
    (
        SD,
        "trained_betas",
        [0.1, [0.1], [[0.1, 0.2]], ["0.1", "0.2"], "[0.1]", {}, [0.1, None]],
        r"trained_betas(\[\d\])? is .*; need",
    ),
    (SD, "rescale_betas_zero_snr", ["false", 0, None], "rescale_betas_zero_snr is .*; need true or false"),
    (SD, "use_flow_sigmas", ["false", 1, None], "use_flow_sigmas is .*; need true or false"),
    (SD, "snr_shift_scale", [0, -1.0, "3", True, 1e17, 1e400], "snr_shift_scale is .*; need"),
    (FLOW, "shift", [0, "3", True, 1e400, None, []], "FlowMatch.*: shift is .*; need a positive"),
    (FLOW, "use_dynamic_shifting", ["false"], "use_dynamic_shifting is 'false'; need true or false"),
    (DYNAMIC, "base_shift", ["x"], "base_shift is 'x'"),
    (DYNAMIC, "time_shift_type", [1], "time_shift_type is 1; use one of"),
    (DYNAMIC, "base_image_seq_len", [1.5, 4096], "base_image_seq_len"),
    (DYNAMIC, "max_shift", [1e6], "shift"),
    ({"_class_name": "EDMEulerScheduler"}, "sigma_min", [0], "sigma_min is 0"),
    ({"_class_name": "EDMEulerScheduler"}, "rho", [-1], "rho is -1"),
    ({}, "_class_name", [None, 7], "no `_class_name`"),
    ({}, "beta_start", [0.1], r"no `_class_name` \(its keys: beta_start\)"),
    ({}, "_class_name", ["VQDiffusionScheduler"], "VQDiffusionScheduler is not supported: it samples tokens"),
    ({}, "_class_name", ["FlashDDIMScheduler"], "'FlashDDIMScheduler' is not known; the nearest that is: DDIMS"),
    ({}, "_class_name", ["MyFlow"], "'MyFlow' is not known; the nearest that is: FlowMatchEulerDiscreteScheduler"),
    ({"_class_name": "Q"}, "prediction_type", ["flow_prediction"], "nearest that is: FlowMatchEuler"),
    ({"_class_name": "Q"}, "sigma_data", [0.5], "nearest that is: EDMEulerScheduler"),
    ({"_class_name": "Q"}, "beta_start", [0.1], "nearest that is: DDPMScheduler"),
]


@pytest.mark.parametrize(("config", "key", "values", "match"), KEYS)
def test_a_bad_value_is_named(config: dict[str, Any], key: str, values: list[Any], match: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=match):
            from_config({**config, key: value})


def test_bad_arguments() -> None:
    for length in (0, -1, 0.5, True, "4096", float("nan"), None):
        with pytest.raises(ValueError, match="image_seq_len is "):
            from_config(DYNAMIC, image_seq_len=length)  # type: ignore[arg-type]
    for config in (7, None, [1], b"sd", True):
        with pytest.raises(ValueError, match=r"config is .*; pass a mapping"):
            from_config(config)  # type: ignore[arg-type]


def test_a_whole_number_may_have_a_point() -> None:
    for config in (SD, FLOW):
        levels = from_config({**config, "num_train_timesteps": 500.0}).num_train_timesteps
        assert levels == 500 and type(levels) is int


def test_paths_that_hold_no_config(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder" / "scheduler_config.json").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for path, match in (
        (tmp_path / "nothing.json", "does not exist"),
        (tmp_path / "empty", r"no scheduler/scheduler_config\.json"),
        (tmp_path / "pipe", r"pipe is not a scheduler config: it is a pipe \(FIFO\)"),
        (Path("/dev/zero"), "/dev/zero is not a scheduler config: it is a device"),
        (tmp_path / "folder", "scheduler_config.json is not a scheduler config: it is a folder"),
        ("a\0b", "no path|does not exist"),
        ("x" * 5000, "no path|does not exist"),
    ):
        with pytest.raises(ValueError, match=match):
            from_config(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "bad.json is not a scheduler config: not valid JSON, or truncated"),
        ("[1]", "JSON list"),
        (b"\xff\xfe\x00", "bad.json is not a scheduler config: .*utf-8"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "not valid JSON"),
        ('{"_class_name": "DDIMScheduler", "beta_start": ' + "[" * 900 + "]" * 900 + "}", "beta_start is"),
        ('{"_class_name": "DDIMScheduler", "num_train_timesteps": 1' + "0" * 400 + "}", "num_train_timesteps is 1000"),
        ('{"_class_name": "DDIMScheduler", "num_train_timesteps": 1' + "0" * 5000 + "}", "not valid JSON"),
        ('{"_class_name": "DDIMScheduler", "beta_start": NaN}', "beta_start is nan"),
    ],
    ids=range(9),
)
def test_files_that_hold_no_config(content: str | bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=match):
        from_config(tmp_path / "bad.json")

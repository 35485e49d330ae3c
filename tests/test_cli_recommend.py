"""`hso-jax recommend`, and what the command line says where it was called otherwise than meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import hso_jax
from hso_jax.cli import main
from hso_jax.files import json_text
from hso_jax.noise import PRESETS


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def test_it_says_what_to_use_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--model", "sdxl", "--nfe", "6"]) == 0
    printed, best = capsys.readouterr().out, hso_jax.recommend("sdxl", 6)
    assert printed.startswith("sdxl, N = 6, guidance 5\nuse        ")
    assert " ".join(map(str, best.schedule.integer_timesteps())) in printed and best.reason in printed
    for rule in ("its own", "trailing", "karras", "ays", "beta-t", "hso"):
        assert f" {rule} " in printed, rule
    assert f"{best.error:.3g} <" in printed and not list(Path().iterdir())


def test_several_models_and_steps_go_into_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--model", "sdxl", "--model", "flux-dev", "--nfe", "4,6", "-o", "both.json"]) == 0
    kept = hso_jax.load("both.json")
    assert [(s.model, s.nfe) for s in kept] == [("sdxl", 4), ("sdxl", 6), ("flux-dev", 4), ("flux-dev", 6)]
    printed = capsys.readouterr()
    assert "wrote both.json" in printed.err and printed.out.count("predicted error") == 4


def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["recommend", "--model", "sdxl", "--nfe", "6", "--scheduler", "dpmpp-2m", "--guidance", "7", "--json"]
    assert main(args) == 0
    (found,) = json.loads(capsys.readouterr().out)
    same = hso_jax.recommend("sdxl", 6, guidance=7, solver="dpmpp-2m")
    assert found["solver"] == "dpmpp-2m" and found["guidance"] == 7.5 and found["error"] == same.error
    assert len(found["sigmas"]) == 7 and len(found["timesteps"]) == 6 and found["gain"] == same.gain > 0
    assert found["errors"]["ddim"]["trailing"] == same.errors["ddim"]["trailing"] and found["coefficients"] is None
    assert main(["recommend", "--model", "sdxl", "-o", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "hso-jax/schedules"


def test_the_shift_follows_the_picture_s_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    for tokens in (256, 4096):
        assert main(["recommend", "--model", "flux-dev", "--nfe", "6", "--image-seq-len", str(tokens), "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        model = hso_jax.preset("flux-dev", image_seq_len=tokens)
        assert found["timesteps"] == hso_jax.recommend(model, 6, guidance=1.0).schedule.timesteps.tolist()


def _folder(name: str, cls: str = "EulerDiscreteScheduler") -> None:
    config = {"_class_name": cls, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    Path(name, "scheduler").mkdir(parents=True)
    Path(name, "scheduler", "scheduler_config.json").write_text(json.dumps(config))


def test_a_folder_needs_its_guidance(capsys: pytest.CaptureFixture[str]) -> None:
    _folder("my-model")
    assert main(["recommend", "--model", "my-model"]) == 2
    assert "add --guidance W" in capsys.readouterr().err
    assert main(["recommend", "--model", "my-model", "--guidance", "5", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["timesteps"] == hso_jax.recommend("sdxl", 6).schedule.timesteps.tolist()


def test_distilled_folders_keep_their_grid(capsys: pytest.CaptureFixture[str]) -> None:
    _folder("plain-name", "LCMScheduler")
    _folder("sdxl-turbo")
    for name, steps, kind in (("plain-name", "999 759 499 259", "lcm"), ("sdxl-turbo", "999 749 499 249", "turbo")):
        assert main(["recommend", "--model", name, "--nfe", "4"]) == 0
        assert steps in (printed := capsys.readouterr().out) and "comes with" in printed
        assert main(["recommend", "--model", name, "--nfe", "4", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["distilled"] == kind
    assert main(["recommend", "--model", "sdxl-turbo", "--distilled", "no", "--guidance", "5"]) == 0
    assert "its own schedule" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("recomend", "command is 'recomend'; did you mean recommend?"),
        ("recommend --modle sdxl", "'--modle' is no option; did you mean --model?"),
        ("recommend --guidance x", "--guidance is 'x'; need a number"),
        ("recommend --model sdlx", "did you mean sdxl?"),
        ("recommend --scheduler dpmpp-2x", "did you mean dpmpp-2m?"),
        ("recommend --scheduler euler_ancestral", "name the nearest one without noise: 'euler'"),
        ("search --method zoo", "use hso-jax zoo"),
        ("recommend --scheduler heun", "hso-jax search --method solver-error --solver heun --guidance 7.5"),
        ("recommend --nfe 30", "hso-jax search --method solver-error"),
        ("recommend --nfe six", "write 4-20"),
        ("recommend extra", "'extra' is no argument"),
        ("search --method hsoo", "--method is 'hsoo'; did you mean hso?"),
        ("show", "file is missing"),
        ("", "COMMAND is missing"),
    ],
)
def test_what_was_meant_is_said(argv: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and said in printed.err and printed.err.count("\n") == 1
    assert "SolverError" not in printed.err and not printed.out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hso-jax {hso_jax.__version__}\n"


@pytest.mark.parametrize("command", [["recommend", "--nfe", "12"], ["recommend", "--nfe", "4"], ["zoo", "--nfe", "6"]])
def test_guidance_0_is_guidance_1(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for weight in ("0", "1"):
        assert main([*command, "--model", "sdxl", "--guidance", weight, "--json"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


@pytest.mark.parametrize("name", ["Z-Image-Turbo", "Tongyi-MAI/Z-Image-Turbo"])
def test_z_image_turbo_has_shift_3_by_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--model", name, "--nfe", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert found["distilled"] == "turbo" and found["sigmas"][1] == pytest.approx(21 / 22)


def _strict(text: str) -> object:
    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("model", PRESETS)
def test_all_json_is_json_for_every_preset(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("recommend", "zoo", "recommend --distilled lcm", "recommend --scheduler euler --guidance 1"):
        assert main([*command.split(), "--model", model, "--nfe", "1,4,20", "--json"]) == 0
        assert _strict(capsys.readouterr().out)
    Path("o.json").unlink(missing_ok=True)
    assert main(["zoo", "--model", model, "--nfe", "1,6", "-o", "o.json", "--quiet"]) == 0
    assert _strict(Path("o.json").read_text())
    assert main(["show", "o.json", "--as", "json"]) == 0
    assert _strict(capsys.readouterr().out) == _strict(Path("o.json").read_text())


def test_pure_noise_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--model", "cogvideox-2b", "--nfe", "6", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    sigmas = hso_jax.recommend("cogvideox-2b", 6).schedule.sampler_sigmas().tolist()
    assert sigmas[0] == float("inf") and found["sigmas"] == [None, *sigmas[1:]]


def test_models_and_compare_write_json(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["models"], ["compare", "--model", "cogvideox-2b", "--nfe", "4"]):
        assert main([*argv, "--json"]) == 0
        assert _strict(capsys.readouterr().out)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), np.float64("inf")])
def test_numbers_that_json_has_not_are_null_wherever_they_are(value: float) -> None:
    found = _strict(json_text({"a": [value, (1.0, {"b": value})], "c": "inf"}))
    assert found == {"a": [None, [1.0, {"b": None}]], "c": "inf"}

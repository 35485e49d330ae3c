"""The command line: the main job, what it writes, its exit codes and its care for what is there."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hso_jax
from hso_jax.cli import comparing, main, searches
from hso_jax.cli.arguments import parse_nfe

REQUIRED = {
    "model", "nfe", "layout", "end", "method", "solver", "t", "lams", "sigmas", "timesteps", "psi", "mep", "spf",
    "min_spacing", "result", "seed",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # the tests' own JAX is running: leave its settings alone
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


def _fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and "cache" not in p.parts}
    assert main(list(argv)) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and printed.err.startswith("error: ")
    assert before == {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and "cache" not in p.parts}
    return printed.err


def test_main_job_needs_no_argument(capsys: pytest.CaptureFixture[str]):
    assert main(["search"]) == 0
    schedules = hso_jax.load("schedules-sd21-base.json")
    assert [(s.layout, s.nfe) for s in schedules] == [(a, n) for a in ("node", "interval") for n in range(4, 21)]
    assert all(s.result == "converged" and s.min_spacing >= s.origin.d_min - 1e-12 for s in schedules)
    assert Path("schedules-sd21-base.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "959 708 376 29" in printed and "wrote schedules-sd21-base.json" in printed
    first = Path("schedules-sd21-base.json").read_bytes(), Path("schedules-sd21-base.png").read_bytes()
    assert main(["search"]) == 0  # what it wrote itself it may replace, and the same seed gives the same bytes
    assert first == (Path("schedules-sd21-base.json").read_bytes(), Path("schedules-sd21-base.png").read_bytes())


def test_json_on_stdout_is_the_file_and_nothing_else(capsys: pytest.CaptureFixture[str]):
    assert main(["search", "--nfe", "4,6", "--layout", "node", "--json", "-o", "out.json"]) == 0
    printed = capsys.readouterr().out
    assert printed == Path("out.json").read_text()
    document = json.loads(printed)
    assert document["format"] == "hso-jax/schedules" and document["version"] == 2
    assert all(set(s) >= REQUIRED for s in document["schedules"])
    assert [len(s["timesteps"]) for s in document["schedules"]] == [4, 6]
    assert sorted(p.name for p in Path().iterdir() if p.name != "cache") == ["out.json"]


def test_model_from_a_folder(capsys: pytest.CaptureFixture[str]):
    folder = Path("my-model/scheduler")
    folder.mkdir(parents=True)
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000}
    (folder / "scheduler_config.json").write_text(json.dumps(config))
    assert main(["search", "--model", "my-model", "--nfe", "5", "--layout", "node", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["schedules"]
    (same,) = [hso_jax.search(hso_jax.preset("sd3-medium"), 5)]
    assert record["model"] == "my-model"
    np.testing.assert_allclose(record["t"], same.t, atol=1e-6)


def test_compare_lists_every_method(capsys: pytest.CaptureFixture[str]):
    assert main(["compare", "--nfe", "5", "--json", "--plot", "compare.png"]) == 0
    records = json.loads(capsys.readouterr().out)["schedules"]
    every = ["hso", *(name for name in hso_jax.BASELINES if name != "ays-svd")]
    ranked, recommended = records[: len(every)], records[len(every) :]
    assert sorted(r["method"] for r in ranked) == sorted(every)
    errors = [r["error"] for r in ranked]
    assert errors == sorted(errors)
    assert [r["solver"] for r in recommended] == ["dpmpp-2m", "nonstationary"]
    assert recommended[1]["error"] < recommended[0]["error"] < errors[0]
    assert Path("compare.png").stat().st_size > 10_000
    assert main(["compare", "--nfe", "5"]) == 0
    out, err = capsys.readouterr()
    assert all(f" {name} " in out for name in every)
    assert "skipped: ays-svd is a table for models of kind 've'" in err


def test_compare_skips_the_rules_of_other_models(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    found = hso_jax.baseline("trailing", hso_jax.preset("sd3-medium"), 2)
    monkeypatch.setattr(comparing, "search_many", lambda many: [found] * len(many))
    assert main(["compare", "--model", "sd3-medium", "--nfe", "2,3", "--json"]) == 0
    out, err = capsys.readouterr()
    methods = [r["method"] for r in json.loads(out)["schedules"]]
    rules = [name for name in hso_jax.BASELINES if not name.startswith("ays")]
    names = [*rules, "trailing"]  # the stand-in for the search is another "trailing"
    assert sorted(m for m in methods if m in names) == sorted(2 * names)
    assert set(methods) - set(names) == {"solver-error"}
    skipped = [line.split()[1] for line in err.splitlines() if line.startswith("skipped: ")]
    assert skipped == ["ays", "ays-sdxl", "ays-svd"]


def test_compare_survives_a_rule_that_a_narrow_noise_leaves_no_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    config = {"_class_name": "DDIMScheduler", "beta_start": 1e-7, "beta_end": 2e-7, "num_train_timesteps": 200}
    Path("narrow.json").write_text(json.dumps(config))
    found = hso_jax.baseline("trailing", hso_jax.from_config(config), 4)
    monkeypatch.setattr(comparing, "search_many", lambda many: [found])
    assert main(["compare", "--model", "narrow.json", "--nfe", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    assert not {"ays", "ays-sdxl"} & {r["method"] for r in json.loads(out)["schedules"]}
    assert "skipped: ays at N = 4: t must fall strictly" in err


def test_show_and_plot(capsys: pytest.CaptureFixture[str]):
    noise = hso_jax.preset("sd15")
    hso_jax.save([hso_jax.baseline("trailing", noise, n) for n in (4, 6)], "file.json")
    assert main(["show", "file.json"]) == 0
    assert "999 832 666 499 332 166" in capsys.readouterr().out
    assert main(["show", "file.json", "--nfe", "4", "--as", "sigmas"]) == 0
    sigmas = [float(x) for x in capsys.readouterr().out.split(",")]
    np.testing.assert_allclose(sigmas, hso_jax.load("file.json")[0].sampler_sigmas(), rtol=1e-6)
    assert main(["show", "file.json", "--nfe", "4", "--as", "timesteps"]) == 0
    assert capsys.readouterr().out == "999, 749, 499, 249\n"
    assert main(["plot", "file.json"]) == 0 and Path("file.png").is_file()
    assert main(["plot", "file.json", "--landscape", "-o", "mep.svg"]) == 0 and Path("mep.svg").is_file()
    assert "no such schedule" in _fails(capsys, "show", "file.json", "--nfe", "9")


def test_models(capsys: pytest.CaptureFixture[str]):
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("sd21-base", "flux-schnell", "edm-cifar10", "wan21"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["search", "--nfe", ""], "nfe ''"),
        (["search", "--nfe", "4.5"], "'4.5' is not a number"),
        (["search", "--nfe", "0-3"], "must be 1 or more"),
        (["search", "--nfe", "8-4"], "smaller number first"),
        (["search", "--model", "sd9"], "presets: sd15"),
        (["search", "--p", "nan"], "p is nan"),
        (["search", "--t-max", "1.0", "0.9"], "box t_max is (1.0, 0.9)"),
        (["search", "--t-max", "0.9", "1.5"], "box t_max is (0.9, 1.5)"),
        (["search", "--t-eps", "0.5", "0.97"], "must lie below"),
        (["search", "--spacing", "much"], "spacing is 'much'"),
        (["search", "--spacing", "0.3"], "does not fit"),
        (["search", "--seed", "-1"], "seed is -1"),
        (["search", "-o", "no/such/folder/x.json"], "does not exist"),
        (["search", "--plot", "x.bmp"], ".png, .svg or .pdf"),
        (["show", "missing.json"], "missing.json"),
        (["plot", "missing.json"], "missing.json"),
    ],
)
def test_bad_input_is_refused_before_any_work(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert message in _fails(capsys, *argv)


NEWER = '{"format": "hso-jax/schedules", "version": 9}'


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other"}', NEWER])
def test_foreign_and_truncated_files_are_refused(content: str, capsys: pytest.CaptureFixture[str]):
    Path("bad.json").write_text(content)
    assert "bad.json" in _fails(capsys, "show", "bad.json")


def test_a_foreign_file_is_not_replaced_without_force(capsys: pytest.CaptureFixture[str]):
    Path("notes.json").write_text('{"mine": 1}')
    error = _fails(capsys, "search", "--nfe", "4", "--layout", "node", "-o", "notes.json", "--no-plot")
    assert "--force" in error
    assert main(["search", "--nfe", "4", "--layout", "node", "-o", "notes.json", "--no-plot", "--force"]) == 0
    assert len(hso_jax.load("notes.json")) == 1


def test_unusable_arguments_exit_with_2_from_the_shell():
    command = [sys.executable, "-m", "hso_jax.cli", "search"]
    done = subprocess.run([*command, "--layout", "ring"], capture_output=True, text=True)
    assert done.returncode == 2 and "--layout is 'ring'" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "examples:" in done.stdout


def test_parse_nfe():
    assert parse_nfe("4-6,10, 5") == [4, 5, 6, 10]


def test_the_seed_reaches_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def found(many: list, progress: object = None) -> list:
        asked.extend(lane.seed for lane in many)
        return [hso_jax.zoo("sd15", 4, "ddim")]

    monkeypatch.setattr(searches, "search_many", found)
    assert main(["search", "--nfe", "4", "--seed", "7", "--no-plot"]) == 0
    assert asked and set(asked) == {7}

"""The command line: what each command hands on, prints and writes, and what it refuses."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run, refused

import hso_jax
from hso_jax import comparison
from hso_jax.baselines import BASELINES
from hso_jax.cli import common, search
from hso_jax.hso import Box
from hso_jax.noise import PRESETS
from hso_jax.schedule import Origin
from hso_jax.schedule_file import from_json

SOLVER_ERROR = "search --model sd3-medium --method solver-error"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The lanes that are searched; instead of a search each gets the trailing schedule."""
    lanes: list[Any] = []

    def found(many: list[Any], progress: Any = None) -> list[hso_jax.Schedule]:
        lanes.extend(many)
        return [hso_jax.baseline("trailing", lane.noise, lane.nfe, layout=lane.layout) for lane in many]

    for module in (search, comparison):
        monkeypatch.setattr(module, "search_many", found)
    return lanes


def folder(name: str, cls: str = "EulerDiscreteScheduler", **config: Any) -> None:
    sdxl = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    Path(name, "scheduler").mkdir(parents=True)
    Path(name, "scheduler", "scheduler_config.json").write_text(json.dumps({"_class_name": cls, **(config or sdxl)}))


def written() -> list[str]:
    return sorted(p.name for p in Path().iterdir() if p.name != "cache")


def strict(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# search


def test_main_job_needs_no_argument(run: Run) -> None:
    printed = run("search").out
    assert "959 708 376 29" in printed and "wrote schedules-sd21-base.json" in printed
    schedules = hso_jax.load("schedules-sd21-base.json")
    assert [(s.layout, s.nfe) for s in schedules] == [(a, n) for a in ("node", "interval") for n in range(4, 21)]
    assert all(s.result == "converged" and s.min_spacing >= s.origin.d_min - 1e-12 for s in schedules)
    assert Path("schedules-sd21-base.png").read_bytes().startswith(b"\x89PNG")
    first = Path("schedules-sd21-base.json").read_bytes(), Path("schedules-sd21-base.png").read_bytes()
    run("search")  # what it wrote itself it may replace, and the same seed gives the same bytes
    assert first == (Path("schedules-sd21-base.json").read_bytes(), Path("schedules-sd21-base.png").read_bytes())


def test_a_model_folder_s_json_is_its_file(run: Run) -> None:
    folder("my-model", "FlowMatchEulerDiscreteScheduler", shift=3.0, num_train_timesteps=1000)
    printed = run("search --model my-model --nfe 4,5 --layout node --json -o out.json").out
    assert printed == Path("out.json").read_text() and written() == ["my-model", "out.json"]
    four, five = json.loads(printed)["schedules"]
    assert len(four["timesteps"]) == 4 and five["model"] == "my-model"
    np.testing.assert_allclose(five["t"], hso_jax.search(hso_jax.preset("sd3-medium"), 5).t, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("--nfe 1,3 --solver unipc", [(1, "node", "unipc-2", 1.0, 0), (3, "node", "unipc-2", 1.0, 0)]),
        ("--nfe 2 --guidance 7.5 --seed 3", [(2, "node", "dpmpp-2m", 7.5, 3)]),
        ("--nfe 2 --layout both", [(2, x, "dpmpp-2m", 1.0, 0) for x in ("node", "interval")]),
    ],
)
def test_solver_error_gets_its_options(run: Run, asked: list[Any], options: str, wanted: list[Any]) -> None:
    schedules = from_json(run(f"{SOLVER_ERROR} {options} --json").out)
    found = [(x.nfe, x.layout, x.method.solver, x.method.guidance, x.seed) for x in asked]
    assert found == wanted and {x.noise.name for x in asked} == {"sd3-medium"}
    assert [s.nfe for s in schedules] == [x.nfe for x in asked] and written() == []
    assert "solver-error schedules for sd3-medium" in run(f"{SOLVER_ERROR} {options} --no-plot -o x.json").out
    assert written() == ["x.json"]


def test_hso_gets_its_options(run: Run, asked: list[Any]) -> None:
    run("search --nfe 4 --layout node --seed 7 --p 1 --spacing 0.05 --spacing-as penalty --relax --rho 7 7 --no-plot")
    (lane,) = asked
    method = lane.method
    assert (lane.seed, method.p, method.spacing, method.spacing_as, method.relax) == (7, 1.0, 0.05, "penalty", True)
    assert method.box.rho == (7.0, 7.0) and method.box.t_eps == Box().t_eps
    shown = " ".join(run("search --help").out.split())
    assert all(f"default {low:g} {high:g}" in shown for low, high in Box())


# compare


def test_compare_ranks_every_method(run: Run) -> None:
    records = json.loads(run("compare --nfe 5 --json --plot compare.png").out)["schedules"]
    every = ["hso", *(name for name in BASELINES if name != "ays-svd")]
    ranked = [r for r in records if r["method"] != "solver-error"]
    assert sorted(r["method"] for r in ranked) == sorted(every)
    assert [r["error"] for r in records] == sorted(r["error"] for r in records)
    best = {s: hso_jax.recommend("sd21-base", 5, solver=s).solver for s in ("dpmpp-2m", None)}
    assert {r["solver"] for r in records[:2]} == set(best.values())
    assert Path("compare.png").stat().st_size > 10_000
    (found,) = hso_jax.compare("sd21-base", 5)
    assert [(s.method, s.error) for s in found.ranked] == [(r["method"], r["error"]) for r in ranked]
    assert "ays-svd is a table for models of kind 've'" in found.skipped[0]


def test_compare_skips_what_does_not_apply(run: Run, asked: list[Any]) -> None:
    config = {"_class_name": "DDIMScheduler", "beta_start": 1e-7, "beta_end": 2e-7, "num_train_timesteps": 200}
    Path("narrow.json").write_text(json.dumps(config))
    for model, missing, reason in (
        ("sd3-medium", {"ays", "ays-sdxl", "ays-svd"}, "skipped: ays-svd is a table for"),
        ("narrow.json", {"ays", "ays-sdxl", "ays-svd"}, "skipped: ays at N = 4: t must fall strictly"),
    ):
        out, err = run(f"compare --model {model} --nfe 4")
        assert all((f" {rule} " in out) == (rule not in missing) for rule in BASELINES if model != "narrow.json")
        assert reason in err and len(missing & {line.split()[1] for line in err.splitlines() if "skipped" in line}) == 3


def test_compare_prints_a_table_of_80_columns(
    run: Run, asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("compare --model sdxl --nfe 6,8").out.splitlines()
    assert max(map(len, lines)) <= 80 and sum(line[:1] == "\u250f" for line in lines) == 2
    first = next(line for line in lines if line[:1] == "\u2502")
    assert " recommended " in first and "sdxl, N = 6, node layout" in lines[0]


# show, plot, models


def test_show_prints_every_form(run: Run) -> None:
    own = hso_jax.Schedule.from_t(
        *(hso_jax.preset("sd15"), [1.0, 0.5, 0.2]),
        origin=Origin(solver="nonstationary"),
        coefficients=[[0.0, 0.0], [0.5, 0.0], [-0.3, 0.1]],
    )
    hso_jax.save([own, *(hso_jax.baseline("trailing", hso_jax.preset("sd15"), n) for n in (4, 6))], "file.json")
    table = run("show file.json").out
    assert "999 832 666 499 332 166" in table and "0.5 | -0.3 0.1" in " ".join(table.split())
    sigmas = [float(x) for x in run("show file.json --nfe 4 --as sigmas").out.split(",")]
    np.testing.assert_allclose(sigmas, hso_jax.load("file.json")[1].sampler_sigmas(), rtol=1e-6)
    assert run("show file.json --nfe 4 --as timesteps").out == "999, 749, 499, 249\n"
    assert own.python_literal() in run("show file.json --as python").out
    weights = run("show file.json --nfe 3 --as weights").out
    assert [[float(x) for x in line.split()] for line in weights.splitlines()] == own.weights_table().tolist()
    assert run("show file.json --as json").out == Path("file.json").read_text()
    refused(run, "show file.json --nfe 9", "no schedule for --nfe 9; it has N = 3 (node), 4 (node), 6 (node)")
    refused(run, "show file.json --as weights --nfe 4", "holds no coefficients")


def test_plot_draws_schedules_and_the_landscape(run: Run) -> None:
    hso_jax.save(hso_jax.baseline("trailing", hso_jax.preset("sd15"), 4), "file.json")
    run("plot file.json")
    run("plot file.json --landscape -o mep.svg")
    assert Path("file.png").is_file() and Path("mep.svg").is_file()
    Path("one.json").write_text(Path("file.json").read_text().replace('"sd15"', '"mine"'))
    refused(run, "plot one.json --landscape -o x.png", "model 'mine' is not a preset")


def test_models_lists_every_preset(run: Run) -> None:
    printed = run("models").out
    assert all(name in printed for name in PRESETS)
    rows = strict(run("models --json").out)
    assert [row["name"] for row in rows] == list(PRESETS)
    assert (rows[0]["kind"], rows[0]["guidance"]) == ("vp", 7.5)
    assert rows[0]["sigma_max"] == pytest.approx(14.6146, rel=1e-5)
    assert [row["sigma_max"] for row in rows if row["kind"] == "flow"] == [None] * sum(
        r["kind"] == "flow" for r in rows
    )


# recommend and zoo


def test_recommend_prints_three_rows_and_why(run: Run) -> None:
    printed, best = run("recommend --model sdxl --nfe 6").out, hso_jax.recommend("sdxl", 6)
    assert printed.startswith("sdxl, N = 6, guidance 5\n") and best.reason in " ".join(printed.split())
    recommended, usual, rule = (line.split("\u2502") for line in printed.splitlines() if line[:1] == "\u2502")
    assert [cell.strip() for cell in recommended[1:4]] == ["recommended", best.solver, "its own"]
    assert recommended[4].split() == [str(t) for t in best.schedule.integer_timesteps()]
    assert [cell.strip() for cell in usual[1:4]] == ["usual", "dpmpp-2m", "trailing"]
    assert [cell.strip() for cell in rule[1:4]] == ["best rule", *best.best_rule]
    assert f"{best.error:.3g}" not in printed and written() == []
    everything = run("recommend --model sdxl --nfe 6 --all").out
    assert all(f" {rule} " in everything for rule in ("its own", "trailing", "karras", "ays", "beta-t", "hso"))
    assert f"{best.error:.3g} <" in everything and "predicted on reference problems" in everything


@pytest.mark.parametrize("model", ["sdxl", "edm-cifar10", "flux-dev"])
def test_recommend_fits_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for nfe in (4, 20):
        lines = run(f"recommend --model {model} --nfe {nfe} --all").out.splitlines()
        lines = [line for line in lines if not line.startswith(("sigmas", "coefficients"))]
        assert sum(line[:1] == "\u2502" for line in lines) > 11 and max(map(len, lines)) <= 80
        assert not any("\u2026" in line for line in lines)


def test_recommend_puts_models_and_steps_in_one_file(run: Run) -> None:
    printed = run("recommend --model sdxl --model flux-dev --nfe 4,6 -o both.json")
    kept = [(s.model, s.nfe) for s in hso_jax.load("both.json")]
    assert kept == [("sdxl", 4), ("sdxl", 6), ("flux-dev", 4), ("flux-dev", 6)]
    assert "wrote both.json" in printed.err and printed.out.count("\u2502 recommended") == 4
    assert json.loads(run("recommend --model sdxl -o -").out)["format"] == "hso-jax/schedules"


def test_recommend_json_has_everything(run: Run) -> None:
    (found,) = json.loads(run("recommend --model sdxl --nfe 6 --scheduler dpmpp-2m --guidance 7 --json").out)
    same = hso_jax.recommend("sdxl", 6, guidance=7, solver="dpmpp-2m")
    assert found["solver"] == "dpmpp-2m" and found["guidance"] == 7.5 and found["error"] == same.error
    assert len(found["sigmas"]) == 7 and len(found["timesteps"]) == 6 and "gain" not in found
    assert found["expected"] == {**same.expected._asdict(), "than": ["dpmpp-2m", "trailing"]}
    assert found["errors"]["ddim"]["trailing"] == same.errors["ddim"]["trailing"] and found["coefficients"] is None


def test_zoo_names_the_better_solver(run: Run) -> None:
    err = run("zoo --model sd15 --nfe 4-12 --solver ddim").err
    beaten = [s for s in (hso_jax.zoo("sd15", n, "ddim") for n in range(4, 13)) if s.better_solver is not None]
    assert err.count("does better than") == len(beaten) > 0
    assert all(f"N = {s.nfe}: {s.better_solver} does better than ddim at guidance 7.5" in err for s in beaten)


def test_the_shift_follows_the_image_tokens(run: Run) -> None:
    for tokens in (256, 4096):
        (found,) = json.loads(run(f"recommend --model flux-dev --nfe 6 --image-seq-len {tokens} --json").out)
        model = hso_jax.preset("flux-dev", image_seq_len=tokens)
        assert found["timesteps"] == hso_jax.recommend(model, 6, guidance=1.0).schedule.timesteps.tolist()


def test_a_folder_needs_its_guidance_unless_it_is_distilled(run: Run) -> None:
    folder("my-model")
    for command in ("recommend", "zoo"):
        refused(run, f"{command} --model my-model", "add --guidance W")
    (found,) = json.loads(run("recommend --model my-model --guidance 5 --json").out)
    assert found["timesteps"] == hso_jax.recommend("sdxl", 6).schedule.timesteps.tolist()
    folder("plain-name", "LCMScheduler")
    folder("sdxl-turbo")
    for name, steps, kind in (("plain-name", "999 759 499 259", "lcm"), ("sdxl-turbo", "999 749 499 249", "turbo")):
        printed = run(f"recommend --model {name} --nfe 4").out
        assert steps in printed and "the model comes with" in " ".join(printed.split())
        assert json.loads(run(f"recommend --model {name} --nfe 4 --json").out)[0]["distilled"] == kind
    assert "shipped schedule" in run("recommend --model sdxl-turbo --distilled no --guidance 5").out


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of huggingface_hub, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    common._from_hub.cache_clear()
    return tmp_path / "hub"


def in_cache(hub: Path, name: str, **config: Any) -> None:
    """Put a repository's configs where a download would leave them."""
    cache = hub / f"models--{name.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    folder(str(cache / "snapshots" / ("0" * 40)), **config)


def test_a_repository_s_config_is_read_from_the_cache(run: Run, hub: Path) -> None:
    in_cache(hub, "some-one/my-xl")
    in_cache(hub, "some-one/my-turbo")
    (found,) = json.loads(run("recommend --model some-one/my-xl --guidance 5 --json").out)
    assert found["model"] == "my-xl" and found["timesteps"] == hso_jax.recommend("sdxl", 6).schedule.timesteps.tolist()
    (found,) = json.loads(run("recommend --model some-one/my-turbo --nfe 4 --json").out)
    assert found["distilled"] == "turbo"
    refused(run, "recommend --model some-one/my-xl", "add --guidance W")


def test_a_repository_that_cannot_be_read_is_told_what_to_do(
    run: Run, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = refused(run, "recommend --model some-one/else", "download its scheduler/scheduler_config.json")
    assert "cannot find the requested files in the local cache" in told
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(run, "zoo --model some-one/else", "(huggingface_hub is not installed)")


@pytest.mark.parametrize("model", ["sd15", "cogvideox-2b", "edm-cifar10", "flux-dev"])
def test_all_json_is_strict(run: Run, model: str) -> None:
    for command in ("recommend", "zoo", "recommend --distilled lcm", "recommend --scheduler euler --guidance 1"):
        assert strict(run(f"{command} --model {model} --nfe 1,4,20 --json").out)
    run(f"zoo --model {model} --nfe 1,6 -o o.json --quiet")
    assert strict(run("show o.json --as json").out) == strict(Path("o.json").read_text())


def test_pure_noise_is_null_in_json(run: Run, asked: list[Any]) -> None:
    (found,) = json.loads(run("recommend --model cogvideox-2b --nfe 6 --json").out)
    sigmas = hso_jax.recommend("cogvideox-2b", 6).schedule.sampler_sigmas().tolist()
    assert sigmas[0] == float("inf") and found["sigmas"] == [None, *sigmas[1:]]
    assert strict(run("compare --model cogvideox-2b --nfe 4 --json").out)


# Refusals


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "COMMAND must be given"),
        ("recomend", "command is 'recomend'; did you mean recommend?"),
        ("search --layout ring", "--layout is 'ring'"),
        ("search --nfe ''", "nfe is ''; write whole numbers of at least 1"),
        ("search --nfe 4.5", "nfe is '4.5'; write whole numbers of at least 1, as 6, 4-20 or 4,6,8"),
        ("search --nfe 0-3", "nfe is '0-3'; the smallest number of evaluations is 1"),
        ("search --nfe -3", "nfe is '-3'; write whole numbers of at least 1"),
        ("search --nfe 5000", "nfe is 5000; the largest number of evaluations is 1000"),
        ("search --nfe", "--nfe needs one value"),
        ("search --rho 3", "--rho needs 2 values"),
        ("sdxl recommend", "'sdxl' is a model, not a command; write hso-jax recommend --model sdxl"),
        ("recommend sdxl", "'sdxl' is no argument of `hso-jax recommend`; write --model sdxl"),
        ("models sdxl", "'sdxl' is no argument of `hso-jax models` (see"),
        ("recommend --model ./none", "model './none' is neither a preset nor a file or folder"),
        ("search --nfe 8-4", "write the smaller number first: 4-8"),
        ("search --model sd9", "(see `hso-jax models`)"),
        ("search --p nan", "p is nan"),
        ("search --t-max 1.0 0.9", "box t_max is (1.0, 0.9)"),
        ("search --t-max 0.9 1.5", "box t_max is (0.9, 1.5)"),
        ("search --t-eps 0.5 0.97", "must lie below"),
        ("search --spacing much", "spacing is 'much'"),
        ("search --spacing 0.3", "does not fit"),
        ("search --seed -1", "seed is -1"),
        ("search -o no/such/folder/x.json", "does not exist"),
        ("search --plot x.bmp", ".png, .svg or .pdf"),
        ("search --method zoo", "use hso-jax zoo"),
        ("search --method hsoo", "--method is 'hsoo'; did you mean hso?"),
        ("search --solver unipc", "--solver: --method hso does not use it; use --method solver-error"),
        ("search --guidance 1 --solver ddim", "--solver, --guidance: --method hso does not use it"),
        ("search --profile x", "'--profile' is no option of `hso-jax search`"),
        ("profile --pipeline x -o y", "`hso-jax profile` was removed in 0.3.0, because"),
        ("search --method hso-dm-nonuni --solver ddim", "--method hso-dm-nonuni does not use it"),
        *(
            (f"{SOLVER_ERROR} {options}", f"{options.split()[0]}: --method solver-error does not use it")
            for options in ("--spacing 0.05", "--spacing-as penalty", "--relax", "--p 1", "--t-max 0.9 1", "--rho 7 7")
        ),
        (f"{SOLVER_ERROR} --solver adams", "solver is 'adams'; use one of ddim"),
        (f"{SOLVER_ERROR} --guidance -1", "guidance is -1.0"),
        (f"{SOLVER_ERROR} --guidance nan", "guidance is nan"),
        (f"{SOLVER_ERROR} --nfe 1000", "nfe is 1000: 1000 nodes"),
        (f"{SOLVER_ERROR} --seed -1", "seed is -1"),
        ("compare --model sd9", "model 'sd9' is neither a preset nor a file or folder"),
        ("compare --solver adams", "solver is 'adams'"),
        ("compare --plot x.bmp", ".png, .svg or .pdf"),
        ("show", "file must be given"),
        ("show missing.json", "missing.json does not exist"),
        ("plot missing.json", "missing.json does not exist"),
        (
            "plot sdxl",
            "sdxl is a model, and a file is needed; to write one: hso-jax recommend --model sdxl -o sdxl.json",
        ),
        ("recommend --modle sdxl", "'--modle' is no option of `hso-jax recommend`; did you mean --model?"),
        ("recommend extra", "'extra' is no argument of `hso-jax recommend`"),
        ("compare --no-plot", "'--no-plot' is no option of `hso-jax compare`; did you mean --plot?"),
        ("recommend --guidance x", "--guidance is 'x'; write a number"),
        ("recommend --model sdlx", "did you mean sdxl?"),
        ("recommend --scheduler dpmpp-2x", "did you mean dpmpp-2m?"),
        ("recommend --scheduler euler_ancestral", "name the nearest one without noise: 'euler'"),
        ("recommend --scheduler heun", "hso-jax search --method solver-error --solver heun --guidance 7.5"),
        ("recommend --nfe 30", "hso-jax search --method solver-error"),
        ("recommend --nfe six", "nfe is 'six'; write whole numbers"),
        ("zoo --nfe 21", "nfe is 21; the zoo has N = 1 to 20"),
        ("zoo --model sd9", "model 'sd9' is neither a preset nor a file or folder"),
        ("zoo --solver heun", "solver 'heun' is not in the zoo"),
    ],
)
def test_bad_input_is_refused_before_any_work(run: Run, asked: list[Any], command: str, message: str) -> None:
    line = refused(run, command, message)
    assert "SolverError" not in line and "lanes[" not in line and not asked  # which are Python's names


def test_files_of_others_are_refused(run: Run, asked: list[Any]) -> None:
    for content in ("", "{", "[]", '{"format": "hso-jax/schedules", "version": 9}', '{"format": "other"}'):
        Path("bad.json").write_text(content)
        refused(run, "show bad.json", "bad.json")
    command = "search --nfe 4-6,10 --layout node -o bad.json --no-plot"
    refused(run, command, "--force")
    run(f"{command} --force")
    assert [s.nfe for s in hso_jax.load("bad.json")] == [4, 5, 6, 10]


def test_the_version_is_told(run: Run) -> None:
    assert run("--version").out == f"hso-jax {hso_jax.__version__}\n"


def test_every_command_has_help_with_examples(run: Run) -> None:
    for command in ("search", "compare", "recommend", "zoo", "show", "plot", "apply", "sample", "tune"):
        printed = run(f"{command} --help").out
        examples = [line for line in printed.splitlines() if line.startswith(f"  hso-jax {command}")]
        assert examples and shlex.split(examples[0])[1] == command

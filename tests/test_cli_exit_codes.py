"""Every exit code, the one line that goes with it, and that what the line says of files is true."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Run, refused
from marks import slow_but

import hso_jax
from hso_jax import comparison
from hso_jax.cli import main, program, search
from hso_jax.schedule import Origin

PROGRAM = [sys.executable, "-m", "hso_jax"]
ROOT = Path(__file__).parent.parent
FOUND = hso_jax.baseline("trailing", hso_jax.preset("sd15"), 4)
SEARCH = "search --model sd15 --nfe 4 --layout node -o s.json"


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the search returns instead of searching: a schedule with this result."""
    results = ["converged"]

    def found(many: list[Any], *, progress: Any = None) -> list[Any]:
        return [dataclasses.replace(FOUND, origin=Origin(result=results[0])) for _ in many]

    for module in (search, comparison):
        monkeypatch.setattr(module, "search_many", found)
    return results


def names() -> list[str]:
    return sorted(p.name for p in Path().iterdir() if p.name != "cache")


def one_line(run: Run, command: str, code: int) -> str:
    (line,) = run(command, code).err.splitlines()
    return line


def raising(error: BaseException) -> Callable[..., Any]:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    return broken


def python(script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environ}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(("told", "code"), [("converged", 0), ("fixed", 0), ("max_iterations", 1), ("stalled", 1)])
def test_0_and_1_tell_whether_all_converged(told: str, code: int, result: list[str], run: Run) -> None:
    result[0] = told
    run(f"{SEARCH} --no-plot", code)
    assert [s.result for s in hso_jax.load("s.json")] == [told]
    run(f"{SEARCH} --json -o -", code)
    run("compare --model sd15 --nfe 4 --json", code)


def test_2_is_a_file_that_cannot_be_read(run: Run) -> None:
    Path("deep.json").write_text('{"a":' * 50_000)
    Path("m").mkdir()
    Path("m/scheduler_config.json").write_text("[" * 200_000)
    for command in ("show deep.json", "search --model deep.json", "compare --model m"):
        refused(run, command, "not valid JSON")


def test_2_is_one_name_for_two_files(run: Run) -> None:
    refused(run, f"{SEARCH} --plot x.png -o x.png", "the same file")
    hso_jax.save(FOUND, "f.png")
    refused(run, "plot f.png --force", "the same file")


def test_2_is_a_failed_picture_and_leaves_no_file(run: Run, result: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hso_jax.plots.encoded", raising(ValueError("no picture")))
    refused(run, SEARCH, "no picture")


def test_2_is_a_package_that_is_not_installed(run: Run, result: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ModuleNotFoundError("No module named 'jax.numpy'", name="jax.numpy")
    monkeypatch.setattr(search, "lanes", raising(missing))
    refused(
        run, f"{SEARCH} --no-plot", "this command needs jax, which is not installed in this Python: pip install jax"
    )
    monkeypatch.setattr(search, "lanes", raising(ModuleNotFoundError("a defect", name="hso_jax.gone")))
    assert one_line(run, f"{SEARCH} --no-plot", 70).startswith("error: unexpected ModuleNotFoundError: a defect")


def test_70_names_the_log(run: Run, result: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = raising(KeyError("a defect\nof two lines"))
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        patch.setattr("hso_jax.cli.show.print_schedules", broken)
        line = one_line(run, f"{SEARCH} --no-plot", 70)
    (log,) = Path().glob("hso-jax-*.log")
    assert line.startswith("error: unexpected KeyError: 'a defect")
    assert line.endswith(f"{log.resolve()}; written: s.json")
    assert "Traceback" in log.read_text() and "in broken" in log.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    monkeypatch.setattr(search, "lanes", broken)
    assert one_line(run, f"{SEARCH} --no-plot", 70).endswith("nothing was written")


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_74_names_the_file(run: Run, result: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("s.png").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "chmod", full)
        line = one_line(run, SEARCH, 74)
    assert line == "error: cannot write s.json: No space left on device; nothing was written" and names() == ["s.png"]
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, to: full() if str(to).endswith(".png") else replace(source, to))
    assert one_line(run, SEARCH, 74) == "error: cannot write s.png: No space left on device; written: s.json"
    assert names() == ["s.json", "s.png"] and Path("s.png").read_bytes() == b""


def shell(arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {arguments}', "bash", *PROGRAM, "show", "s.json"], capture_output=True, text=True
    )


def test_74_is_a_closed_full_or_unread_output(run: Run) -> None:
    hso_jax.save(FOUND, "s.json")
    reader, writer = os.pipe()
    os.close(reader)
    unread = subprocess.run([*PROGRAM, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    for done, why in (
        (shell(">&-"), "it is closed"),
        (shell("> /dev/full"), "No space left on device"),  # only ever opened
        (unread, "Broken pipe"),
    ):
        assert (done.returncode, done.stderr.count("\n")) == (74, 1)
        assert f"cannot write standard output: {why}" in done.stderr
    done = shell("2>&-")
    assert done.returncode == 0 and "999 749 499 249" in done.stdout


@pytest.mark.parametrize(
    ("place", "line", "left"),
    [
        ("search.search_many", "interrupted; nothing was written", []),
        ("show.print_advice", "interrupted; written: s.json", ["s.json"]),
    ],
)
def test_130_is_ctrl_c(
    place: str, line: str, left: list[str], run: Run, result: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"hso_jax.cli.{place}", raising(KeyboardInterrupt()))
    assert one_line(run, f"{SEARCH} --no-plot", 130) == line
    assert names() == left


SIGNALS = """
import atexit, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
import hso_jax.cli

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
if not "{module}":
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["hso-jax", "models"]
sys.exit(hso_jax.cli.main())
"""


def test_130_during_imports() -> None:
    """Ctrl-C as the program begins to import a module."""
    done = python(SIGNALS.format(module="numpy.random"))
    assert done.returncode == 130 and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("interrupted")


def test_ctrl_c_after_the_work_changes_nothing() -> None:
    done = python(SIGNALS.format(module=""))
    assert (done.returncode, done.stderr) == (0, "") and "sdxl" in done.stdout


def test_the_entry_point_is_cheap_and_is_the_program() -> None:
    cheap = "import sys, hso_jax.cli; assert not {'jax', 'numpy', 'rich', 'importlib.metadata'} & set(sys.modules)"
    assert python(cheap).returncode == 0
    assert 'hso-jax = "hso_jax.cli:main"' in (ROOT / "pyproject.toml").read_text()
    done = subprocess.run([*PROGRAM, "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2 and "nonsense" in done.stderr.splitlines()[-1]
    before = signal.getsignal(signal.SIGINT)
    assert main(["models"]) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_dash_and_dev_stdout_are_standard_output(
    result: list[str], capfdbinary: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def printed(command: str) -> bytes:
        assert main(command.split()) == 0
        return capfdbinary.readouterr().out

    text = hso_jax.schedule_file.to_json(hso_jax.zoo("sd15", 4, "dpmpp-2m")).encode()
    for name in ("-", "/dev/stdout", "/dev/fd/1"):
        assert printed(f"zoo --model sd15 --nfe 4 --solver dpmpp-2m -o {name}") == text
    assert hso_jax.schedule_file.from_json(printed(SEARCH.replace("s.json", "-")).decode())[0].nfe == 4
    hso_jax.save(FOUND, "s.json")
    assert printed("plot s.json -o -").startswith(b"\x89PNG") and names() == ["s.json"]
    script = 'exec 3> >(cat > copy); copier=$!; "$@" -o /dev/fd/3; exec 3>&-; wait $copier'
    subprocess.run(["bash", "-c", script, "bash", *PROGRAM, "zoo", "--nfe", "4"], capture_output=True, check=True)
    assert hso_jax.load("copy")[0].model == "sd21-base"


def test_the_codes_are_documented_in_both_places() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    for code in (0, 1, 2, 70, 74, 130):
        assert f"\n  {code} " in program._EPILOG and f"\n| {code} |" in page


NO_DEVICE = {
    "search --model sdxl --nfe 4 --layout node --no-plot --json": 2,
    "search --nfe 4 --method solver-error --json": 2,
    "compare --nfe 4": 2,
    "plot s.json --landscape -o p.png": 2,
    **dict.fromkeys(("recommend --model sdxl --nfe 6", "zoo --model sdxl --nfe 6", "models", "show s.json"), 0),
}
NO_DEVICE_SCRIPT = f"""
import hso_jax
from hso_jax.cli import main
for command, code in {NO_DEVICE!r}.items():
    assert main(command.split()) == code, command
noise = hso_jax.preset("sdxl")
for call in (
    lambda: hso_jax.search(noise, 4),
    lambda: hso_jax.search(noise, 4, method=hso_jax.SolverError("nonstationary")),
    lambda: hso_jax.solver_error(hso_jax.zoo(noise, 4, "ddim"), noise),
    lambda: hso_jax.baseline("dm-nonuni", noise, 4),
):
    try:
        call()
    except ValueError as error:
        assert "JAX_PLATFORM" in str(error), error
    else:
        raise SystemExit(1)
"""


@pytest.mark.parametrize("variable", slow_but(["JAX_PLATFORMS=cuda"], ["JAX_PLATFORMS=cuda", "JAX_PLATFORM_NAME=gpu"]))
def test_2_is_a_missing_device_where_one_is_needed(run: Run, variable: str) -> None:
    """One process for all commands and calls: JAX asks for its devices anew until it has found some."""
    hso_jax.save(FOUND, "s.json")
    name, value = variable.split("=")
    done = python(NO_DEVICE_SCRIPT, **{name: value})
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    wanted = f"error: {name} is {value!r}, and JAX finds no such device here: unset {name}"
    assert len(said) == 4 and all(line.startswith(wanted) for line in said)
    assert not Path("p.png").exists()

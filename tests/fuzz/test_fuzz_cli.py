"""Random command lines on random files: an exit code of the table, no traceback, and nothing lost."""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from pathlib import Path

import pytest
from test_fuzz_files import DOCUMENT, text_of

import hso_jax
from hso_jax import comparison
from hso_jax.cli import common, main, search

NAMES = [
    "s.json", "notes.json", "config.json", "model", "pipe", "link", "dangling", "empty.json", "ours.png", "new.json",
    "new.png", "new.svg", "none/x.json", "[b]x.json", "\x1b[2J.png", "caf\udce9.json", "-", "", ".", "..",
    "x" * 300, "x" * 250 + ".json", "a\0b", "/", "s.json/x", "/dev/fd/987654", "~/x.json", "sd15", "flux-dev",
    "edm-cifar10",
]  # fmt: skip
NUMBERS = [
    "4", "0", "-1", "4-6", "6-4", "1e9", "nan", "inf", "-inf", "1e400", "9" * 5000, "", "x", "4,,5", "\u0664", "0.5",
    "1001", "3",
]  # fmt: skip
FORMS = ["table", "sigmas", "timesteps", "python", "weights", "json"]
OPTIONS = {
    "show": {"--nfe": NUMBERS, "--layout": ["node", "interval", "x"], "--as": FORMS},
    "plot": {"--nfe": NUMBERS, "--layout": ["node", "interval"], "-o": NAMES, "--force": None},
    "zoo": {
        "--model": NAMES, "--nfe": NUMBERS, "--solver": ["ddim", "unipc", "heun", "[b]"], "--guidance": NUMBERS,
        "-o": NAMES, "--json": None, "--force": None,
    },
    "models": {},
    "search": {
        "--model": NAMES, "--nfe": NUMBERS, "--layout": ["node", "both"],
        "--method": ["hso", "solver-error", "hso-dm-nonuni"],
        "--solver": ["ddim", "unipc", "x"], "--guidance": NUMBERS, "--seed": NUMBERS, "--spacing": [*NUMBERS, "paper"],
        "--p": NUMBERS, "--relax": None, "--image-seq-len": NUMBERS, "-o": NAMES, "--plot": NAMES, "--no-plot": None,
        "--json": None, "--force": None,
    },
    "compare": {"--model": NAMES, "--nfe": NUMBERS, "--guidance": NUMBERS, "--plot": NAMES, "--json": None},
}  # fmt: skip
CONFIG = {"_class_name": "DDIMScheduler", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 100}


def arguments(rng: random.Random) -> list[str]:
    command = rng.choice(list(OPTIONS))
    argv = [command]
    if command in ("show", "plot"):
        argv.append(rng.choice(NAMES + 10 * ["s.json"]))
    options = list(OPTIONS[command].items())
    for name, values in rng.sample(options, rng.randint(0, min(4, len(options)))):
        argv += [name] if values is None else [name, rng.choice(values)]
    if rng.random() < 0.03:
        argv.insert(rng.randrange(len(argv) + 1), rng.choice(["--what", "\x1b[31m", "\udcff", "--help", "-h"]))
    return argv


def fill(rng: random.Random, folder: Path, home: Path) -> None:
    """A folder with files of ours and of others, links, and a pipe that nobody writes to."""
    (folder / "s.json").write_bytes(hso_jax.schedule_file.to_json(hso_jax.zoo("sd15", 4, "dpmpp-2m")).encode())
    if rng.random() < 0.5:
        (folder / "s.json").write_bytes(text_of(rng, DOCUMENT))
    (folder / "notes.json").write_text('{"mine": "hso-jax/schedules"}')
    (folder / "config.json").write_bytes(text_of(rng, CONFIG))
    (folder / "empty.json").touch()
    (folder / "ours.png").write_bytes(b"not hso-jax")
    (folder / "model").mkdir()
    (folder / "model" / "scheduler_config.json").write_bytes(text_of(rng, CONFIG))
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(home / "precious.json")
    (folder / "dangling").symlink_to("target.json")


def state(folder: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for place in folder.rglob("*"):
        if place.is_symlink():
            found[str(place)] = f"link to {os.readlink(place)}"
        elif place.is_file():
            found[str(place)] = place.read_bytes()
        else:
            found[str(place)] = oct(place.lstat().st_mode)
    return found


def run(
    seed: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def found(many: list, progress: object = None) -> list:
        return [hso_jax.zoo("sd15", 4, "dpmpp-2m")]  # no search: what is fuzzed is what is around it

    for module in (search, comparison):
        monkeypatch.setattr(module, "search_many", found)
    monkeypatch.setattr(common, "prepare_jax", lambda: None)
    monkeypatch.setattr(comparison, "baseline", lambda *a, **k: hso_jax.zoo("sd15", 4, "dpmpp-2m"))
    rng, home = random.Random(seed), tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # logs
    precious = home / "precious.json"
    for i in range(count):
        folder = tmp_path / "work" / str(i)
        folder.mkdir(parents=True)
        precious.write_text("mine")
        fill(rng, folder, home)
        monkeypatch.chdir(folder)
        argv = arguments(rng)
        monkeypatch.setenv("COLUMNS", rng.choice(["0", "20", "80", "x"]))
        before = state(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(argv)
        out, err = capfd.readouterr()
        told = f"seed {seed}, input {i}, in {folder}: {argv} -> {code}\n{err[-2000:]}"
        assert code in (0, 1, 2), told
        assert "Traceback" not in err and "\x1b" not in err, told
        assert "\x1b" not in out or "PNG" in out[:8], told
        after = state(folder)
        named = {os.path.realpath(a) for a in argv if "\0" not in a}
        forced = "--force" in argv
        for name, content in before.items():
            if after.get(name) == content:
                continue
            ours = name.endswith("s.json") and not name.endswith("notes.json")
            assert code != 2 and os.path.realpath(name) in named and (forced or ours or content == b""), (
                f"{name}: {told}"
            )
        if set(after) - set(before):
            assert code != 2 and not [n for n in after if Path(n).name.startswith(".hso-")], told
        assert precious.read_text() == "mine" or (forced and str(precious) in named), told
        assert set(os.listdir(home)) == {"precious.json"} and not list(tmp_path.glob("*.log")), told
        for place in sorted(folder.rglob("*"), reverse=True):
            place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
        os.chdir(tmp_path)
        folder.rmdir()


def test_two_hundred_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(0, 200, tmp_path, monkeypatch, capfd)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(1, 5))
def test_twenty_thousand_command_lines(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(seed, 5000, tmp_path, monkeypatch, capfd)

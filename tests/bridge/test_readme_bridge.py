"""The examples of the README and of the bridge's page run, in order, in a folder with a tiny `my-model`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from test_pipelines_schedule import family_of

from hso_jax.cli import main

ROOT = Path(__file__).parents[2]
NAMES = ("recommend", "bridge", "bridge-pipelines", "tuning", "nonstationary")
PAGES = ("README.md", *(f"docs/{name}.md" for name in NAMES))
EXAMPLE = re.compile(r"<!-- bridge-example -->\s*```(python|bash)\n(.*?)```", re.DOTALL)


def examples(page: str) -> list[tuple[str, str]]:
    """(language, text) of each marked block."""
    return EXAMPLE.findall((ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore:the schedule (is for solver|has coefficients of its own)")  # as a reader sees it
@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examples(page)
    assert [language for language, _ in found].count("python") >= 1, f"{page} has no marked Python example"
    monkeypatch.chdir(tmp_path)
    pipe = family_of("StableDiffusionPipeline").build()
    pipe.save_pretrained("my-model")
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for language, text in found:
        if language == "python":
            exec(compile(text, page, "exec"), names)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True) or [""]
            if program == "hso-jax":
                assert main(arguments) == 0, line
            else:
                assert not program, f"{page}: only hso-jax is run here, not {line!r}"

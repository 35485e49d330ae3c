"""Every module that a page or a docstring says to run is there to be run."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")})
SOURCES = sorted(ROOT.glob("benchmarks/**/*.py"))
COMMAND = re.compile(r"(?:python|launch\b.*?) -m (benchmarks[\w.]*\w)")


@pytest.mark.parametrize("file", [*PAGES, *SOURCES], ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_name_modules_that_run(file):
    for module in set(COMMAND.findall(file.read_text())):
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        if spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
        assert spec is not None and spec.origin is not None, module
        assert '__name__ == "__main__"' in Path(spec.origin).read_text(), module


def test_files_of_the_overview_exist():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    names = re.findall(r"`(\w+/)?(\w+\.py)`", text)
    assert len(names) > 15
    for room, name in names:
        found = list((ROOT / "benchmarks" / room).glob(name if room else f"**/{name}"))
        assert found, room + name
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "benchmarks" / link).exists(), link

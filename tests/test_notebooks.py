"""The notebooks run from top to bottom, say what they claim, and are on the site with what they print and draw."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def module(file: Path) -> Any:
    """A module that no package holds."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@contextlib.contextmanager
def in_its_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    backend, path = matplotlib.get_backend(), sys.path[:]
    monkeypatch.chdir(ROOT / "notebooks")
    yield
    matplotlib.use(backend)
    sys.path[:] = path


def printed(notebook: dict[str, Any]) -> str:
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", []))
    return "".join("".join(output.get("text", "")) for output in outputs)


def pictures(notebook: dict[str, Any]) -> int:
    return json.dumps(notebook).count('"image/png"')


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as a reader runs them
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads(file.read_text(encoding="utf-8"))
    shown, drawn = printed(notebook), pictures(notebook)
    with in_its_folder(monkeypatch):
        module(ROOT / "notebooks" / "run.py").execute(notebook)
    assert pictures(notebook) == drawn >= 4
    assert len(printed(notebook).splitlines()) == len(shown.splitlines())
    if file.stem == "paper":
        assert "[959 708 376  29]" in printed(notebook) and "SPF 3.19675" in printed(notebook)
    else:
        errors = [float(line.split()[3]) for line in printed(notebook).splitlines() if line.startswith("as it was")]
        after = [float(line.split()[1]) for line in printed(notebook).splitlines() if line.startswith("recommended")]
        assert len(errors) == len(after) == 1 and after[0] < 0.6 * errors[0]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_s_page_has_all_of_it(file: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site's packages: CI installs them")
    text = file.read_text(encoding="utf-8")
    page = module(ROOT / "docs" / "site_pages.py").from_notebook(text)
    notebook = json.loads(text)
    assert page.startswith("# ") and page.count("data:image/png;base64,") == pictures(notebook)
    assert page.count("```python") == sum(cell["cell_type"] == "code" for cell in notebook["cells"])
    assert all(cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code")


def test_both_notebooks_are_there() -> None:
    assert [file.name for file in NOTEBOOKS] == ["diffusers.ipynb", "paper.ipynb"]
    assert all(file.stat().st_size < 400_000 for file in NOTEBOOKS)

"""Pages say what is there: links lead to files, named files exist, and versions and pages agree with each other."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import hso_jax
from hso_jax.cli import commands, main

ROOT = Path(__file__).parent.parent
ROOMS = ("", "docs/", "docs/api/", "docs/results/", "benchmarks/", "benchmarks/models/", "bridge/comfyui/")
PAGES = sorted(page for room in ROOMS for page in (ROOT / room).glob("*.md"))
NAV = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:")[1].split("not_in_nav:")[0]


def anchors(page: Path) -> set[str]:
    """What its headings are called in links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in re.findall(r"^#+ (.*)$", text, re.M)]
    return {heading.replace(" ", "-") for heading in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in re.findall(r"\]\(([^)\s#:]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} links to {file}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {file}#{anchor}"


NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names what was


@pytest.mark.parametrize("page", NOW, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:hso_jax|bridge|benchmarks|tests|examples|docs)/[\w/.-]+)`", page.read_text(encoding="utf-8")
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_newcomers_questions_name_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = text.split("### A newcomer's questions")[1].split("\n\n")[1].splitlines()[2:]
    asked = " ".join(row.split("|")[1] for row in rows)
    wanted = (
        *("MEP", "lower level", "upper level", "loop", "psi", "a lane become a schedule", "in a file"),
        *("add an objective", "add a solver", "add a preset", "add a diffusers class", "bridge change", "the zoo's"),
    )
    assert all(word in asked for word in wanted)
    for row in rows:
        files = re.findall(r"`([^`]+)`", row.split("|")[2])
        assert 1 <= len(files) <= 2 and all((ROOT / file).is_file() for file in files), row
    assert "def mep(" in (ROOT / re.findall(r"`([^`]+)`", rows[0])[0]).read_text(encoding="utf-8")
    assert "def bilevel(" in (ROOT / re.findall(r"`([^`]+)`", rows[3])[0]).read_text(encoding="utf-8")


def test_commands_on_pages_are_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(commands, "call", lambda name, args: called.append(name) or 0)
    for page in NOW:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                _, found, rest = line.partition("hso-jax ")
                if found and _.strip() in ("", ".venv/bin/"):
                    assert main(shlex.split(rest, comments=True)) == 0, f"{page.name}: {line}"
    assert len(called) > 30 and {"recommend", "search", "zoo", "compare", "show", "plot", "tune", "apply"} <= {*called}


def test_no_page_and_no_message_installs_from_an_index() -> None:
    sources = [file for room in ("bridge", "hso_jax", "examples", "benchmarks") for file in (ROOT / room).rglob("*.py")]
    for file in [*PAGES, *sources]:
        found = re.findall(r"pip install[^\n`]*?[ \"]hso-jax\b.*", file.read_text(encoding="utf-8"))
        assert not found, f"{file.relative_to(ROOT)}: {found}"


def test_every_page_of_the_docs_is_on_the_site() -> None:
    for page in (ROOT / "docs").glob("**/*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert f": {name}\n" in NAV or name.startswith("results/samples-"), name


def test_no_name_is_twice_in_the_navigation() -> None:
    names = re.findall(r"^ +- (.+?):(?: |$)", NAV, re.M)
    assert len(names) == len({name.lower() for name in names}) > 30


def test_the_api_pages_have_every_public_name() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    named = set(re.findall(r"^::: hso_jax\.(\w+)$", text, re.M))
    modules = {name for name in hso_jax.__all__ if isinstance(getattr(hso_jax, name), ModuleType)}
    assert named == set(hso_jax.__all__) - modules - {"__version__"}
    assert all(f"\n::: hso_jax.{module}." in text for module in modules)


def test_the_bridge_s_page_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api" / "bridge.md").read_text(encoding="utf-8")
    source = (ROOT / "bridge" / "__init__.py").read_text(encoding="utf-8")
    public = set(re.findall(r"^from bridge\S* import (\w+) as \1$", source, re.M))
    assert len(public) > 15
    assert public == set(re.findall(r"^(?:::: bridge|      heading: bridge)\.(\w+)$", text, re.M))


def test_the_citation_is_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "arXiv:2511.11688" in citation and "arxiv.org/abs/2511.11688" in readme and "(CITATION.cff)" in readme

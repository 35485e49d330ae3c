"""The pages of docs/results that are made of committed records: the commands make them again, to the byte."""

import re
import shutil
from pathlib import Path

import pytest

from benchmarks import __main__ as networks
from benchmarks import summary, tuning
from benchmarks.heldout import __main__ as heldout

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def by_networks(records: Path) -> int:
    return networks.main(["--report-only", "--records", str(records), "--out", str(records.parent)])


def by_summary(records: Path) -> int:
    for name in ("heldout.jsonl", "tuning.jsonl"):
        shutil.copy(RESULTS / name, records.parent)
    return summary.main(["--folder", str(records.parent)])


PAGES = [
    ("benchmarks.jsonl", by_networks, ("benchmarks.md",)),
    ("samples-2048/benchmarks.jsonl", by_networks, ("benchmarks.md",)),
    ("heldout.jsonl", lambda records: heldout.main(["--records", str(records)]), ("heldout.md",)),
    ("tuning.jsonl", lambda records: tuning.main(["--records", str(records)]), ("tuning.md",)),
    ("benchmarks.jsonl", by_summary, ("index.md",)),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("records", "command", "made"), PAGES)
def test_the_command_makes_the_committed_page(records, command, made, tmp_path):
    copy = Path(shutil.copy(RESULTS / records, tmp_path))
    for grid in (RESULTS / records).parent.glob("grid-*.png"):  # a page shows those that have been drawn
        shutil.copy(grid, tmp_path)
    assert command(copy) == 0
    for name in made:
        assert (tmp_path / name).read_bytes() == ((RESULTS / records).parent / name).read_bytes(), name
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", (tmp_path / made[0]).read_text()):
        assert (tmp_path / picture).stat().st_size > 10_000, picture


@pytest.mark.parametrize("page", sorted(RESULTS.glob("**/*.md")), ids=lambda page: str(page.relative_to(RESULTS)))
def test_results_name_pictures_and_pages_that_exist(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).is_file(), link

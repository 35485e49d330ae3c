"""What docs/results has of the networks is of the committed records."""

import re
from pathlib import Path

import pytest

from benchmarks.networks import records, report

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def found() -> records.Records:
    return records.read(RESULTS / "benchmarks.jsonl")


def test_the_report_and_the_csv_are_those_of_the_records(found):
    files = {
        "benchmarks.md": lambda x: report.report(x, RESULTS),
        "benchmarks.csv": lambda x: report.comma_separated(x.cells),
    }
    for name, make in files.items():
        file = RESULTS / name
        assert file.exists() == bool(found.cells), name
        if found.cells:
            assert file.read_text() == make(found), f"{name}: run `python -m benchmarks --report-only`"


@pytest.mark.parametrize("page", sorted(RESULTS.glob("**/*.md")), ids=lambda page: str(page.relative_to(RESULTS)))
def test_every_picture_and_page_that_the_results_name_is_there(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).is_file(), link

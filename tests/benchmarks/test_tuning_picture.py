"""The README's picture: a row a way, and no file of anyone's is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.tuning import picture
from benchmarks.tuning.__main__ import main


def test_a_row_has_its_name_and_its_samples() -> None:
    samples = torch.linspace(-1.0, 1.0, picture.COLUMNS + 3)[:, None, None, None].expand(-1, 3, 2, 2)
    sheet = picture.figure([picture.Row("one", "RMSE 1", samples), picture.Row("two", "RMSE 2", -samples)])
    panels = [axes for axes in sheet.axes if axes.images]
    assert len(panels) == 2 * picture.COLUMNS
    shades = [int(axes.images[0].get_array()[0, 0, 0]) for axes in panels]
    first, second = shades[: picture.COLUMNS], shades[picture.COLUMNS :]
    assert first == sorted(first) and first[0] == 0 and second == sorted(second, reverse=True) and second[0] == 255
    assert [text.get_text() for axes in sheet.axes for text in axes.texts] == ["one", "RMSE 1", "two", "RMSE 2"]


def test_a_file_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.png"
    path.write_text("mine")
    assert main(["--picture", str(path)]) == 2
    assert "is there already" in capsys.readouterr().err and path.read_text() == "mine"

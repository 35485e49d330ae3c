"""The comparison picture: nothing overlaps, long labels end in an ellipsis, tiny images are enlarged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from bridge.cli.pictures import Row, grid, save_png, strip, wrap


def plain(size: tuple[int, int], colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", size, colour)


def ink(sheet: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(sheet) == np.array(colour)).all(-1)


@pytest.mark.parametrize("size", [(8, 8), (64, 32), (300, 500)])
def test_images_are_whole_and_in_order(size: tuple[int, int]) -> None:
    colours = [[(200, 0, 10 * j), (0, 200, 10 * j)][i] for i in range(2) for j in range(3)]
    rows = [Row(f"row {i}", "detail", [plain(size, colours[3 * i + j]) for j in range(3)]) for i in range(2)]
    sheet = grid(rows, ["a", "b", "c"], "title", "subtitle")
    corners = []
    for colour in colours:
        ys, xs = np.nonzero(ink(sheet, colour))
        high, wide = np.ptp(ys) + 1, np.ptp(xs) + 1
        assert high * wide == len(ys)  # nothing is written over it
        assert wide % size[0] == 0 and wide // size[0] == high // size[1] and min(wide, high) >= 224
        corners.append((ys.min(), xs.min()))
    assert corners == sorted(corners)


def test_long_labels_stay_inside() -> None:
    image = plain((16, 16), (250, 0, 0))
    short = grid([Row("HSO", "1 2 3", [image])], ["seed 0"], "fox", "x")
    long = grid([Row("method " * 40, "9" * 400 + " 1" * 500, [image])], ["seed 0"], "word " * 400, "w" * 500)
    for sheet in (short, long):
        ys, xs = np.nonzero(ink(sheet, (250, 0, 0)))
        assert len(ys) == (np.ptp(ys) + 1) * (np.ptp(xs) + 1)
        values = np.asarray(sheet)
        for edge in (values[0], values[-1], values[:, 0], values[:, -1]):
            assert (edge == 255).all()
        below = values[ys.max() + 1 :]
        assert (below == 255).all()  # a label is no taller than its row


def test_rows_must_match() -> None:
    image = plain((16, 16), (0, 0, 0))
    with pytest.raises(ValueError, match="need 2 images"):
        grid([Row("a", "", [image])], ["seed 0", "seed 1"], "", "")
    with pytest.raises(ValueError, match="one size"):
        grid([Row("a", "", [image, plain((8, 8), (0, 0, 0))])], ["seed 0", "seed 1"], "", "")


def test_wrap() -> None:
    font = ImageFont.load_default(size=16)
    text = "the quick brown fox jumps over the lazy dog"
    lines = wrap(text, font, 120, 9)
    assert " ".join(lines) == text and all(font.getlength(line) <= 120 for line in lines)
    cut = wrap(text, font, 120, 2)
    assert len(cut) == 2 and cut[-1].endswith("\u2026") and font.getlength(cut[-1]) <= 120
    assert wrap("two\nlines", font, 500, 5) == ["two", "lines"]


def test_strip_takes_frames_evenly() -> None:
    frames = [plain((4, 4), (i, 0, 0)) for i in range(9)]
    values = np.asarray(strip(frames, most=3))
    assert values.shape == (4, 12, 3) and values[0, ::4, 0].tolist() == [0, 4, 8]
    assert strip(frames[:1]).size == (4, 4)


def test_a_picture_that_cannot_be_written_leaves_no_trace(tmp_path: Path) -> None:
    image = plain((4, 4), (1, 2, 3))
    with pytest.raises(OSError):
        save_png(image, tmp_path / "missing" / "a.png", {})
    save_png(image, tmp_path / "a.png", {"prompt": "f\u00fcchse"})
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.text["prompt"] == "f\u00fcchse"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]

"""A labelled grid of images: rows are schedules, columns are seeds."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from hso_jax.files import write_whole

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_INK, _FAINT, _PAPER = (24, 24, 28), (112, 112, 120), (255, 255, 255)
_LEAST_CELL = 224  # pixels of a cell's shorter side; smaller images are enlarged so that labels stay in proportion
_GUTTER_TEXT = 17  # most that row labels take, in text heights


class Row(NamedTuple):
    """One row of the grid.

    Attributes:
        name: of the schedule.
        detail: smaller text below it.
        images: one for each column, all of one size.
    """

    name: str
    detail: str
    images: Sequence[Image.Image]


def grid(rows: Sequence[Row], columns: Sequence[str], title: str, subtitle: str) -> Image.Image:
    """The picture: title, a label over each column and left of each row, images of equal size.

    Raises:
        ValueError: for rows of different lengths or images of different sizes.
    """
    sizes = {image.size for row in rows for image in row.images}
    if len(sizes) != 1 or {len(row.images) for row in rows} != {len(columns)}:
        raise ValueError(f"need {len(columns)} images of one size in every row, got sizes {sorted(sizes)}")
    width, height = sizes.pop()
    # Whole multiples show the pixels of tiny images as they are.
    factor = -(-_LEAST_CELL // min(width, height))
    width, height = width * factor, height * factor
    text = max(15, round(min(width, height) / 22))
    large, normal, small = (ImageFont.load_default(size=x) for x in (round(text * 1.5), round(text * 1.15), text))
    gap = max(6, text // 2)
    margin = 2 * text
    labels = [(line, normal) for row in rows for line in row.name.splitlines()]
    labels += [(line, small) for row in rows for line in row.detail.splitlines()]
    gutter = min(max(round(font.getlength(line)) for line, font in labels), _GUTTER_TEXT * text) + margin
    full = margin + gutter + len(columns) * (width + gap) - gap + margin

    title_lines = wrap(title, large, full - 2 * margin, 2)
    subtitle_lines = wrap(subtitle, small, full - 2 * margin, 3)
    top = margin + len(title_lines) * _line(large) + len(subtitle_lines) * _line(small) + text
    header = _line(small) + gap
    sheet = Image.new("RGB", (full, top + header + len(rows) * (height + gap) - gap + margin), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _write(draw, (margin, margin), title_lines, large, _INK)
    _write(draw, (margin, y), subtitle_lines, small, _FAINT)
    for j, column in enumerate(columns):
        draw.text((_left(j, margin, gutter, width, gap) + width // 2, top), column, _FAINT, small, "ma")
    for i, row in enumerate(rows):
        y = top + header + i * (height + gap)
        for j, image in enumerate(row.images):
            enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (_left(j, margin, gutter, width, gap), y))
        room = gutter - margin // 2
        below = _write(draw, (margin, y), wrap(row.name, normal, room, 2), normal, _INK)
        most = max(1, (y + height - below - gap // 2) // _line(small))
        _write(draw, (margin, below + gap // 2), wrap(row.detail, small, room, most), small, _FAINT)
    return sheet


def strip(frames: Sequence[Image.Image], most: int = 4) -> Image.Image:
    """Up to `most` frames of a video, evenly spaced, side by side."""
    count = min(most, len(frames))
    chosen = [frames[round(i * (len(frames) - 1) / max(count - 1, 1))] for i in range(count)]
    width, height = chosen[0].size
    sheet = Image.new("RGB", (width * count, height))
    for i, frame in enumerate(chosen):
        sheet.paste(frame, (i * width, 0))
    return sheet


def encoded(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    """The content of a PNG file; `texts` say how the picture was made."""
    info = PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, _unicode(value))
    buffer = io.BytesIO()
    image.save(buffer, "png", pnginfo=info)
    return buffer.getvalue()


def save_png(image: Image.Image, path: str | os.PathLike[str], texts: Mapping[str, str]) -> None:
    """Write what `encoded` gives, whole.

    Raises:
        OSError: if the folder does not exist or cannot be written.
    """
    write_whole(path, encoded(image, texts))


def wrap(text: str, font: Font, width: int, most: int) -> list[str]:
    """Lines of at most `width` pixels; what does not fit in `most` lines ends in an ellipsis."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in _unicode(paragraph).split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    cut = len(lines) > most
    kept = [_fitted(line, font, width) for line in lines[:most]]
    if cut and kept:
        kept[-1] = _fitted(kept[-1] + " \u2026", font, width)
    return kept


def _unicode(text: str) -> str:
    """Without lone surrogates, which stand for bytes of an argument that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _fitted(line: str, font: Font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    body = line.rstrip(" \u2026")
    while body and font.getlength(body + "\u2026") > width:
        body = body[:-1]
    return body + "\u2026"


def _line(font: Font) -> int:
    _, top, _, bottom = font.getbbox("Ag")
    return round((bottom - top) * 1.45)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str], font: Font, ink: tuple[int, int, int]
) -> int:
    x, y = at
    for line in lines:
        draw.text((x, y), line, ink, font)
        y += _line(font)
    return y


def _left(j: int, margin: int, gutter: int, width: int, gap: int) -> int:
    return margin + gutter + j * (width + gap)

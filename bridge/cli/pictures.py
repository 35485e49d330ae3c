"""Pictures from a pipeline: one schedule, several seeds, or several schedules side by side in a labelled grid."""

from __future__ import annotations

import argparse
import inspect
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import track

from bridge.noise_of import noise_schedule_of
from bridge.schedulers.install import replace_scheduler, with_schedule
from bridge.schedulers.nonstationary import NonstationaryScheduler
from hso_jax.baselines import baseline
from hso_jax.checks import nearest
from hso_jax.cli.common import parse_nfe, warn
from hso_jax.files import MARK, check_writable, figure_kind, write_whole
from hso_jax.schedule import Schedule

COMPARED_SEEDS = "0-3"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_INK, _FAINT, _PAPER = (24, 24, 28), (112, 112, 120), (255, 255, 255)
_LEAST_CELL = 224  # pixels of a cell's shorter side; smaller images are enlarged so that labels stay in proportion
_GUTTER_TEXT = 17  # most that row labels take, in text heights


class Plan(NamedTuple):
    """What is to be drawn: `compare` adds the default and trailing schedules, `reference` a row of so many steps."""

    prompt: str
    seeds: tuple[int, ...]
    call: Mapping[str, Any]
    compare: bool
    reference: int | None


def plan(args: argparse.Namespace) -> Plan:
    """Read the options; every fault that can be found without loading the pipeline is found here."""
    if figure_kind(args.output, stream=True) != "png":
        raise ValueError(f"cannot draw {args.output}: use a name that ends in .png")
    check_writable(args.output, "picture", args.force, [args.schedule])
    if args.reference is not None and (not args.compare or args.reference < 1):
        raise ValueError("--reference needs --compare and a number of steps of at least 1")
    call = read_options(args.option, "the schedule, --prompt or --seed")
    seeds = parse_seeds(args.seed or (COMPARED_SEEDS if args.compare else "0"))
    return Plan(args.prompt, seeds, call, args.compare, args.reference)


def read_options(options: Sequence[str], setters: str) -> dict[str, Any]:
    """Read arguments of a pipeline's call from KEY=VALUE; VALUE is JSON or else a text. `setters` set the others."""
    call: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--option {option!r}: write KEY=VALUE")
        if key in ("num_inference_steps", "timesteps", "sigmas", "generator", "prompt", "output_type", "return_dict"):
            raise ValueError(f"--option {key}: leave it out; {setters} sets it")
        try:
            call[key] = json.loads(text)
        except (ValueError, RecursionError):
            call[key] = text
    return call


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0`, `0-3` or `1,5,9`, in rising order. Raises ValueError for anything else."""
    try:
        raised = ("-".join(str(int(x) + 1) for x in part.strip().split("-")) for part in text.split(","))
        return tuple(n - 1 for n in parse_nfe(",".join(raised)))  # which count from 1
    except ValueError:
        raise ValueError(f"seed {text!r}: write 0, 0-3 or 1,5,9 (at most 999)") from None


def load(folder: Path, device: str | None, dtype: str | None) -> Any:
    """The pipeline in a local folder, on its device."""
    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = "cpu" if found is None else found.type
    kind = getattr(torch, dtype or ("float32" if device == "cpu" else "bfloat16"))
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, dtype=kind)
    except ImportError:
        raise
    except Exception as error:  # whatever a damaged or foreign component makes its library raise
        raise ValueError(f"diffusers cannot load {folder}: {type(error).__name__}: {error}") from error
    try:
        pipe.to(device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device it has not got
        raise ValueError(f"device {device!r} cannot be used: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read_images(files: Sequence[Path]) -> list[Image.Image]:
    """The pictures in these files."""
    found = []
    for file in files:
        try:
            with Image.open(file) as image:
                found.append(image.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"--image {file} cannot be read: {error}") from error
    return found


def from_image(pipe: Any) -> Any:
    """The image-to-image pipeline of the same parts."""
    try:
        return diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError as error:
        name = type(pipe).__name__
        raise ValueError(f"diffusers has no image-to-image pipeline for {name}; leave out --image") from error


class Row(NamedTuple):
    """One row of the grid: its name, smaller text below it, and an image for each column, all of one size."""

    name: str
    detail: str
    images: Sequence[Image.Image]


class Entry(NamedTuple):
    """A row to sample: its name, what is written below, the scheduler and the steps to ask for."""

    name: str
    detail: str
    scheduler: Any
    steps: int


def render(pipe: Any, schedule: Schedule, others: Sequence[Schedule], plan: Plan) -> bytes:
    """Sample and draw the picture; returns the content of a PNG file.

    The pipeline has the plain scheduler to sample by, which the chosen schedule must fit; others to compare with that
    do not fit are left out, with a note.
    """
    call, base, rows = arguments(pipe, plan), pipe.scheduler, list[Row]()
    entries = schedulers(pipe, schedule, others, plan)
    work = [(entry, seed) for entry in entries for seed in plan.seeds]
    images = []
    for entry, seed in track(work, "sampling", console=Console(stderr=True), transient=True):
        replace_scheduler(pipe, entry.scheduler)
        images.append(draw(pipe, call, entry.steps, seed))
        if seed != plan.seeds[-1]:
            continue
        told = "" if entry.steps != schedule.nfe else _list(entry.scheduler.timesteps.unique().flip(0).tolist())
        if plan.reference is not None and rows:  # the mean distance from the first row, in levels of 0..255
            pairs = zip(images, rows[0].images, strict=True)
            errors = [np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in pairs]
            told += f"\nRMS to reference {np.mean([np.sqrt(np.mean(e**2)) for e in errors]):.1f} of 255"
        rows.append(Row(entry.name, f"{entry.detail}\n{told}".strip(), images))
        images = []
    replace_scheduler(pipe, base)
    texts = {"Software": MARK, "prompt": plan.prompt, "seeds": _list(plan.seeds), "schedule": rows[-1].detail}
    if len(work) == 1:
        return encoded(rows[0].images[0], texts)
    sampler = type(base).__name__.removesuffix("Scheduler")
    subtitle = f"{type(pipe).__name__}, {sampler}, {schedule.nfe} steps, the same noise in each column"
    return encoded(grid(rows, [f"seed {seed}" for seed in plan.seeds], plan.prompt, subtitle), texts)


def schedulers(pipe: Any, schedule: Schedule, others: Sequence[Schedule], plan: Plan) -> list[Entry]:
    """Reference, default, trailing, the others, and the chosen schedule last; without a comparison only the last."""
    base, nfe = pipe.scheduler, schedule.nfe
    chosen = _entry(base, schedule)
    if not plan.compare:
        return [chosen]
    noise = noise_schedule_of(pipe, image_seq_len=tokens(pipe, plan))
    # Flow models have no such rule, though some of their classes have the entry.
    rule = base.config.get("timestep_spacing") if noise.kind == "vp" else None
    rows = [Entry("default", f"{rule} spacing" if rule else "", base, nfe)]
    if plan.reference is not None:
        rows.insert(0, Entry("reference", f"default, {plan.reference} steps", base, plan.reference))
    if not any(s.method == "trailing" for s in others):
        rows.append(_entry(base, baseline("trailing", noise, nfe, p=schedule.origin.p)))
    for other in others:
        if (other.method, other.layout, other.end) == (schedule.method, schedule.layout, schedule.end):
            continue
        try:
            rows.append(_entry(base, other))
        except ValueError as error:
            warn(f"skipped {other.method} ({other.layout}): {error}")
    return [*rows, chosen]


def tokens(pipe: Any, plan: Plan) -> int:
    """Image tokens, 2 x 2 latents each, for models whose shift follows the size; 4096 where no size is given."""
    height, width = plan.call.get("height"), plan.call.get("width")
    if not height or not width:
        return 4096
    side = 2 * int(getattr(pipe, "vae_scale_factor", 8))
    return max(1, (height // side) * (width // side))


def arguments(pipe: Any, plan: Plan) -> dict[str, Any]:
    """The call's arguments beside steps and noise."""
    known = inspect.signature(pipe.__call__).parameters
    call = dict(plan.call)
    if "prompt" in known:
        call["prompt"] = plan.prompt
    elif "class_labels" in known:
        number = plan.prompt.isdecimal()
        call["class_labels"] = [int(plan.prompt)] if number else pipe.get_label_ids([plan.prompt])
    else:
        raise ValueError(f"{type(pipe).__name__} takes neither a prompt nor a class; sample it from Python")
    empty, starred = inspect.Parameter.empty, (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [k for k, p in known.items() if p.default is empty and p.kind not in starred and k not in call]
    if missing or ("strength" in known and "image" in known and "image" not in call):
        raise ValueError(f"{type(pipe).__name__} needs {', '.join(missing) or 'image'}; sample it from Python")
    if unknown := [name for name in call if name not in known]:
        raise ValueError(f"{type(pipe).__name__} does not take {', '.join(unknown)}{nearest(unknown[0], known)}")
    return call


def draw(pipe: Any, call: Mapping[str, Any], steps: int, seed: int) -> Image.Image:
    """One image (a strip of frames for a video). The noise comes from the CPU, so that every device has the same."""
    generator = torch.Generator("cpu").manual_seed(seed)
    result = pipe(**call, num_inference_steps=steps, generator=generator, output_type="np")
    values = np.asarray(result.frames if hasattr(result, "frames") else result.images, np.float32)[0]
    if not np.isfinite(values).all():
        raise ValueError(f"the pipeline returned values that are not numbers (seed {seed}); try --dtype float32")
    pixels = (values.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    return strip([Image.fromarray(frame) for frame in pixels]) if pixels.ndim == 4 else Image.fromarray(pixels)


def _entry(base: Any, schedule: Schedule) -> Entry:
    stop = "to clean" if schedule.end == "clean" else f"stops at t = {schedule.t[-1]:.3g}"
    name = "HSO" if schedule.method == "hso" else schedule.method
    scheduler = with_schedule(base, schedule)
    switched = f", solver {schedule.solver}" if isinstance(scheduler, NonstationaryScheduler) else ""
    own = ", its own solver" if schedule.coefficients is not None else switched
    return Entry(name, f"{schedule.layout}, {stop}{own}", scheduler, schedule.nfe)


def _list(values: Sequence[float]) -> str:
    return " ".join(f"{x:.0f}" if x >= 10 or x == int(x) else f"{x:.2g}" for x in values)


def grid(rows: Sequence[Row], columns: Sequence[str], title: str, subtitle: str) -> Image.Image:
    """The picture: title, a label over each column and left of each row, images of equal size."""
    sizes = {image.size for row in rows for image in row.images}
    if len(sizes) != 1 or {len(row.images) for row in rows} != {len(columns)}:
        raise ValueError(f"need {len(columns)} images of one size in every row, got sizes {sorted(sizes)}")
    width, height = sizes.pop()
    # Whole multiples show the pixels of tiny images as they are.
    factor = -(-_LEAST_CELL // min(width, height))
    width, height = width * factor, height * factor
    text = max(15, round(min(width, height) / 22))
    large, normal, small = (ImageFont.load_default(size=x) for x in (round(text * 1.5), round(text * 1.15), text))
    gap, margin = max(6, text // 2), 2 * text
    labels = [(line, normal) for row in rows for line in row.name.splitlines()]
    labels += [(line, small) for row in rows for line in row.detail.splitlines()]
    gutter = min(max(round(font.getlength(line)) for line, font in labels), _GUTTER_TEXT * text) + margin
    left = [margin + gutter + j * (width + gap) for j in range(len(columns))]
    full = left[-1] + width + margin
    title_lines, subtitle_lines = wrap(title, large, full - 2 * margin, 2), wrap(subtitle, small, full - 2 * margin, 3)
    top = margin + len(title_lines) * _line(large) + len(subtitle_lines) * _line(small) + text
    first = top + _line(small) + gap
    sheet = Image.new("RGB", (full, first + len(rows) * (height + gap) - gap + margin), _PAPER)
    draw = ImageDraw.Draw(sheet)

    def write(x: int, y: int, lines: Sequence[str], font: Font, ink: tuple[int, int, int]) -> int:
        for line in lines:
            draw.text((x, y), line, ink, font)
            y += _line(font)
        return y

    write(margin, write(margin, margin, title_lines, large, _INK), subtitle_lines, small, _FAINT)
    for x, column in zip(left, columns, strict=True):
        draw.text((x + width // 2, top), column, _FAINT, small, "ma")
    for i, row in enumerate(rows):
        y = first + i * (height + gap)
        for x, image in zip(left, row.images, strict=True):
            sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (x, y))
        room = gutter - margin // 2
        below = write(margin, y, wrap(row.name, normal, room, 2), normal, _INK) + gap // 2
        most = max(1, (y + height - below) // _line(small))
        write(margin, below, wrap(row.detail, small, room, most), small, _FAINT)
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
    """Write what `encoded` gives, whole."""
    write_whole(path, encoded(image, texts))


def wrap(text: str, font: Font, width: int, most: int) -> list[str]:
    """Lines of at most `width` pixels; what does not fit in `most` lines ends in an ellipsis."""
    lines: list[str] = []
    for paragraph in _unicode(text).splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} \u2026"]
    return [_fitted(line, font, width) for line in lines]


def _unicode(text: str) -> str:
    """Without lone surrogates, which stand for bytes of an argument that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _fitted(line: str, font: Font, width: int) -> str:
    while font.getlength(line) > width and line != "\u2026":
        line = line.rstrip(" \u2026")[:-1] + "\u2026"
    return line


def _line(font: Font) -> int:
    _, top, _, bottom = font.getbbox("Ag")
    return round((bottom - top) * 1.45)

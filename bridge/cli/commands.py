"""The work of `hso-jax apply`, `sample`, `recommend --pipeline` and `tune`.

Each is an entry point of the group `hso_jax.commands`: it takes the parsed arguments, returns the exit code, and raises
ValueError or OSError for bad input before it writes anything.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers

from bridge.at_hand import distillation_of
from bridge.cli import pictures
from bridge.recommending import recommend as recommended_for
from bridge.schedulers.install import check_class, replace_scheduler, with_schedule
from bridge.schedulers.rows import check_supported
from bridge.schedulers.scheduled import NONSTATIONARY_CLASS, SCHEDULE_KEY, plain_config, without_schedule
from bridge.tuning import choose
from bridge.tuning import tune as tuned
from bridge.tuning.choose import Chosen
from hso_jax import files, schedule_file
from hso_jax.checks import printable
from hso_jax.cli import common
from hso_jax.cli.show import number, print_table
from hso_jax.schedule import Schedule

BACKUP_SUFFIX = ".before-hso"
_INDEX = "model_index.json"
_CONFIG = "scheduler_config.json"


def apply(args: argparse.Namespace) -> int:
    """Write a schedule into a pipeline folder, or into a second folder that shares its weights."""
    every = None if args.schedule is None else schedule_file.load(args.schedule)
    named = None if every is None else selected(args, every)
    folder = pipeline_folder(args.pipeline)
    scheduler = read_scheduler(folder, args.scheduler)
    schedule = recommended(args, stand_in(folder, scheduler)) if named is None else named
    scheduler = with_schedule(scheduler, schedule)
    if cls := getattr(diffusers, str(_read(folder / _INDEX).get("_class_name")), None):
        check_class(cls, scheduler)
    target = folder if args.save is None else args.save
    if args.save is None:
        install(scheduler, folder)
    else:
        share(folder, args.save, scheduler)
    args.written.append(target)
    common.say(f"wrote the {printable(describe(scheduler.schedule))} schedule into {printable(target)}")
    common.say(
        f"to use it: import bridge; DiffusionPipeline.from_pretrained({str(target)!r}), "
        f"num_inference_steps={schedule.nfe}"
    )
    return 0


def sample(args: argparse.Namespace) -> int:
    """Sample one picture, one for each of several seeds, or a comparison of schedules."""
    every = [] if args.schedule is None else schedule_file.load(args.schedule)
    named = None if args.schedule is None else selected(args, every)
    folder = pipeline_folder(args.pipeline)
    plan = pictures.plan(args)
    pipe = pictures.load(folder, args.device, args.dtype)
    replace_scheduler(pipe, plain(pipe.scheduler, args.scheduler))
    schedule = named or recommended(args, pipe, image_seq_len=pictures.tokens(pipe, plan))
    others = [s for s in every if s.nfe == schedule.nfe]
    picture = pictures.render(pipe, schedule, others if args.compare else [], plan)
    files.write_all([(args.output, picture)], args.written)
    if not files.is_stream(args.output):
        common.say(f"wrote {printable(args.output)}")
    return 0


def recommend(args: argparse.Namespace) -> int:
    """Measure on a pipeline what it is best with; the file of measurements beside the output is resumed from."""
    if args.model:
        raise ValueError("--model and --pipeline are both given; give one")
    if args.distilled not in (None, "no"):
        raise ValueError(f"--distilled {args.distilled}: such a model keeps its own schedule; leave out --pipeline")
    output, checkpoint = args.output, None
    if output is not None:
        files.check_writable(output, "schedules", args.force, [args.prompts])
        checkpoint = None if files.is_stream(output) else output.with_name(f"{output.name}.checkpoint")
    if args.plot is not None:
        files.check_writable(args.plot, "picture", args.force, [args.prompts])
    folder, nfes = pipeline_folder(args.pipeline), common.parse_nfe(args.nfe)
    call = pictures.read_options(args.option, "--prompts, --nfe or --seed")
    pipe = pictures.load(folder, args.device, args.dtype)
    if args.distilled is None and (told := distillation_of(pipe)):
        raise ValueError(
            f"{folder} counts as distilled: {told[1]}; it keeps its own schedule. If it is not distilled, add "
            "--distilled no"
        )
    prompts = read_prompts(args.prompts, pipe)
    with _shown("measuring") as show:
        found = choose(
            pipe, nfes, prompts=prompts, guidance=args.guidance, solver=args.scheduler, budget=args.budget,
            batch=args.batch, seed=args.seed, checkpoint=checkpoint, progress=show, **call,
        )  # fmt: skip
    if output is not None:
        content = schedule_file.to_json(list(found.schedules.values()))
        files.write_all([(output, content.encode())], args.written)
    if args.plot is not None:
        found.plot(args.plot)
        args.written.append(args.plot)
    if args.json:
        common.write(files.json_text(found.plain()))
    elif output is None or not files.is_stream(output):
        for nfe in found.measured:
            _print_measured(found, nfe, args.all)
        for line in str(found).splitlines():
            common.say_words(line)
    for path in args.written:
        common.warn(f"wrote {printable(path)}")
    return 0


def _print_measured(found: Chosen, nfe: int, everything: bool) -> None:
    """Print what was measured to be the best, what the pipeline has and the best rule, or everything."""
    ranked = found.measured[nfe]
    choices = {"recommended": ranked[0], "yours": found.current[nfe], "best rule": found.rule(nfe)}
    names = [", ".join(name for name, one in choices.items() if one is measured) for measured in ranked]
    rows = [(name, one) for name, one in zip(names, ranked, strict=True) if everything or name]
    columns = {
        "choice": [name for name, _ in rows],
        "schedule": [one.name for _, one in rows],
        "error": [number(one.error, 4) for _, one in rows],
        "noises": [str(len(one.errors)) for _, one in rows],
    }
    print_table(f"N = {nfe}: measured errors", columns, ["schedule"], ["choice", "schedule"])


def tune(args: argparse.Namespace) -> int:
    """Tune a schedule on a pipeline; the output file always holds the best one so far."""
    output: Path = args.output
    if files.is_stream(output):
        raise ValueError(f"output is {output}; name a file, because it is replaced at each better schedule")
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    files.check_writable(output, "schedules", args.force, [args.prompts, checkpoint, *(args.image or [])])
    folder = pipeline_folder(args.pipeline)
    call = pictures.read_options(args.option, "--prompts, --nfe or --seed")
    if args.image:
        if "image" in call:
            raise ValueError("--option image: use --image instead")
        call["image"] = pictures.read_images(args.image)
    pipe = pictures.load(folder, args.device, args.dtype)
    if args.image:
        pipe = pictures.from_image(pipe)
    prompts = read_prompts(args.prompts, pipe)

    def write(schedule: Schedule) -> None:
        files.write_whole(output, schedule_file.to_json(schedule).encode())
        if output not in args.written:
            args.written.append(output)

    with _shown("tuning") as show:
        found = tuned(
            pipe, args.nfe, prompts=prompts, guidance=args.guidance, solver=args.solver, budget=args.budget,
            teacher_steps=args.teacher_steps, samples=args.samples, batch=args.batch, seed=args.seed,
            checkpoint=checkpoint, progress=show, improved=write, **call,
        )  # fmt: skip
    write(found.schedule)
    common.say(*map(printable, str(found).splitlines()))
    common.say(
        f"wrote {printable(output)}; to use it: hso-jax apply {printable(output)} --pipeline {printable(folder)} "
        f"--nfe {args.nfe}"
    )
    return 0


@contextlib.contextmanager
def _shown(words: str) -> Iterator[Callable[..., None]]:
    """A bar of evaluations, and of the least error so far where there is one."""
    with common.progress() as bar:
        task = bar.add_task(words, total=None)

        def show(done: int, total: int, error: float | None = None) -> None:
            found = "" if error is None else f", error {error:.4g}"
            bar.update(task, completed=done, total=total, description=f"{words}{found}")

        yield show


def read_prompts(path: Path | None, pipe: Any) -> list[Any]:
    """The lines of a file, for a pipeline that takes classes their numbers; the empty text without a file."""
    lines = [""] if path is None else files.read_text(path).splitlines()
    prompts: list[Any] = [line.strip() for line in lines if line.strip()] or [""]
    if path is not None and "class_labels" in inspect.signature(pipe.__call__).parameters:
        prompts = [int(p) if p.isdecimal() else pipe.get_label_ids([p])[0] for p in prompts]
    return prompts


def selected(args: argparse.Namespace, every: Sequence[Schedule]) -> Schedule:
    """The schedule of the file that the options name. Raises ValueError as `schedule_file.select` does."""
    named = {name: getattr(args, name) for name in ("nfe", "layout", "method", "solver", "guidance")}
    try:
        return schedule_file.select(every, **named)
    except ValueError as error:
        raise ValueError(f"{args.schedule}: {error}") from error


def recommended(args: argparse.Namespace, pipe: Any, **sizes: Any) -> Schedule:
    """The recommended schedule for a pipeline, if no file is named; one line on standard error says why."""
    if args.nfe is None:
        raise ValueError("--nfe must be given: it is the number of steps. Or name a schedule file")
    if given := [f"--{name}" for name in ("layout", "method") if getattr(args, name) is not None]:
        raise ValueError(f"{', '.join(given)}: needs a schedule file to choose from; name one")
    found = recommended_for(pipe, args.nfe, guidance=args.guidance, solver=args.solver, **sizes)
    common.warn(found.reason)
    if found.distilled is not None:
        raise ValueError("this distilled model keeps its own schedule; to replace it anyway, name a schedule file")
    return found.schedule


def stand_in(folder: Path, scheduler: Any) -> Any:
    """An object with a pipeline's class, scheduler and configs but without its weights, read from its folder."""
    index = _read(folder / _INDEX)
    name = str(index.get("_class_name"))
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise ValueError(f"{folder} is a {name}, which is no pipeline of diffusers; name a schedule file")
    path = str(index.get("_name_or_path") or folder.resolve().name)
    parts: dict[str, Any] = {"scheduler": scheduler, "name_or_path": path}
    for network in ("unet", "transformer"):
        if (config := folder / network / "config.json").is_file():
            parts[network] = SimpleNamespace(config=_read(config))
    guides = {name: getattr(cls, name) for name in ("do_classifier_free_guidance",) if hasattr(cls, name)}
    return type(name, (SimpleNamespace,), {"__call__": cls.__call__, **guides})(**parts)


def describe(schedule: Schedule) -> str:
    """Method, N, layout, end, and whether it is a solver too, in a few words."""
    solver = f", {NONSTATIONARY_CLASS}" if schedule.coefficients is not None else ""
    return f"{schedule.nfe}-step {schedule.method} ({schedule.layout}, end {schedule.end}{solver})"


def pipeline_folder(path: Path) -> Path:
    """The folder, if it is a local pipeline; nothing is ever looked up on the network."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; --pipeline takes a local folder that save_pretrained wrote")
    for file in (path / _INDEX, path / "scheduler" / _CONFIG):
        if not file.is_file():
            raise ValueError(f"{path} is no folder that save_pretrained wrote: it has no {file.relative_to(path)}")
    return path


def read_scheduler(folder: Path, class_name: str | None = None) -> Any:
    """The plain diffusers scheduler of a pipeline folder, without a schedule that was installed before."""
    config = _read(folder / "scheduler" / _CONFIG)
    return _build(config, class_name or str(plain_config(config).get("_class_name")))


def plain(scheduler: Any, class_name: str | None = None) -> Any:
    """The diffusers scheduler that a (scheduled or plain) one was before, or another class with its config."""
    return _build(scheduler.config, class_name or type(without_schedule(scheduler)).__name__)


def install(scheduler: Any, folder: Path) -> None:
    """Write a scheduled scheduler into a pipeline folder: its config, and in the index the package that loads it.

    The files as they were before the first installation stay beside them. If not all can be written, nothing
    is changed.
    """
    config, index = folder / "scheduler" / _CONFIG, folder / _INDEX
    document = _read(index)
    document["scheduler"] = ["bridge", type(scheduler).__name__]
    before = config.read_bytes()
    new = [(config, scheduler.to_json_string().encode()), (index, (json.dumps(document, indent=2) + "\n").encode())]
    backups = []
    if SCHEDULE_KEY not in _read(config):
        kept = [(file.with_name(file.name + BACKUP_SUFFIX), file.read_bytes()) for file, _ in new]
        backups = [(backup, content) for backup, content in kept if not os.path.lexists(backup)]
    written: list[Path] = []
    try:
        files.write_all([*backups, *new], written)
    except BaseException:
        if config in written and index not in written:
            files.write_whole(config, before)
        if index not in written:
            for backup, _ in backups:
                backup.unlink(missing_ok=True)
        raise


def share(folder: Path, target: Path, scheduler: Any) -> None:
    """Make `target` a pipeline folder that has its own scheduler and links to everything else in `folder`."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists; choose another name, or change it in place with --pipeline {target}")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"cannot write {target}: the folder {target.absolute().parent} does not exist")
    building = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}."))
    try:
        for item in sorted(folder.iterdir()):
            if item.name in ("scheduler", _INDEX) or item.name.endswith(BACKUP_SUFFIX):
                continue
            _link(item.resolve(), building / item.name)
        (building / "scheduler").mkdir()
        shutil.copyfile(folder / _INDEX, building / _INDEX)
        shutil.copyfile(folder / "scheduler" / _CONFIG, building / "scheduler" / _CONFIG)
        install(scheduler, building)
        for backup in (building / f"{_INDEX}{BACKUP_SUFFIX}", building / "scheduler" / f"{_CONFIG}{BACKUP_SUFFIX}"):
            backup.unlink(missing_ok=True)  # they are in the folder it was made from
        mask = os.umask(0)
        os.umask(mask)
        building.chmod(0o777 & ~mask)
        if target.exists():
            target.rmdir()
        os.replace(building, target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:  # a system or a disk without symbolic links
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = files.read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is not a readable JSON file ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"{file} holds a JSON {type(document).__name__}, not an object")
    return document


def _build(config: Any, class_name: str) -> Any:
    check_supported(class_name)
    kept = plain_config(config)
    cls = getattr(diffusers, class_name)
    if "clip_sample" in inspect.signature(cls.__init__).parameters and kept.get("_class_name") != class_name:
        kept.setdefault("clip_sample", False)  # DDIM's own default clips; a class that does not mention it does not
    return cls.from_config(kept)

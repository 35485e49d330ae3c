"""What `hso-jax tune` does; its parser is in `hso_jax.cli.bridge_commands`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge.cli import commands, pictures
from bridge.tuning import tune
from hso_jax import files, schedule_file
from hso_jax.checks import printable
from hso_jax.cli import terminal
from hso_jax.profile import Profile
from hso_jax.schedule import Schedule


def run(args: argparse.Namespace) -> int:
    """Tune, with the best so far in the output file.

    Raises:
        ValueError, OSError: for bad input; nothing was written then.
    """
    output: Path = args.output
    if files.is_stream(output):
        raise ValueError(f"output is {output}; need a file: it is written again at each better schedule")
    checkpoint = output.with_name(f"{output.name}.checkpoint") if args.checkpoint is None else args.checkpoint
    files.check_writable(output, "schedules", args.force, [args.prompts, args.profile, checkpoint, *(args.image or [])])
    folder = commands.pipeline_folder(args.pipeline)
    call = pictures.read_options(args.option, "that is set by --prompts, --nfe or --seed")
    if args.image and "image" in call:
        raise ValueError("--option image: that is set by --image")
    profile = None if args.profile is None else Profile.load(args.profile)
    if args.image:
        call["image"] = pictures.read_images(args.image)
    pipe = pictures.load(folder, args.device, args.dtype)
    if args.image:
        pipe = pictures.from_image(pipe)
    prompts = commands.read_prompts(args.prompts, pipe)

    def write(schedule: Schedule) -> None:
        content = schedule_file.checked_json(schedule).encode()
        files.write_whole(output, content)
        if output not in args.written:
            args.written.append(output)

    with terminal.progress() as bar:
        task = bar.add_task("tuning", total=args.budget)

        def told(evaluations: int, budget: int, error: float | None) -> None:
            words = "making converged samples" if error is None else f"tuning, error {error:.4g}"
            bar.update(task, completed=evaluations, total=budget, description=words)

        found = tune(
            pipe,
            args.nfe,
            prompts=prompts,
            guidance=args.guidance,
            solver=args.solver,
            budget=args.budget,
            teacher_steps=args.teacher_steps,
            samples=args.samples,
            batch=args.batch,
            by=args.by,
            detail=args.detail,
            profile=profile,
            seed=args.seed,
            checkpoint=checkpoint,
            progress=told,
            improved=write,
            **call,
        )
    write(found.schedule)
    print(printable(str(found)))
    print(
        f"wrote {printable(output)}; use it: hso-jax apply {printable(output)} --pipeline {printable(folder)} "
        f"--nfe {args.nfe}"
    )
    return 0

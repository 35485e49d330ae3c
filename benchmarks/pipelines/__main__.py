r"""Compare schedules on a diffusers pipeline on disk: same prompts, same noise, exactly N evaluations of its network.

    python -m benchmarks.pipelines --pipeline ./sd21-base --prompts captions.json --count 256
    accelerate launch -m benchmarks.pipelines --pipeline ./sdxl --prompts prompts.txt --nfe 4,6 --guidance 5
    python -m benchmarks.pipelines --pipeline ./flux-dev --prompts prompts.tsv --solvers euler --option height=512 \
        --option width=512 --methods default,trailing,zoo,mine.json --extractor inception.pt --reference stats.npz

The same command goes on where it was stopped. docs/benchmark-pipelines.md has whole examples and what they take.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import runner
from benchmarks.pipelines import settings
from benchmarks.pipelines.settings import CONVERGED, CONVERGED_SOLVER, Setting, read_prompts
from benchmarks.runner import COMPARED, budgets, exit_code, names

OUT = Path("build/benchmarks")
CHECKED = 16  # converged samples that are made with half as many evaluations too
_WAIT = datetime.timedelta(days=2)  # of one process for the others; the default is minutes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    return exit_code(_run, _parser().parse_args(argv), "finished images")


def _run(args: argparse.Namespace) -> int:
    methods = settings.read_methods(args.methods)
    solvers, call = settings.read_solvers(args.solvers), _call(args)
    wanted = [Setting(method, solver, nfe) for solver in solvers for nfe in args.nfe for method in methods]
    if args.converged < 4 * max(args.nfe):
        raise ValueError(f"--converged {args.converged}: use at least 4 times the largest N, {4 * max(args.nfe)}")
    if args.batch < 1 or args.seed < 0:
        raise ValueError(f"--batch is {args.batch} and --seed {args.seed}; need 1 or more, and 0 or more")
    prompts = read_prompts(args.prompts, column=args.column, count=args.count, shuffle=args.shuffle)

    import diffusers
    from accelerate import PartialState  # type: ignore[import-untyped]

    from benchmarks.pipelines import images, judge
    from bridge import noise_schedule_of
    from bridge.cli import commands, pictures

    folder = commands.pipeline_folder(args.pipeline)
    settings.check(methods, noise_schedule_of(commands.read_scheduler(folder)))
    extraction: Any = None
    reference: Any = None
    if args.extractor is not None:
        if len(prompts) < 2:
            raise ValueError("--extractor needs two prompts or more")
        extraction = judge.read_extraction(args.extractor, max(args.batch, 16))
    if args.reference is not None:
        if extraction is None:
            raise ValueError("--reference needs --extractor FILE, a TorchScript file that makes features of images")
        reference = judge.read_reference(args.reference, extraction)
    state = PartialState(cpu=args.device == "cpu", timeout=_WAIT)
    if args.device not in (None, "cpu") and state.num_processes > 1:
        raise ValueError(f"--device {args.device}: leave it out with several processes, each has its own")
    device = args.device or str(state.device)
    dtype = args.dtype or ("float32" if device.partition(":")[0] == "cpu" else "bfloat16")
    main_process = state.is_main_process
    facts = _facts(folder, call, args.seed, dtype, device)
    store = images.Store(args.out or OUT / folder.resolve().name, facts, prompts, args.batch)

    pipe = pictures.load(folder, device, dtype)
    plan = pictures.Plan("", (), call, False, None)
    noise = noise_schedule_of(pipe, image_seq_len=pictures.tokens(pipe, plan), name=folder.resolve().name)
    sampler = images.Sampler(pipe, noise, call, args.seed)
    converged, half = (Setting(CONVERGED, CONVERGED_SOLVER, n) for n in (args.converged, args.converged // 2))
    counts = {converged: len(prompts), half: min(CHECKED, len(prompts)), **dict.fromkeys(wanted, len(prompts))}
    if main_process:
        store.open()
        for setting in counts:
            file = methods.get(setting.method)
            if file is None and store.prepared(setting) is not None:
                continue  # a file is always read again, since it may have changed
            prepared = settings.prepare(setting, file, noise, sampler.guidance)
            sampler.scheduler(setting, prepared.schedule)  # raises where it does not fit
            store.keep(setting, prepared)
    state.wait_for_everyone()
    jobs = [(s, batch) for s, count in counts.items() for batch in store.missing(s, count)]
    state.wait_for_everyone()  # nobody makes an image before all have seen what is missing
    if main_process:
        double = " (each of them two in one batch, for guidance)" if sampler.guidance > 1.0 else ""
        told = f"{sum(len(batch) for _, batch in jobs)} images to make in {store.folder}: {images.work(jobs):,}"
        print(f"{told} network evaluations of one image{double}", flush=True)
    # Every so many jobs to a process, so that the long ones are spread evenly.
    own = jobs[state.process_index :: state.num_processes]
    diffusers.logging.set_verbosity_error()  # a warning for every prompt that is longer than the text encoder takes
    images.generate(store, own, sampler, progress=main_process)
    state.wait_for_everyone()
    if main_process:
        if isinstance(reference, list):
            reference = judge.moments_of_images(reference, extraction, store.folder / "reference.npz")
        _report(args, judge.Judge(store, counts, extraction, reference), store, counts, sampler, facts)
    state.destroy_process_group()
    return 0


def _facts(folder: Path, call: dict[str, Any], seed: int, dtype: str, device: str) -> dict[str, Any]:
    """What all images of a run depend on, beside the prompts."""
    import diffusers
    import torch

    from benchmarks.pipelines import images

    return {
        "pipeline": json.loads((folder / "model_index.json").read_text()).get("_class_name"),
        "model": images.fingerprint(folder),
        "call": call,
        "seed": seed,
        "dtype": dtype,
        "device": device.partition(":")[0],
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def _call(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    from bridge.cli.pictures import read_options

    call = read_options(args.option, "the comparison")
    return call if args.guidance is None else {**call, "guidance_scale": args.guidance}


def _report(
    args: argparse.Namespace, judge: Any, store: Any, counts: dict[Setting, int], sampler: Any, facts: dict[str, Any]
) -> None:
    """Measure, and write records, tables and grids."""
    import torch

    from benchmarks.pipelines.judge import write

    setup = runner.this_setup()
    if facts["device"] == "cuda":
        setup["gpu"] = torch.cuda.get_device_name()
    common = {"model": sampler.noise.name, "guidance": sampler.guidance, "seed": args.seed, "dtype": facts["dtype"]}
    path = store.folder / "records.jsonl"
    known = {record.cell: record for record in runner.read(path).cells}
    (converged, _), (_, checked), *wanted = counts.items()
    found = []
    for setting, _ in wanted:
        record = judge.record(setting, store.prepared(setting).seconds, common)
        if known.get(record.cell) != record:
            runner.append(path, record, setup)
        found.append(record)
    head = {
        "pipeline": f"{facts['pipeline']}, {facts['dtype']}",
        "prompts": f"{len(store.prompts)} of {args.prompts.name}",
        "call": json.dumps(facts["call"]),
        "guidance weight that schedules are searched for": f"{sampler.guidance:g}",
        "seed": str(args.seed),
    }
    files = write(found, store, converged, checked, head)
    print(f"{len(found)} settings measured: {path}, {', '.join(file.name for file in files)}")
    worst = min((r.rmse for r in found if r.rmse), default=None)
    if worst is not None and judge.error > worst / 3:
        moved = f"the converged samples still move by {judge.error:.3g}, and the smallest error is {worst:.3g}"
        print(f"{moved}: take more --converged evaluations than {args.converged}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = runner.command("python -m benchmarks.pipelines", __doc__)
    add = parser.add_argument
    add("--pipeline", type=Path, required=True, metavar="PATH", help="local folder that save_pretrained wrote")
    add("--prompts", type=Path, required=True, metavar="FILE", help="a prompt a line, COCO captions .json, .csv, .tsv")
    add("--column", metavar="NAME", help="of a table; default prompt or caption")
    add("--count", type=int, metavar="N", help="first N prompts; default all")
    add("--shuffle", type=int, metavar="SEED", help="take prompts in a random order")
    add("--solvers", type=names, default=COMPARED, help=f"default {','.join(COMPARED)}")
    add("--nfe", type=budgets, default=[4, 6, 8], help="such as 4,6,8 or 4-8; default 4,6,8")
    methods = ("default", "trailing", "hso", "solver-error")
    told = f"{', '.join(settings.METHODS)}, or a schedule file (.json); default {','.join(methods)}"
    add("--methods", type=names, default=methods, help=told)
    add("--guidance", type=float, metavar="W", help="guidance_scale of the pipeline's call; default the pipeline's")
    told = "another argument of the call, VALUE in JSON: height=512, max_sequence_length=256; repeatable"
    add("--option", action="append", default=[], metavar="KEY=VALUE", help=told)
    add("--converged", type=int, default=64, metavar="N", help="evaluations of the converged samples; default 64")
    add("--extractor", type=Path, metavar="FILE", help="TorchScript: images [n, 3, H, W] in [-1, 1] to features [n, d]")
    add("--reference", type=Path, metavar="PATH", help="a folder of images, or mu and sigma in a .npz (pytorch-fid's)")
    add("--seed", type=int, default=0, help="of the noise; default 0")
    add("--batch", type=int, default=8, help="images a call of the pipeline; default 8")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="default float32 on the CPU, else bfloat16")
    add("--device", help="cpu, cuda, cuda:1, mps; default what accelerate gives this process")
    add("--out", type=Path, metavar="FOLDER", help=f"of images and results; default {OUT}/NAME")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

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
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import arguments
from benchmarks.arguments import budgets, exit_code, names
from benchmarks.pipelines import settings
from benchmarks.pipelines.prompts import read_prompts
from benchmarks.solvers import COMPARED

if TYPE_CHECKING:
    from benchmarks.metrics import Moments
    from benchmarks.pipelines.features import Extraction
    from benchmarks.pipelines.generate import Job, Sampler
    from benchmarks.pipelines.image_store import Store
    from benchmarks.pipelines.settings import Setting

OUT = Path("build/benchmarks")
CHECKED = 16  # converged samples that are made with half as many evaluations too
_SET = ("prompt", "num_inference_steps", "timesteps", "sigmas", "generator", "latents", "output_type", "return_dict")
_WAIT = datetime.timedelta(days=2)  # of one process for the others; the default is minutes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    return exit_code(_run, _parser().parse_args(argv), "finished images")


def _run(args: argparse.Namespace) -> int:
    methods = settings.read_methods(args.methods)
    wanted = settings.combinations(methods, settings.read_solvers(args.solvers), args.nfe)
    call = _call(args)
    if args.converged < 4 * max(args.nfe):
        raise ValueError(f"--converged {args.converged}: use at least 4 times the largest N, {4 * max(args.nfe)}")
    if args.batch < 1 or args.seed < 0:
        raise ValueError(f"--batch is {args.batch} and --seed {args.seed}; need 1 or more, and 0 or more")
    prompts = read_prompts(args.prompts, column=args.column, count=args.count, shuffle=args.shuffle)

    import diffusers
    from accelerate import PartialState  # type: ignore[import-untyped]

    from benchmarks.pipelines import generate, image_store
    from bridge import noise_schedule_of
    from bridge.cli import commands, pictures

    folder = commands.pipeline_folder(args.pipeline)
    out: Path = args.out or OUT / folder.resolve().name
    settings.check(methods, noise_schedule_of(commands.read_scheduler(folder)))
    extraction, reference = _judged_by(args, len(prompts))
    state = PartialState(cpu=args.device == "cpu", timeout=_WAIT)
    if args.device not in (None, "cpu") and state.num_processes > 1:
        raise ValueError(f"--device {args.device}: leave it out with several processes, each has its own")
    device = args.device or str(state.device)
    dtype = args.dtype or ("float32" if device.partition(":")[0] == "cpu" else "bfloat16")
    main_process = state.is_main_process
    facts = _facts(folder, call, args.seed, dtype, device)
    store = image_store.Store(out, facts, prompts, args.batch)

    pipe = pictures.load(folder, device, dtype)
    plan = pictures.Plan("", (), call, False, None)
    noise = noise_schedule_of(pipe, image_seq_len=pictures.tokens(pipe, plan), name=folder.resolve().name)
    sampler = generate.Sampler(pipe, noise, call, args.seed)
    converged, half = settings.converged(args.converged), settings.converged(args.converged // 2)
    if main_process:
        store.open()
        for setting, prepared in _prepared([converged, half, *wanted], methods, store, sampler).items():
            sampler.scheduler(setting, prepared.schedule)  # raises where it does not fit
            store.keep(setting, prepared)
    counts = {converged: len(prompts), half: min(CHECKED, len(prompts)), **dict.fromkeys(wanted, len(prompts))}
    state.wait_for_everyone()
    jobs = [generate.Job(s, batch) for s, count in counts.items() for batch in store.missing(s, count)]
    state.wait_for_everyone()  # nobody makes an image before all have seen what is missing
    if main_process:
        _announce(jobs, store, sampler)
    own = generate.share(jobs, state.process_index, state.num_processes)
    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()  # a warning for every prompt that is longer than the text encoder takes
    try:
        generate.generate(store, own, sampler, progress=main_process)
    finally:
        diffusers.logging.set_verbosity(verbosity)
    state.wait_for_everyone()
    if main_process:
        _judge(args, store, wanted, counts, sampler, facts, extraction, reference)
    state.destroy_process_group()
    return 0


def _facts(folder: Path, call: dict[str, Any], seed: int, dtype: str, device: str) -> dict[str, Any]:
    """What all images of a run depend on, beside the prompts."""
    import diffusers
    import torch

    from benchmarks.pipelines import image_store

    return {
        "pipeline": json.loads((folder / "model_index.json").read_text()).get("_class_name"),
        "model": image_store.fingerprint(folder),
        "call": call,
        "seed": seed,
        "dtype": dtype,
        "device": device.partition(":")[0],
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def _call(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    call: dict[str, Any] = {} if args.guidance is None else {"guidance_scale": args.guidance}
    for option in args.option:
        key, equals, text = option.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--option {option!r}: write KEY=VALUE")
        if key in _SET or key in call:
            raise ValueError(f"--option {key}: that is set by the comparison, or given twice")
        try:
            call[key] = json.loads(text)
        except ValueError:
            call[key] = text
    return call


def _judged_by(args: argparse.Namespace, count: int) -> tuple[Extraction | None, Moments | Path | None]:
    """The extractor, and the reference: a stats file's moments, or a folder whose images can be read."""
    if args.extractor is None:
        if args.reference is not None:
            raise ValueError("--reference needs --extractor FILE, a TorchScript file that makes features of images")
        return None, None
    import torch

    from benchmarks import metrics
    from benchmarks.pipelines import features

    if count < 2:
        raise ValueError("--extractor needs two prompts or more")
    extract = metrics.extractor(args.extractor, "")
    try:
        shape = extract(torch.zeros(2, 3, 64, 64)).shape
    except RuntimeError as error:
        raise ValueError(f"--extractor {args.extractor} does not take images [2, 3, 64, 64]: {error}") from error
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(f"--extractor {args.extractor} makes {shape} of two images; it must be [2, features]")
    digest = hashlib.sha256(args.extractor.read_bytes()).hexdigest()
    extraction = features.Extraction(extract, digest, shape[1], max(args.batch, 16))
    if args.reference is None:
        return extraction, None
    if args.reference.is_dir():
        features.list_images(args.reference)
        return extraction, args.reference
    if not args.reference.is_file():
        raise ValueError(f"--reference {args.reference} is neither a folder of images nor a stats file (.npz)")
    return extraction, features.read_stats(args.reference, extraction.features)


def _prepared(
    wanted: Sequence[Setting], methods: dict[str, Path | None], store: Store, sampler: Sampler
) -> dict[Setting, settings.Prepared]:
    """Schedules from the store, and new ones for the rest; a file is always read, since it may have changed."""
    known = {s: store.prepared(s) for s in wanted if methods.get(s.method) is None}
    found = {s: prepared for s, prepared in known.items() if prepared is not None}
    rest = [s for s in wanted if s not in found]
    if rest:
        print(f"finding {len(rest)} schedules", file=sys.stderr)
    return found | settings.prepare(rest, methods, sampler.noise, sampler.guidance)


def _announce(jobs: Sequence[Job], store: Store, sampler: Sampler) -> None:
    images = sum(len(job.indices) for job in jobs)
    work = sum(job.work for job in jobs)
    double = " (each of them two in one batch, for guidance)" if sampler.guidance > 1.0 else ""
    print(f"{images} images to make in {store.folder}: {work:,} network evaluations of one image{double}", flush=True)


def _judge(
    args: argparse.Namespace,
    store: Store,
    wanted: Sequence[Setting],
    counts: dict[Setting, int],
    sampler: Sampler,
    facts: dict[str, Any],
    extraction: Extraction | None,
    reference: Moments | Path | None,
) -> None:
    """Measure, and write records, tables and grids."""
    import torch

    from benchmarks.networks import records
    from benchmarks.pipelines import features, report
    from benchmarks.pipelines.measure import Judge

    converged, half = list(counts)[:2]
    if isinstance(reference, Path) and extraction is not None:
        files = features.list_images(reference)
        reference = features.moments_of_images(files, extraction, store.folder / "reference.npz", progress=True)
    assert not isinstance(reference, Path)
    judge = Judge(store, converged, half, counts[half], extraction, reference, progress=True)
    setup = records.this_setup(torch.get_num_threads())
    if facts["device"] == "cuda":
        setup["gpu"] = torch.cuda.get_device_name()
    common = {"model": sampler.noise.name, "guidance": sampler.guidance, "seed": args.seed, "dtype": facts["dtype"]}
    path = store.folder / "records.jsonl"
    known = {record.cell: record for record in records.read(path).cells}
    found = []
    for setting in wanted:
        prepared = store.prepared(setting)
        assert prepared is not None
        record = judge.record(setting, prepared.seconds, common)
        if known.get(record.cell) != record:
            records.append(path, record, setup)
        found.append(record)
    head = {
        "pipeline": f"{facts['pipeline']}, {facts['dtype']}",
        "prompts": f"{len(store.prompts)} of {args.prompts.name}",
        "call": json.dumps(facts["call"]),
        "guidance weight that schedules are searched for": f"{sampler.guidance:g}",
        "seed": str(args.seed),
    }
    files = report.write(found, store, converged, counts[half], head)
    print(f"{len(found)} settings measured: {path}, {', '.join(file.name for file in files)}")
    worst = min((r.rmse for r in found if r.rmse), default=None)
    if worst is not None and judge.error > worst / 3:
        print(
            f"the converged samples still move by {judge.error:.3g}, and the smallest error is {worst:.3g}: take more "
            f"--converged evaluations than {args.converged}",
            file=sys.stderr,
        )


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser("python -m benchmarks.pipelines", __doc__)
    add = parser.add_argument
    add("--pipeline", type=Path, required=True, metavar="PATH", help="local folder that save_pretrained wrote")
    add(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="a prompt a line, or COCO captions .json, .csv, .tsv",
    )
    add("--column", metavar="NAME", help="of a table; default prompt or caption")
    add("--count", type=int, metavar="N", help="first N prompts; default all")
    add("--shuffle", type=int, metavar="SEED", help="take prompts in a random order")
    add("--solvers", type=names, default=COMPARED, help=f"default {','.join(COMPARED)}")
    add("--nfe", type=budgets, default=[4, 6, 8], help="such as 4,6,8 or 4-8; default 4,6,8")
    add(
        "--methods", type=names, default=("default", "trailing", "hso", "solver-error"),
        help=f"{', '.join(settings.METHODS)}, or a schedule file (.json); default default,trailing,hso,solver-error",
    )  # fmt: skip
    add("--guidance", type=float, metavar="W", help="guidance_scale of the pipeline's call; default the pipeline's")
    add(
        "--option", action="append", default=[], metavar="KEY=VALUE",
        help="another argument of the call, VALUE in JSON: height=512, max_sequence_length=256; repeatable",
    )  # fmt: skip
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

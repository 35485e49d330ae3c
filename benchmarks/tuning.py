"""Tuning on trained networks, own and from outside: measure what is missing, then report from the records.

python -m benchmarks.tuning --measure                      the project's own networks
python -m benchmarks.tuning --measure --networks PATH      and those that PATH/networks.py names; stops and resumes
python -m benchmarks.tuning                                the page from the records alone
python -m benchmarks.tuning --picture docs/images/emoji-flow.png   the README's picture, in two minutes
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import diffusers
import torch

from benchmarks import measure, runner
from benchmarks.methods import EVALUATIONS, MANY_EVALUATIONS, prepare
from benchmarks.models.load import MODELS
from benchmarks.plots import pictures, save, tuning_figure
from benchmarks.runner import ANY, Cell, Record, budgets, check_names, exit_code, names
from benchmarks.tables import Ratio, markdown, means, number
from benchmarks.targets import Judged, Networks, network_options, own
from bridge.cli.pictures import Row, grid, save_png
from hso_jax.files import write_whole

RECORDS = Path("docs/results/tuning.jsonl")
BUDGETS = (4, 5, 6, 8)
PICTURED, PICTURED_NFE, PICTURED_COLUMNS = "emoji-flow", 4, 9

JUDGED, FINE = 64, 192
"""Samples that schedules are judged on (points: 16 times as many), and the evaluations of their converged samples."""

WAYS = {
    "tune": "nodes and coefficients",
    "tune-gradients": "the same, with gradients through the network",
    "nodes": "nodes for UniPC-3",
    "nodes-2m": "nodes for DPM++ 2M",
    "nodes-gradients": "nodes for UniPC-3, with gradients through the network (as LD3)",
    "gits": "GITS, nodes for UniPC-3",
    "tune-50k": "nodes and coefficients, ten times the evaluations",
    "nodes-50k": "nodes for UniPC-3, ten times the evaluations",
}
"""How a schedule is made by looking at the model."""

PLAIN, AT_END = ("rule", "zoo"), "zoo-end"
METHODS = (*PLAIN, AT_END, *WAYS)
SHOWN = (*PLAIN, "tune")  # in every cell
LIMITS = {"tune": "tune-50k", "nodes": "nodes-50k"}
Network = tuple[str, int]  # its name, and N


def write(records: Sequence[Record], path: Path) -> list[Path]:
    """Write the page beside the records, and its picture; returns their paths."""
    if not records:
        raise ValueError(f"{path} has no records; measure some with --measure")
    page, picture = path.with_suffix(".md"), path.with_suffix(".png")
    save(tuning_figure(records), picture)
    write_whole(page, text(records, picture.name).encode())
    return [page, picture]


def text(records: Sequence[Record], picture: str) -> str:
    """Write the page's text."""
    found = by_network(records)
    known = [name for name in METHODS if any(r.method == name for r in records)]
    described = "\n".join(f"- `{name}`: {way}." for name, way in WAYS.items() if name in known)
    ways = [name for name in WAYS if name in known and not name.endswith("-50k")]
    equal = [place for place, cells in found.items() if {"rule", *ways} <= set(cells)]
    return f"""# What tuning on the model buys

Made by `python -m benchmarks.tuning`. Networks: the project's own ({", ".join(MODELS)}), and networks by other people
that nothing here was trained on. Guidance 1. Errors are root mean squares of {JUDGED} samples (16 times as many where
samples are points) to converged ones of {FINE} evaluations, on noise that no method saw. Each method may spend
{EVALUATIONS} evaluations of the network on a schedule, its converged samples and gradients (3 each) included.

- `rule`: the best of all rules, each with the best of DDIM, DPM++ 2M and UniPC-3, chosen on the very noise it is judged
  on: better than anyone could choose.
- `zoo`: `SolverError("nonstationary")`, as shipped for models that are in the zoo: no evaluation of the network.
- `zoo-end`: the same with `first="end"`, which is another schedule for the epsilon models with a noise end beyond
  sigma/alpha = 60 (up to N = 4: 25) alone, the two of digits; these numbers were chosen on them.
{described}

## Error

`rule` / `zoo` / `tune`:

{_errors(found, "rmse")}
Ratios to the best rule and to the zoo's schedule, geometric means over the cells that both have:

{_ratios(found, ("zoo", AT_END, "tune", *LIMITS.values()), found)}
![Error against evaluations]({picture})

## All ways at equal evaluations

`nodes` searches the nodes directly, `nodes-gradients` by gradients through the network (as LD3), `gits` by dynamic
programming. The cells that have them all: {", ".join(f"{name} at N = {nfe}" for name, nfe in equal)}.

{_ratios(found, ways, equal)}
## What ten times the evaluations reach

Errors with {EVALUATIONS} evaluations over those with {MANY_EVALUATIONS}:

{means(["network", "N"], _limits(found))}
## Fréchet distance to the converged samples

Of the features of the project's own classifiers, on its own networks alone; {JUDGED} samples are few for it.
`rule` / `zoo` / `tune`:

{_errors(found, "fid")}
## Not better than its start

{_worse(records)}

## Memory of `by="gradients"`

GiB on the device beside text encoders and VAE, computed without weights: the parameters, and what one evaluation keeps
for its backward pass with fused attention. Each evaluation is checkpointed, so that one evaluation's activations count.
The default, `by="differences"`, needs what sampling needs.

{memory()}
"""


Found = dict[Network, dict[str, Record]]


def by_network(records: Sequence[Record]) -> Found:
    """Sort records into network and N to method to record, the project's own networks first."""
    names = list(dict.fromkeys([*MODELS, *(r.model for r in records)]))
    found: Found = {}
    for r in sorted(records, key=lambda r: (names.index(r.model), r.nfe)):
        found.setdefault((r.model, r.nfe), {})[r.method] = r
    return found


def _errors(found: Found, field: str) -> str:
    rows: dict[str, dict[int, str]] = {}
    for (name, nfe), cells in found.items():
        values = [getattr(cells.get(method), field, None) for method in SHOWN]
        if any(x is not None for x in values):
            rows.setdefault(name, {})[nfe] = " / ".join(map(number, values))
    budgets = sorted({nfe for own in rows.values() for nfe in own})
    told = ([name, *(own.get(nfe, "") for nfe in budgets)] for name, own in rows.items())
    return markdown(["network", *(f"N = {nfe}" for nfe in budgets)], told)


def _ratios(found: Found, methods: Sequence[str], places: Collection[Network]) -> str:
    """Errors of methods over those of the methods `PLAIN`, where both have one, and evaluations of the network."""
    ratios: list[Ratio] = []
    for method in methods:
        own = [place for place in places if method in found[place]]
        spent = [found[place][method].calls for place in own]
        row = (f"`{method}`", str(len(own)), f"{min(spent, default=0):,} to {max(spent, default=0):,}")
        for place in own:
            for other in PLAIN:
                if method != other and (mine := _error(found, place, method)) and (base := _error(found, place, other)):
                    ratios.append((row, f"to `{other}`", mine / base))
    return means(["method", "cells", "evaluations"], ratios, largest=True)


def _error(found: Found, place: Network, method: str) -> float | None:
    return found[place][method].rmse if method in found[place] else None


def _limits(found: Found) -> list[Ratio]:
    """What ten times the evaluations reach, a row a cell."""
    return [
        ((place[0], str(place[1])), f"`{few}`", mine / theirs)
        for place in found
        for few, many in LIMITS.items()
        if (mine := _error(found, place, few)) and (theirs := _error(found, place, many))
    ]


def _worse(records: Sequence[Record]) -> str:
    places: dict[str, list[str]] = {}
    for r in records:
        if r.method in WAYS and r.error == r.start_error:
            places.setdefault(r.method, []).append(f"{r.model} (N = {r.nfe})")
    told = [f"- `{method}`: {', '.join(own)}." for method, own in places.items()]
    head = "These found no better point on the samples kept apart, and return their start:\n\n"
    return head + "\n".join(told) if told else "None: on the samples kept apart every one is better than its start."


# ---- memory of a gradient through one evaluation, of networks of the sizes people run, without weights or data
#
# On PyTorch's meta device a forward pass allocates nothing and still records which tensors its backward pass needs;
# their bytes, each storage once, are the activations. Tuning checkpoints each evaluation (`bridge/tuning/models.py`),
# so that the activations of one evaluation and the parameters are what has to fit.

DTYPE = torch.bfloat16
GIB = 2**30


class Sized(NamedTuple):
    """A network as its repository configures it, on the meta device, and what it is called with for one image.

    A tuple in `call` is a tensor of that shape; `embedded` guidance is an input, and not a second evaluation.
    """

    make: Callable[..., torch.nn.Module]
    config: Mapping[str, Any]
    call: Mapping[str, Any]
    source: str = "the class's defaults"
    embedded: bool = False


def _unet(size: int, width: int, **more: Any) -> dict[str, Any]:
    return {"sample": (1, 4, size, size), "timestep": 500, "encoder_hidden_states": (1, 77, width), **more}


NETWORKS = {
    "SD 1.5, 512 x 512": Sized(
        diffusers.UNet2DConditionModel,
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}, _unet(64, 768),
    ),
    "SDXL, 1024 x 1024": Sized(
        diffusers.UNet2DConditionModel,
        {
            "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        _unet(128, 2048, added_cond_kwargs={"text_embeds": (1, 1280), "time_ids": (1, 6)}),
        "SDXL base 1.0's unet/config.json",
    ),
    "SD3 medium, 1024 x 1024": Sized(
        diffusers.SD3Transformer2DModel,
        {
            "sample_size": 128, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
            "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
        {
            "hidden_states": (1, 16, 128, 128), "encoder_hidden_states": (1, 333, 4096),
            "pooled_projections": (1, 2048), "timestep": (1,),
        },
        "SD3 medium's transformer/config.json",
    ),
    "FLUX.1-dev, 1024 x 1024": Sized(
        diffusers.FluxTransformer2DModel,
        {"guidance_embeds": True},
        {
            "hidden_states": (1, 4096, 64), "encoder_hidden_states": (1, 512, 4096), "pooled_projections": (1, 768),
            "timestep": (1,), "guidance": (1,), "img_ids": (4096, 3), "txt_ids": (512, 3),
        },
        embedded=True,
    ),
}  # fmt: skip


def _tensors(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: _tensors(x) for name, x in given.items()}
    return torch.empty(given, dtype=DTYPE, device="meta") if isinstance(given, tuple) else given


class _Attention(torch.autograd.Function):
    """Attention as fused kernels keep it: queries, keys, values and the result, and no matrix of weights."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result)
        return result


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return _Attention.apply(query, key, value)


def gradient_bytes(network: Sized) -> tuple[int, int]:
    """Bytes of the parameters, and of the activations that one evaluation of one sample keeps for its backward pass."""
    with torch.device("meta"):
        made = network.make(**network.config).to(DTYPE).requires_grad_(False)
    parameters = {x.untyped_storage()._cdata for x in made.parameters()}
    held: list[torch.Tensor] = []  # a storage that was freed would give its address to another
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        place = x.untyped_storage()._cdata
        if place not in parameters:
            held.append(x)
            kept[place] = x.untyped_storage().nbytes()
        return x

    inputs = _tensors(network.call)
    first = next(iter(inputs))
    inputs[first] = inputs[first].requires_grad_()
    fused = mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention)
    with fused, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        made(**inputs, return_dict=False)
    return sum(x.numel() * x.element_size() for x in made.parameters()), sum(kept.values())


def memory() -> str:
    """A row a network, in GiB."""
    rows = []
    for name, network in NETWORKS.items():
        parameters, activations = gradient_bytes(network)
        sizes = [f"{x / GIB:.1f}" for x in (parameters, activations, parameters + activations)]
        guided = "-" if network.embedded else f"{(parameters + 2 * activations) / GIB:.1f}"
        rows.append([name, *sizes, guided, network.source])
    head = ["bfloat16, one sample", "parameters", "activations", "without guidance", "with guidance", "configured as"]
    return markdown(head, rows, left=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    parser = runner.command("python -m benchmarks.tuning", __doc__)
    add = parser.add_argument
    network_options(parser)
    add("--measure", action="store_true", help="measure what the records do not have")
    add("--picture", type=Path, metavar="FILE", help="draw samples of emoji-flow, and nothing else")
    add("--only", type=names, help="some networks; default all")
    add("--nfe", type=budgets, default=BUDGETS, help="such as 4,6,8 or 4-8; default 4,5,6,8")
    add("--methods", type=names, help="default all; a wrong name lists them")
    add("--records", type=Path, default=RECORDS, metavar="FILE", help="default %(default)s; the page is beside it")
    return exit_code(_run, parser.parse_args(argv), "finished cells")


def _run(args: argparse.Namespace) -> int:
    if args.picture is not None:
        picture(args.picture)
        print(f"wrote {args.picture}")
        return 0
    if args.measure:
        networks = Networks.given(args)
        every, methods = [*MODELS, *networks.names()], args.methods or METHODS
        check_names("only", args.only or (), every)
        check_names("method", methods, METHODS)
        cells = [
            Cell(name, 1.0, ANY, nfe, method, 0, JUDGED, "float32")
            for nfe in args.nfe
            for name in args.only or every
            for method in methods
        ]
        print(f"{measure.run(args.records, cells, networks, images=JUDGED, fine=FINE)} cells measured: {args.records}")
    for written in write(runner.read(args.records).cells, args.records):
        print(f"wrote {written}")
    return 0


def picture(path: Path) -> None:
    """Draw the same noise in few steps as pipelines have them, recommended and tuned; and converged.

    No choice sees the noise that is drawn; each error is that of all of it.
    """
    if path.exists():
        raise ValueError(f"{path} is there already; remove it, or name another file")
    one, nfe = own(PICTURED), PICTURED_NFE
    judged = Judged(one, JUDGED, FINE)

    def row(name: str, method: str, solver: str | None, detail: str) -> Row:
        made = prepare(method, one, ANY, nfe)
        samples = one.sample(made.schedule, solver or made.schedule.solver, judged.latents)
        text = f"{detail.format(made.calls)}\nRMSE {number(judged.rmse(samples))}"
        return Row(name, text, pictures(samples[:PICTURED_COLUMNS]))

    rows = [
        row(f"{nfe} steps of Euler", "trailing", "ddim", "evenly spaced, as FLUX has it"),
        row("of UniPC", "trailing", "unipc-2", "evenly spaced"),
        row("recommended", "recommend", None, "no evaluation of the model"),
        row("tuned", "tune", None, "{:,} evaluations"),
        Row("converged", f"{FINE} steps", pictures(judged.converged[:PICTURED_COLUMNS])),
    ]
    noises = [f"noise {i}" for i in range(PICTURED_COLUMNS)]
    title = f"{PICTURED}: {nfe} evaluations of the network"
    save_png(grid(rows, noises, title, "The same noise in each column."), path, {})


if __name__ == "__main__":
    raise SystemExit(main())

"""Memory of a gradient through one evaluation, computed: networks of the sizes people run, without weights or data.

On PyTorch's meta device a forward pass allocates nothing and still records which tensors its backward pass would need;
their bytes, each storage once, are the activations. Tuning checkpoints each evaluation (`bridge/tuning/models.py`), so
that the activations of one evaluation and the parameters are what has to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import diffusers
import torch

from benchmarks.tables import markdown

DTYPE = torch.bfloat16
GIB = 2**30


class Network(NamedTuple):
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
    "SD 1.5, 512 x 512": Network(
        diffusers.UNet2DConditionModel,
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}, _unet(64, 768),
    ),
    "SDXL, 1024 x 1024": Network(
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
    "SD3 medium, 1024 x 1024": Network(
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
    "FLUX.1-dev, 1024 x 1024": Network(
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


def gradient_bytes(network: Network) -> tuple[int, int]:
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


def table() -> str:
    """A row a network, in GiB."""
    rows = []
    for name, network in NETWORKS.items():
        parameters, activations = gradient_bytes(network)
        sizes = [f"{x / GIB:.1f}" for x in (parameters, activations, parameters + activations)]
        guided = "-" if network.embedded else f"{(parameters + 2 * activations) / GIB:.1f}"
        rows.append([name, *sizes, guided, network.source])
    head = ["bfloat16, one sample", "parameters", "activations", "without guidance", "with guidance", "configured as"]
    return markdown(head, rows, left=1)

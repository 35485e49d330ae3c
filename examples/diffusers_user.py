"""A diffusers user: the best schedule for a pipeline that I have, in four lines.

    python examples/diffusers_user.py

Needs `pip install -e ".[torch]"` in a clone. A tiny DiT with random weights stands for your model, so its pictures
are noise; with yours, `my_pipeline` is `DiffusionPipeline.from_pretrained("./my-model")` and nothing else changes.
"""

from __future__ import annotations

import tempfile
from typing import Any

import diffusers
import torch

import bridge
import hso_jax

NFE = 6  # model evaluations; with guidance each is one for the class and one without


def my_pipeline() -> Any:
    """A class-conditional pipeline with the noise levels of DiT and PixArt."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)
    scheduler = diffusers.UniPCMultistepScheduler(beta_start=1e-4, beta_end=0.02, solver_order=2)
    pipe = diffusers.DiTPipeline(transformer=transformer.eval(), vae=vae, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any, steps: int, guidance: float) -> Any:
    """Sample with the same noise each time."""
    generator = torch.Generator().manual_seed(1)
    call = {"class_labels": [207], "num_inference_steps": steps, "guidance_scale": guidance}
    return pipe(**call, generator=generator, output_type="np").images[0]


def main() -> None:
    """Read the noise, take a shipped schedule, install it, sample, and save the pipeline with it."""
    pipe = my_pipeline()
    default = picture(pipe, NFE, guidance=4.5)

    # 1. What the pipeline is: its noise levels and its solver.
    noise, solver = bridge.noise_schedule_of(pipe), bridge.solver_of(pipe.scheduler)
    print(f"{noise.kind} model, t in [{noise.t_min:.4g}, {noise.t_max:.4g}], solver {solver}")

    # 2. A schedule made for this noise, solver and guidance weight. It is shipped; `search` finds those that are not.
    schedule = hso_jax.zoo(noise, NFE, solver, guidance=4.5)
    print("timesteps", schedule.integer_timesteps(), "error on the reference problems", round(schedule.error or 0.0, 3))

    # 3. Install it and sample; any other number of steps raises.
    pipe.scheduler = bridge.with_schedule(pipe.scheduler, schedule)
    ours = picture(pipe, NFE, guidance=4.5)
    print(f"RMS difference from the default schedule's picture: {((ours - default) ** 2).mean() ** 0.5:.3f}")

    # 4. The schedule is saved with the pipeline, and comes back with it.
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        again = diffusers.DiTPipeline.from_pretrained(folder)
        again.set_progress_bar_config(disable=True)
        assert (picture(again, NFE, guidance=4.5) == ours).all()
    print("saved and loaded: the same picture")


if __name__ == "__main__":
    main()

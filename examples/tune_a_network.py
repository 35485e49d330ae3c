"""Tune nodes and coefficients on a small trained network, and see whether it helped on noise that it never saw.

The network is one of the benchmarks': a rectified flow of 32 x 32 emoji. Any model is tuned so: all that is needed is a
function that predicts the clean data. Run from anywhere: python examples/tune_a_network.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DModel

import bridge
import hso_jax

NFE, JUDGED = 4, 12
MODEL = Path(__file__).parents[1] / "benchmarks" / "models" / "weights" / "emoji-flow"


def main() -> None:
    """Tune, then compare errors on other noise."""
    unet = UNet2DModel.from_pretrained(MODEL / "unet").eval()
    noise = hso_jax.from_config(MODEL / "scheduler", name="emoji-flow")

    def denoiser(x: torch.Tensor, level: bridge.Level, labels: torch.Tensor) -> torch.Tensor:
        velocity = unet(x.float(), level.timestep, class_labels=labels).sample
        return x - level.sigma * velocity.to(x.dtype)

    def labels_of(count: int) -> torch.Tensor:
        return torch.arange(count) % 8

    seed = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, JUDGED, 3, 32, 32, generator=seed)
    # A sixth of the default budget, so that this takes half a minute on two cores.
    tuned = bridge.tune_denoiser(
        denoiser, noise, NFE, latents=own, condition=labels_of(JUDGED), budget=800, teacher_steps=24, samples=8
    )
    print(tuned)

    def samples(schedule: hso_jax.Schedule, solver: str | None = None) -> torch.Tensor:
        with torch.no_grad():
            return bridge.sample(lambda x, level: denoiser(x, level, labels_of(len(x))), schedule, other, solver)

    converged = samples(hso_jax.baseline("trailing", noise, 100), "dpmpp-2m")
    for name, schedule, solver in (
        ("Euler, trailing", hso_jax.baseline("trailing", noise, NFE), "ddim"),
        ("recommended", hso_jax.recommend(noise, NFE).schedule, None),
        ("tuned", tuned.schedule, None),
    ):
        error = (samples(schedule, solver) - converged).square().mean().sqrt()
        print(f"{name:16} N = {NFE}   RMSE on other noise {error:.4f}")


if __name__ == "__main__":
    main()

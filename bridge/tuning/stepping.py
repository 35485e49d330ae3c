"""Steps by a table of weights, differentiable in it: alone, and as the scheduler of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput

from bridge.schedulers.nonstationary import NonstationaryScheduler, conversion
from bridge.tuning.coordinates import Table


def step(table: Table, i: int, x: torch.Tensor, past: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sample after step i, from the predictions of clean data so far, the newest first."""
    newest, *older = past
    then = x * table.carry[i] + newest * table.predict[i][0]
    for weight, known in zip(table.predict[i][1:], older, strict=False):
        then = then + known * weight
    return then


class TableScheduler(NonstationaryScheduler):
    """A `NonstationaryScheduler` whose levels and weights are those of a table, whatever its schedule says.

    Attributes:
        table: of as many rows as the schedule, with the same first node; set before sampling.
        seen: called with the sample and the prediction of clean data in each step.
    """

    table: Table
    seen: Callable[[torch.Tensor, torch.Tensor], None] | None = None

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        **options: Any,
    ) -> None:
        """As the class that it stands for; the timesteps then are the table's."""
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas, mu, **options)
        told = self.table.timestep
        told = told if isinstance(told, torch.Tensor) else torch.tensor(told, dtype=torch.float64)
        told = told.to(self.timesteps.device, self.timesteps.dtype)
        # Of an image-to-image pipeline's steps the first are not taken.
        self.timesteps = torch.cat([self.timesteps[: len(self.timesteps) - len(told)], told])
        self._step_index = 0

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """As the class that it stands for, at the table's levels."""
        told = torch.as_tensor(timesteps, device=self.timesteps.device).flatten()
        rows = (self.timesteps.detach() - told[:, None]).abs().argmin(1) - len(self.timesteps)
        shape = (-1,) + (1,) * (original_samples.dim() - 1)
        levels = (torch.stack([torch.as_tensor(x[row]) for row in rows]) for x in (self.table.alpha, self.table.sigma))
        alpha, sigma = (x.to(original_samples).reshape(shape) for x in levels)
        return alpha * original_samples + sigma * noise

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The network's input."""
        return sample if self.schedule.kind != "ve" else sample * self._converts(self._step_index or 0)[0]

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the next node; nothing is written in place."""
        index = self._step_index or 0
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        output = model_output if model_output.shape == x.shape else model_output[:, : x.shape[1]]
        _, skip, out = self._converts(index)
        clean = self._clipped(x * skip + output.to(x.dtype) * out)
        if self.seen is not None:
            self.seen(x, clean)
        self._past = (clean, *self._past)[: len(self.table.predict[index])]
        then = step(self.table, index, x, self._past)
        self._step_index = index + 1
        return EulerDiscreteSchedulerOutput(then, clean) if return_dict else (then, clean)

    def _converts(self, index: int) -> tuple[Any, Any, Any]:
        return conversion(self.table.alpha[index], self.table.sigma[index], self.schedule.kind, self.config)

"""Images from a pipeline at given schedules: the same noise for each, and every evaluation of the network counted."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.pipelines.image_store import Store
from benchmarks.pipelines.settings import Setting, scheduler, told_lams
from hso_jax import NoiseSchedule

NETWORKS = ("transformer", "unet")


class Job(NamedTuple):
    """A batch of images of one setting that is to be made."""

    setting: Setting
    indices: range

    @property
    def work(self) -> int:
        """Network evaluations, of one image each."""
        return self.setting.nfe * len(self.indices)


def share(jobs: Sequence[Job], process: int, processes: int) -> list[Job]:
    """One process' part of the jobs: every so many, so that the long ones are spread evenly."""
    return list(jobs[process::processes])


class Sampler:
    """A text-to-image pipeline with its call's arguments, told one scheduler after the other.

    Attributes:
        noise: the pipeline's noise schedule.
        guidance: weight of classifier-free guidance, 1 for none: what schedules are searched for. A pipeline with
            `true_cfg_scale` (FLUX) guides by that; its `guidance_scale` is an input of the network.
    """

    def __init__(self, pipe: Any, noise: NoiseSchedule, call: Mapping[str, Any], seed: int) -> None:
        """Look at the pipeline; it is kept, and has a hook at its network from now on.

        Args:
            pipe: a diffusers pipeline, loaded.
            noise: its noise schedule.
            call: arguments beside prompt, steps and noise.
            seed: of the noise.

        Raises:
            ValueError: if the pipeline takes no prompt, or not an argument of `call`.
        """
        known = inspect.signature(pipe.__call__).parameters
        kind = type(pipe).__name__
        if "prompt" not in known or "image" in known:
            raise ValueError(f"{kind} is not a text-to-image pipeline; only these are compared")
        if unknown := [name for name in call if name not in known]:
            raise ValueError(f"{kind} does not take {', '.join(unknown)}; it takes: {', '.join(known)}")
        networks = [getattr(pipe, name) for name in NETWORKS if getattr(pipe, name, None) is not None]
        if not networks:
            raise ValueError(f"{kind} has no {' or '.join(NETWORKS)}, whose evaluations could be counted")
        self.pipe, self.noise, self.call, self._seed = pipe, noise, dict(call), seed
        weight = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
        self.guidance = max(
            1.0, float((self.call.get(weight, known[weight].default) if weight in known else None) or 1.0)
        )
        self._own = pipe.scheduler
        self._calls = 0
        networks[0].register_forward_pre_hook(self._count)
        if getattr(pipe, "safety_checker", None) is not None:
            pipe.safety_checker = None  # a blacked-out image says nothing of the schedule

    def _count(self, module: Any, args: Any) -> None:
        self._calls += 1

    def scheduler(self, setting: Setting, schedule: Any) -> Any:
        """The scheduler of a setting. Raises ValueError if the schedule is not for this pipeline."""
        return scheduler(self._own, setting.solver, self.noise.kind == "flow", schedule)

    def images(self, scheduler: Any, nfe: int, prompts: Sequence[str], indices: Sequence[int]) -> np.ndarray:
        """Images [n, H, W, 3] float32, in [0, 1] where they are numbers.

        Args:
            scheduler: of a setting.
            nfe: evaluations.
            prompts: n of them.
            indices: of the images; the noise of an image depends on its index and the seed alone.

        Raises:
            RuntimeError: if the network was not called exactly `nfe` times. A batch that guidance doubles is one call.
        """
        call = dict(self.call)
        if isinstance(call.get("negative_prompt"), str):
            call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
        # Drawn on the CPU, so that every device has the same.
        noise = [torch.Generator("cpu").manual_seed(noise_seed(self._seed, i)) for i in indices]
        self.pipe.scheduler = scheduler
        self._calls = 0
        result = self.pipe(list(prompts), num_inference_steps=nfe, generator=noise, output_type="np", **call)
        if self._calls != nfe:
            raise RuntimeError(
                f"{type(self.pipe).__name__} called its network {self._calls} times in {nfe} steps of "
                f"{type(scheduler).__name__}; only pipelines that guide in one call a step are compared"
            )
        return np.asarray(result.images, np.float32)


def noise_seed(seed: int, index: int) -> int:
    """A seed for torch, another one for each image and each seed of the run."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generate(store: Store, jobs: Sequence[Job], sampler: Sampler, *, progress: bool) -> None:
    """Make the images of the jobs and keep them.

    A setting whose images are not numbers is given up: the rest of its jobs is left out, here and in other processes.

    Args:
        store: with the settings' schedules.
        jobs: this process' share.
        sampler: of the pipeline.
        progress: show a bar.

    Raises:
        RuntimeError: as `Sampler.images`.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    text = TextColumn("{task.description}")
    with Progress(*columns, text, disable=not progress, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=sum(job.work for job in jobs))
        current: Setting | None = None
        for job in jobs:
            setting = job.setting
            bar.update(task, description=f"evaluations: {setting.name}")
            if setting != current:
                prepared = store.prepared(setting)
                if prepared is None:
                    raise RuntimeError(f"{setting.name} has no schedule")
                own, current = sampler.scheduler(setting, prepared.schedule), setting
            if not store.diverged(setting):
                prompts = [store.prompts[i] for i in job.indices]
                images = sampler.images(own, setting.nfe, prompts, job.indices)
                if np.isfinite(images).all():
                    store.write(setting, job.indices, images, told_lams(own.timesteps, sampler.noise))
                else:
                    store.give_up(setting, f"images {job.indices.start} to {job.indices.stop - 1} are not numbers")
                    bar.console.print(f"{setting.name}: diverged", highlight=False)
            bar.advance(task, job.work)

"""A small trained diffusers pipeline that ships with the clone: 32 x 32 emoji of a class, by a rectified flow.

    pipe = examples.emoji_pipeline.load()
    images = pipe([7, 3], num_inference_steps=6).images

It stands for your model where a page or a notebook needs one that takes a second. It has the call of diffusers'
class-conditional pipelines, so that all of `bridge` works on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parents[1] / "benchmarks" / "models" / "weights" / "emoji-flow"
CLASSES: list[str] = json.loads((FOLDER / "training.json").read_text())["classes"]
"""What the class labels 0 to 9 mean; 10 is no class."""


class EmojiPipeline(DiffusionPipeline):
    """Class-conditional generation in pixels, with classifier-free guidance."""

    def __init__(self, unet: UNet2DModel, scheduler: Any):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Sample an image for each label; "latent" returns [n, 3, 32, 32] in [-1, 1]."""
        labels = torch.tensor(list(class_labels), device=self.device)
        x = randn_tensor((len(labels), 3, 32, 32), generator, self.device, self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        for t in self.progress_bar(self.scheduler.timesteps):
            velocity = self.unet(x, t, class_labels=labels).sample
            if guidance_scale > 1:
                unguided = self.unet(x, t, class_labels=torch.full_like(labels, len(CLASSES))).sample
                velocity = unguided + guidance_scale * (velocity - unguided)
            x = self.scheduler.step(velocity, t, x).prev_sample
        images = x if output_type == "latent" else VaeImageProcessor().postprocess(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def load() -> EmojiPipeline:
    """The pipeline with its weights, on the CPU, without a progress bar."""
    unet = UNet2DModel.from_pretrained(FOLDER / "unet", local_files_only=True).eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(FOLDER / "scheduler", local_files_only=True)
    pipe = EmojiPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def side_by_side(rows: Mapping[str, Sequence[Image.Image]], scale: int = 3) -> Image.Image:
    """One picture: a row of images for each name."""
    size, gutter = 32 * scale, 150
    sheet = Image.new("RGB", (gutter + max(map(len, rows.values())) * (size + 4), len(rows) * (size + 4)), "white")
    for i, (name, images) in enumerate(rows.items()):
        y = i * (size + 4)
        ImageDraw.Draw(sheet).text((4, y + size // 2), name, "black", ImageFont.load_default(15), "lm")
        for j, image in enumerate(images):
            sheet.paste(image.resize((size, size), Image.Resampling.NEAREST), (gutter + j * (size + 4), y))
    return sheet

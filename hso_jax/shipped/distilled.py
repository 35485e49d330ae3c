"""Models that were distilled to a few steps: how they are told, and the grid that each was trained on.

Such a network does not follow the flow of its noise schedule: it was trained to jump between a few levels of its own,
and the best levels for it are those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from hso_jax.files import read_json
from hso_jax.noise import NoiseSchedule, flow, lam_of_s, s_of_lam
from hso_jax.schedule import Origin, Schedule

MOST_STEPS = 8
"""Models are distilled to at most so many steps. So few without guidance are asked for at a distilled model alone."""

LCM_LEVELS = 50
"""LCM and TCD know so many of the training levels, evenly spaced (diffusers' `original_inference_steps`)."""

FEW_STEP = "few-step"
"""This key stands for a distilled model of which nothing more is known."""


def _of_angles(*angles: float) -> tuple[float, ...]:
    """Rectified flow's s at angles of the trigonometric flow, whose sigma/alpha is tan(angle)."""
    return tuple(float(np.sin(a) / (np.sin(a) + np.cos(a))) for a in angles)


_RCM = (float(np.arctan(80.0)), 1.5, 1.4, 1.0)
_SCM = 1.5708  # where SCMScheduler begins
_LTX = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)


class Distillation(NamedTuple):
    """A way that models are distilled."""

    words: str  # the name, as people write it
    names: tuple[str, ...] = ()  # regular expressions of how a model or a LoRA of it is called, as `words_of` writes it
    classes: tuple[str, ...] = ()  # diffusers schedulers that serve no other model
    grid: str = "trailing"  # or "lcm", or "scm" (even angles)
    sampler: str = "euler"  # ComfyUI's name of a step: "euler" (the ODE), or "lcm" (to clean data, and noise anew)
    levels: Mapping[int, tuple[float, ...]] = MappingProxyType({})  # published s of rectified flow by N; else the grid
    shifts: Mapping[str, float] = MappingProxyType({})  # by preset, where its distilled models have another shift
    source: str = ""  # where the grid is published


_MODELS = (
    r"sd|sdxl|xl|sdv|svd|flux|wan|ltxv?|qwen|image|video|sana|pixart|kolors|hunyuan|chroma|animate|animatediff|zimage|"
    r"cogvideox?|mochi|krea|dreamshaper|realvis|realvisxl|juggernaut"
)
_GLUE = r"cfg|steps?|guidance|de|un|non|few|lora|v"
_FAMILIES = (
    r"lightning|turbo|schnell|lcm|tcd|hyper|flash|pcm|dmd|tdm|rcm|scm|distill(?:ed|ation)?|causvid|fastwan|perflow|"
    r"diffusion"
)
_FOLLOWS = (
    rf"(?=$| \d+ steps?(?!\S)| v \d| (?:{_MODELS}|lora|vae|cfg|dev|heun|delta|fp|bf|unet|baked\w*|distill\w*)(?!\S))"
)
"""Such a word counts only where nothing, a count of steps, a model, a part or a version follows it."""

_WAN_SHIFT = dict.fromkeys(("wan21", "wan22-t2v", "wan22-i2v"), 5.0)

DISTILLATIONS = {
    "ltx": Distillation(
        "LTX distilled",
        (r"ltxv? .*distill(?:ed)?",),
        levels={n: _LTX[:n] for n in (7, 8)},
        source="LTX-Video's configs (N = 7); diffusers' pipelines/ltx2/utils.py (N = 8)",
    ),
    "rcm": Distillation(
        "rCM",
        ("rcm", "turbo diffusion", "turbo wan"),
        sampler="lcm",
        levels={n: _of_angles(*_RCM[:n]) for n in (1, 2, 3, 4)},
        source="arXiv 2510.08431, 2512.16093: angles arctan(80), 1.5, 1.4, 1",
    ),
    "sprint": Distillation(
        "SANA-Sprint",
        ("sana sprint",),
        ("SCMScheduler",),
        "scm",
        "lcm",
        {2: _of_angles(_SCM, 1.3)},
        source="arXiv 2503.09641; SCMScheduler",
    ),
    "causvid": Distillation(
        "CausVid",
        ("caus ?vid", "fast ?wan"),
        sampler="lcm",
        levels={3: (1.0, 0.757, 0.522)},
        source="arXiv 2412.07772; FastVideo's FastWan: 1000, 757, 522",
    ),
    "lightning": Distillation(
        "Lightning",
        (r"(?<!torch )lightning(?! (?:logs?|bolts?|storms?|strikes?|effects?|di t|dit|mcqueen)\b)",),
        shifts={"qwen-image": 3.0},
        source="arXiv 2402.13929: Euler, trailing; Qwen-Image-Lightning's program: shift 3",
    ),
    "turbo": Distillation(
        "Turbo",
        (r"(?<!porsche )(?<!911 )turbo(?! (?:charge\w*|quant)\b)",),
        shifts={"z-image": 3.0},
        source="arXiv 2311.17042; scheduler configs of sdxl-turbo: trailing, and of Z-Image-Turbo: shift 3",
    ),
    "schnell": Distillation(
        "Schnell",
        ("schnell",),
        shifts={"flux-dev": 1.0},
        source="FLUX.1-schnell and its scheduler config: 1, 1 - 1/N, ..., 1/N",
    ),
    "klein": Distillation(
        "FLUX.2 klein",
        (r"flux 2 klein(?! base)", r"klein \d b"),
        source="diffusers' Flux2KleinPipeline: 1, 1 - 1/N, ..., 1/N before the shift",
    ),
    "lcm": Distillation(
        "LCM",
        ("lcm", "latent consistency"),
        ("LCMScheduler", "FlowMatchLCMScheduler"),
        "lcm",
        "lcm",
        source="arXiv 2310.04378; LCMScheduler; FlowMatchLCMScheduler for flow models",
    ),
    "tcd": Distillation("TCD", ("tcd",), ("TCDScheduler",), "lcm", "lcm", source="arXiv 2402.19159; TCDScheduler"),
    "hyper": Distillation("Hyper", (rf"(?!^hyper lora)hyper{_FOLLOWS}",), source="arXiv 2404.13686: DDIM, trailing"),
    "flash": Distillation(
        "Flash",
        (rf"(?<!camera )(?<!photo )flash{_FOLLOWS}", "flash diffusion"),
        sampler="lcm",
        source="arXiv 2406.02347: LCM's steps, trailing",
    ),
    "pcm": Distillation("PCM", (r"pcm(?! (?:audio|16|24|32|s)\b)",), source="arXiv 2405.18407: DDIM, trailing"),
    "self-forcing": Distillation(
        "Self Forcing",
        (r"(?:self|rolling|reward|causal) forcing", "krea real ?time"),
        sampler="lcm",
        shifts=_WAN_SHIFT,
        source="arXiv 2506.08009: 1000, 750, 500, 250 before the shift, which is 5",
    ),
    "dmd": Distillation(
        "DMD", ("dmd", "tdm"), sampler="lcm", source="arXiv 2405.14867: LCMScheduler, 999, 749, 499, 249"
    ),
    "lightx2v": Distillation(
        "LightX2V", (r"light ?x",), shifts=_WAN_SHIFT, source="LightX2V: even in t before the shift, which is 5"
    ),
    FEW_STEP: Distillation(
        "few-step",
        (
            r"(?<!cfg )(?<!guidance )(?<!guided )(?<!knowledge )distill(?:ed|ation)?(?! (?:cfg|guidance)\b)",
            *(r"step distill(?:ed|ation)?", r"distil(?=$)"),
            r"(?<!epoch )[1-8] (?:steps(?! (?!1024\b)\d{4,})|step(?! \d))",
            r"(?:few|one|single|four|eight) ?steps?",
            *("sdxs", "swift ?brush", "insta ?flow", "perflow", "acc ?vid(?:eo)?", "fast ?(?:hunyuan|mochi)"),
            *("pi ?(?:flow|flux|qwen)", "twin ?flow", "sense ?flow", "mean ?flow", "scm", "ufo ?gen", "yoso"),
            *("tdd", "ctm", "fusion ?x", "rapid (?:aio|all)"),
            *(r"nitro(?! [te]\b)", "nitro ?fusion", "dream lite mobile"),
        ),
        ("PiflowScheduler", "FlowMapEulerDiscreteScheduler", "HeliosDMDScheduler", "CMStochasticIterativeScheduler"),
        shifts={"z-image": 3.0},
        source="nearly all of the above: trailing",
    ),
}
"""By key; what a name says is looked for in this order."""


_NEGATIONS = ("de ", "un ", "non ", "not ", "no ")
_PLACES = re.compile(
    r"unet|transformer(_\d)?|scheduler|snapshots|[0-9a-f]{7,64}|checkpoint-\d+|"
    r"(model_index|scheduler_config|config)\.json|"
    r"((pytorch_lora_weights|diffusion_pytorch_model|adapter_model|model)(\.\w+)*)?"
)
"""Parts of a path that are called the same in every model."""


def words_of(name: str) -> str:
    """The words of a model's or a file's own name, in small letters, with a space between.

    A word ends at what is neither letter nor digit, between letters and digits, and where a capital begins another
    ("AnimateLCM"). Without capitals a family's word is found between words of models alone ("sdxlturbo"). Of a path
    the last part counts that is not called the same in every model: no folder above, no owner of a repository.
    """
    parts = [part for part in re.split(r"[\\/]", name.strip()) if not _PLACES.fullmatch(part)]
    own = re.sub(r"\.(safetensors|ckpt|gguf|pth?|bin|sft)$", "", parts[-1].split("--")[-1]) if parts else ""
    words: list[str] = []
    for run in re.findall(r"[^\W\d_]+|\d+(?:\.\d+)*", own):
        for piece in [run] if _glued(run) else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", run).split():
            words += _glued(piece) or re.sub(r"(?<=[A-Z])(?=[A-Z][a-z])", " ", piece).lower().split()
    return " ".join(words)


def _glued(run: str) -> list[str]:
    """The words in a run of letters, where one is a family's and the others are models'; else nothing."""
    part = rf"{_FAMILIES}|{_MODELS}|{_GLUE}"
    found = re.fullmatch(rf"((?:{_MODELS}|{_GLUE})*)({_FAMILIES})((?:{part})*)", run.lower())
    return [] if found is None else [w for group in found.groups() for w in re.findall(rf"(?:{part})", group)]


def named_in(names: Iterable[str]) -> tuple[str, str] | None:
    """The key of the distillation that a model's, a file's or a LoRA's name tells, and that name.

    A scheduler's class, which a noise schedule without a name is called by, is no model's name: "Singlestep".
    """
    for name in (name for name in names if not name.endswith("Scheduler")):
        words = words_of(name)
        found = [
            (key, words[: match.start()].endswith(_NEGATIONS))
            for key, kind in DISTILLATIONS.items()
            for pattern in kind.names
            for match in re.finditer(rf"(?<!\S)(?:{pattern})(?!\S)", words)
        ]
        if found and not any(negated for _, negated in found):  # "de-distilled" is said of what was distilled before
            return found[0][0], name
    return None


def of_class(scheduler_class: str) -> str | None:
    """The key of the distillation that a diffusers scheduler serves alone."""
    return next((key for key, kind in DISTILLATIONS.items() if scheduler_class in kind.classes), None)


def of_configs(pipeline: Mapping[str, object], network: Mapping[str, object]) -> str | None:
    """The key of the distillation that the config of a pipeline (`model_index.json`) or of its network tells."""
    if network.get("time_cond_proj_dim") is not None:
        return "lcm"  # the network takes the guidance weight, as LCM's do
    if network.get("is_turbo") is True:
        return "turbo"
    if pipeline.get("is_distilled") is True:
        return "klein" if "Klein" in str(pipeline.get("_class_name")) else FEW_STEP
    return None


def of_folder(path: Path) -> str | None:
    """The key of the distillation that a diffusers folder or a scheduler's config tells, by its name and its files."""

    def config(file: Path) -> Mapping[str, object]:
        try:
            document = read_json(file)
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    folder = path if path.is_dir() else path.parent
    folder = folder.parent if folder.name == "scheduler" else folder
    for file in (path, folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if (found := of_class(str(config(file).get("_class_name")))) is not None:
            return found
    index = config(folder / "model_index.json")
    for network in ("unet", "transformer"):
        if (found := of_configs(index, config(folder / network / "config.json"))) is not None:
            return found
    if index.get("is_distilled") is False:
        return None
    named = named_in([folder.resolve().name, str(index.get("_name_or_path") or "")])
    return None if named is None else named[0]


def own_grid(kind: str, noise: NoiseSchedule, nfe: int) -> Schedule:
    """The grid that a model of this distillation was trained on, or samples with, as a `Schedule`.

    It follows the shift of the noise that is given, but for presets whose distilled models have another
    (`Distillation.shifts`), and for published lists, which are of s itself.

    Raises:
        ValueError: for more steps than the grid has levels.
    """
    entry, origin = DISTILLATIONS[kind], Origin(method=f"own-{kind}")
    if noise.kind == "flow" and noise.name in entry.shifts:
        noise = flow(entry.shifts[noise.name], num_train_timesteps=noise.num_train_timesteps, name=noise.name)
    levels = noise.num_train_timesteps
    t = 1.0 - np.arange(nfe) / nfe
    if noise.kind == "flow" and nfe in entry.levels:
        t = t_of_s(noise, entry.levels[nfe])
    elif noise.kind == "flow" and entry.grid == "scm":
        t = t_of_s(noise, _of_angles(*np.linspace(_SCM, 0.0, nfe + 1)[:-1]))
    elif noise.kind == "flow" and of_class("FlowMatchLCMScheduler") == kind:
        t = np.linspace(1.0, float(s_of_lam(noise.lam(1.0 / levels))), nfe)  # that class shifts its least level twice
    elif entry.grid == "lcm" and noise.kind == "vp" and levels >= LCM_LEVELS:
        if nfe > LCM_LEVELS:
            raise ValueError(f"nfe is {nfe}; {entry.words} has {LCM_LEVELS} levels")
        grid = np.arange(LCM_LEVELS, 0, -1) * (levels // LCM_LEVELS)
        t = grid[np.floor(np.linspace(0, LCM_LEVELS, nfe, endpoint=False)).astype(int)] / levels
    first = 1.0 if noise.kind == "flow" else float(noise.t_max)  # a flow's sampler begins at s = 1 itself
    return Schedule.from_t(noise, np.clip(t, float(noise.t_min), first), origin=origin)


def t_of_s(noise: NoiseSchedule, s: Iterable[float]) -> np.ndarray:
    """Times of rectified flow's levels; 1 is pure noise."""
    values = np.asarray(list(s))
    pure = values >= 1.0 - 1e-5  # as SCMScheduler's rounded pi/2
    return np.where(pure, 1.0, noise.t_of_lam(lam_of_s(np.where(pure, 0.5, values))))

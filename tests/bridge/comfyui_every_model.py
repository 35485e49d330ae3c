"""Ask the nodes about every model that a ComfyUI knows, and every patch of its sampling; print one line each.

    PYTHONPATH=COMFYUI:REPOSITORY PYTHON tests/bridge/comfyui_every_model.py

COMFYUI is a checkout, PYTHON an interpreter with its requirements, which needs no JAX. No network is made: a model is
its entry in comfy/supported_models.py and the model_sampling that ComfyUI makes of it. Each is answered, with levels
whose sigma/alpha ComfyUI's own noise_scaling confirms, or refused in one sentence.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from comfy.cli_args import args

args.cpu = True  # before any other module of ComfyUI looks for a GPU

import comfy.model_base  # noqa: E402
import comfy.model_sampling  # noqa: E402
import comfy.supported_models  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

KINDS = comfy.model_base.ModelType
MOST_CHARACTERS = 260


class Model:
    """A MODEL without a network: what the nodes read of one."""

    def __init__(self, config: Any, sampling: Any) -> None:
        self.model = SimpleNamespace(model_config=config)
        self.sampling = sampling

    def get_model_object(self, name: str) -> Any:
        return {"model_sampling": self.sampling}[name]


class _Kind(Exception):
    pass


def kind_of(config: Any) -> Any:
    """The ModelType that ComfyUI makes a model of this configuration with; None for what is no diffusion model."""
    base, first = comfy.model_base.BaseModel, comfy.model_base.BaseModel.__init__

    def record(self: Any, settings: Any, model_type: Any = KINDS.EPS, *_: Any, **__: Any) -> None:
        raise _Kind(model_type)

    base.__init__ = record
    try:
        config.get_model({}, "")
    except _Kind as found:
        return found.args[0]
    except (KeyError, TypeError, AttributeError, IndexError):  # it reads its weights before
        return None
    finally:
        base.__init__ = first
    return None


def configurations() -> Iterator[tuple[str, Any]]:
    """Every entry, with its model_sampling; then every ModelType with SDXL's settings."""
    for cls in comfy.supported_models.models:
        config = cls({"disable_unet_model_creation": True, "num_attention_heads": 30, "hidden_size": 3072})
        kind = kind_of(config)
        if kind is None:
            kind = KINDS.EPS if not config.sampling_settings.get("shift") else KINDS.FLOW
        yield f"{cls.__name__} {kind.name}", Model(config, comfy.model_base.model_sampling(config, kind))
    for kind in KINDS:
        config = comfy.supported_models.SDXL({"disable_unet_model_creation": True})
        yield f"SDXL as {kind.name}", Model(config, comfy.model_base.model_sampling(config, kind))


def patched() -> Iterator[tuple[str, Any]]:
    """SDXL with each choice of ComfyUI's nodes that patch a model's sampling, and noises that only custom nodes set."""
    sampling, config = comfy.model_sampling, comfy.supported_models.SDXL({"disable_unet_model_creation": True})
    mixings = [getattr(sampling, name) for name in ("EPS", "V_PREDICTION", "X0", "IMG_TO_IMG", "EDM", "CONST")]
    mixings += [getattr(sampling, name) for name in ("IMG_TO_IMG_FLOW", "V_PREDICTION_DDPM") if hasattr(sampling, name)]
    for mixing, zero in itertools.product(mixings, (False, True)):
        made = type("ModelSamplingAdvanced", (sampling.ModelSamplingDiscrete, mixing), {})(config, zsnr=zero)
        yield f"ModelSamplingDiscrete {mixing.__name__} zsnr={zero}", Model(config, made)
    ends = ((0.002, 700.0), (0.002, 120.0), (0.03, 500.0), (0.0292, 14.61))
    for base, mixing, (low, high) in itertools.product(("EDM", "V"), mixings[:5], ends):
        cls = getattr(sampling, f"ModelSamplingContinuous{base}")
        made = type("ModelSamplingAdvanced", (cls, mixing), {})(config)
        made.set_parameters(low, high, 0.5 if mixing is sampling.EDM else 1.0)
        yield f"ModelSamplingContinuous{base} {mixing.__name__} {low} {high}", Model(config, made)
    for base, shift in itertools.product(("DiscreteFlow", "Flux"), (0.0, 0.5, 1.0, 1.15, 3.0, 12.0, 40.0, 100.0)):
        made = type("ModelSamplingAdvanced", (getattr(sampling, f"ModelSampling{base}"), sampling.CONST), {})(config)
        made.set_parameters(shift=shift)
        yield f"ModelSampling{base} {shift}", Model(config, made)
        if hasattr(made, "set_noise_scale"):
            for scale in (0.0, 7.5, 8.0):
                made = type("ModelSamplingAdvanced", (sampling.ModelSamplingDiscreteFlow, sampling.CONST), {})(config)
                made.set_parameters(shift=shift)
                made.set_noise_scale(scale)
                yield f"ModelSampling{base} {shift} noise_scale {scale}", Model(config, made)
    kolors = SimpleNamespace(sampling_settings={"linear_end": 0.014, "timesteps": 1100})
    made = type("ModelSamplingAdvanced", (sampling.ModelSamplingDiscrete, sampling.EPS), {})(kolors)
    yield "Kolors", Model(kolors, made)

    class Rescaled(sampling.CONST):
        def noise_scaling(self, sigma: Any, noise: Any, latent_image: Any, max_denoise: bool = False) -> Any:
            return latent_image

    made = type("ModelSamplingAdvanced", (sampling.ModelSamplingDiscreteFlow, Rescaled), {})(config)
    yield "a class of its own", Model(config, made)


def true_ksigmas(sampling: Any, sigmas: torch.Tensor) -> np.ndarray:
    """Sigma/alpha as ComfyUI itself mixes noise into a picture."""
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    noise = [float(sampling.noise_scaling(s, one.clone(), none.clone())) for s in sigmas]
    picture = [float(sampling.noise_scaling(s, none.clone(), one.clone())) for s in sigmas]
    with np.errstate(divide="ignore"):
        return np.array(noise) / np.array(picture)


def nodes() -> Any:
    """Our nodes, loaded by their path as ComfyUI does."""
    folder = Path(__file__).parents[2] / "bridge" / "comfyui"
    spec = importlib.util.spec_from_file_location("hso_nodes", folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hso_nodes"] = module
    spec.loader.exec_module(module)
    return module


def check(module: Any, name: str, model: Model) -> str:
    """What HSO Recommend has for it, in a line; AssertionError for levels that are not the model's."""
    node = module.NODE_CLASS_MAPPINGS["HsoRecommend"]()
    read = sys.modules["hso_nodes.model"]
    told = ""
    for steps, guidance, denoise in ((6, 5.0, 1.0), (6, 1.0, 1.0), (20, 7.0, 1.0), (6, 3.0, 0.25), (6, 3.0, 0.2)):
        asked = {"model": "from MODEL", "steps": steps, "guidance": guidance, "denoise": denoise}
        try:
            _, sigmas, why = node.get_sampler(**asked, diffusion_model=model)
        except ValueError as error:
            refusal = str(error)
            assert len(refusal) <= MOST_CHARACTERS and refusal.count(". ") == 0 and "(noise" not in refusal, refusal
            return f"refused: {refusal}"
        assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all() and sigmas[-1] == 0 and sigmas.isfinite().all()
        assert float(sigmas[0]) <= 1.001 * float(model.sampling.sigma_max), (name, sigmas)
        noise = read.noise_of(model)
        if denoise == 1.0 and noise.prediction != "epsilon" and "predicted error" in why:
            assert math.isclose(float(sigmas[0]), float(model.sampling.sigma_max), rel_tol=2e-3), (name, sigmas)
        true, given = true_ksigmas(model.sampling, sigmas[:-1]), sigmas[:-1].numpy().astype(float)
        scale = read.levels_of(model).noise_scale
        wanted = scale * given / np.maximum(1.0 - given, 1e-300) if noise.kind == "flow" else given
        np.testing.assert_allclose(np.minimum(true, 1e6), np.minimum(wanted, 1e6), rtol=1e-3, err_msg=name)
        low = true_ksigmas(model.sampling, model.sampling.sigmas[:1])[0]
        assert noise.kind == "flow" or math.isclose(math.exp(-noise.lam(float(noise.t_min))), low, rel_tol=1e-3), name
        told = told or f"{noise.kind} {noise.prediction} {float(sigmas[0]):.4g}: {why[:90]}"
    return told


def main() -> None:
    """Every model, then every patch."""
    module = nodes()
    for name, model in itertools.chain(configurations(), patched()):
        print(f"{name}: {check(module, name, model)}", flush=True)


if __name__ == "__main__":
    main()

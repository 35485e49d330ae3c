"""Any schedule, exactly, in any diffusers sampler. It needs torch and diffusers."""

from typing import Any

try:
    import diffusers as _diffusers
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(f'bridge needs torch and diffusers ({error}): in a clone, pip install -e ".[torch]"') from error

from bridge.comfyui.sampler import sample_nonstationary as sample_nonstationary
from bridge.noise_of import noise_schedule_of as noise_schedule_of
from bridge.noise_of import solver_of as solver_of
from bridge.recommending import optimize_pipeline as optimize_pipeline
from bridge.recommending import recommend as recommend
from bridge.sampling import Level as Level
from bridge.sampling import sample as sample
from bridge.schedulers.install import install as install
from bridge.schedulers.install import load_scheduler as load_scheduler
from bridge.schedulers.install import with_schedule as with_schedule
from bridge.schedulers.nonstationary import NonstationaryScheduler as NonstationaryScheduler
from bridge.schedulers.rows import ROWS as _ROWS
from bridge.schedulers.scheduled import schedule_of as schedule_of
from bridge.schedulers.scheduled import scheduled_class as _scheduled_class
from bridge.schedulers.scheduled import without_schedule as without_schedule
from bridge.tuning import Chosen as Chosen
from bridge.tuning import Tuned as Tuned
from bridge.tuning import choose as choose
from bridge.tuning import choose_denoiser as choose_denoiser
from bridge.tuning import tune as tune
from bridge.tuning import tune_denoiser as tune_denoiser
from bridge.tuning import tune_score as tune_score
from hso_jax._moved import check_removed as _check_removed


def __getattr__(name: str) -> Any:
    """`bridge.DDIMScheduler` and so on: where diffusers and pickle look a scheduled class up by name.

    diffusers also looks for the base class beside it, to know which method loads it.
    """
    if name == "SchedulerMixin":
        return _diffusers.SchedulerMixin
    if name in _ROWS:
        return _scheduled_class(name)
    _check_removed(f"bridge.{name}")
    raise AttributeError(f"module 'bridge' has no attribute {name!r}")

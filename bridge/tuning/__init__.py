"""Schedules and solvers chosen and tuned on the user's own model."""

from bridge.tuning.choose import Chosen as Chosen
from bridge.tuning.choose import choose as choose
from bridge.tuning.choose import choose_denoiser as choose_denoiser
from bridge.tuning.tune import Tuned as Tuned
from bridge.tuning.tune import tune as tune
from bridge.tuning.tune import tune_denoiser as tune_denoiser
from bridge.tuning.tune import tune_score as tune_score

"""Schedules and solvers tuned on the user's own model."""

from bridge.tuning.options import Tuned as Tuned
from bridge.tuning.tune import tune as tune
from bridge.tuning.tune import tune_denoiser as tune_denoiser
from bridge.tuning.tune import tune_score as tune_score

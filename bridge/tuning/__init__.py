"""Schedules and solvers tuned on the user's own model."""

from bridge.tuning.report import Tuned as Tuned
from bridge.tuning.tune import tune as tune
from bridge.tuning.tune import tune_denoiser as tune_denoiser

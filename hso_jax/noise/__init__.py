"""Noise schedules of diffusion and flow models."""

from hso_jax.noise.from_config import from_config as from_config
from hso_jax.noise.noise_schedule import PREDICTIONS as PREDICTIONS
from hso_jax.noise.noise_schedule import NoiseSchedule as NoiseSchedule
from hso_jax.noise.noise_schedule import alpha_sigma as alpha_sigma
from hso_jax.noise.presets import PRESETS as PRESETS
from hso_jax.noise.presets import Preset as Preset
from hso_jax.noise.presets import preset as preset
from hso_jax.noise.rectified_flow import dynamic_shift as dynamic_shift
from hso_jax.noise.rectified_flow import flow as flow
from hso_jax.noise.rectified_flow import flux2_shift as flux2_shift
from hso_jax.noise.variance_exploding import edm as edm
from hso_jax.noise.variance_exploding import ve as ve
from hso_jax.noise.variance_preserving import beta_table as beta_table
from hso_jax.noise.variance_preserving import clipped_cosine as clipped_cosine
from hso_jax.noise.variance_preserving import cosine as cosine
from hso_jax.noise.variance_preserving import discrete as discrete
from hso_jax.noise.variance_preserving import linear_vp as linear_vp
from hso_jax.noise.variance_preserving import rescale_zero_terminal_snr as rescale_zero_terminal_snr

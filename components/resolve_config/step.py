"""From the parameters of the run form to a configuration."""

import shlex

from autoformer.errors import AutoFormerError
from components.config import Config, load_config


def resolve(preset: str, overrides: str = "", seed: int = -1, max_params_m: float = 0.0) -> Config:
    """The configuration of a pipeline run.

    Args:
        preset: a preset's name or a params file.
        overrides: `section.key=value`, separated by spaces, applied last.
        seed: -1 for the preset's.
        max_params_m: the most parameters, in millions, that the subnet may have; 0 for the preset's limit.

    Raises:
        AutoFormerError: one line, where the preset or an override is not what it should be.
    """
    settings = []
    if seed >= 0:
        settings.append(f"seed={seed}")
    if max_params_m > 0:
        settings.append(f"search_subnet.limits.max_params_m={max_params_m}")
    try:
        settings += shlex.split(overrides)
    except ValueError as error:
        raise AutoFormerError(f"overrides {overrides!r}: {error}; quote values with spaces") from None
    return load_config(preset, settings)

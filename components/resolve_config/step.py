"""From the parameters of the run form to a configuration."""

import shlex

from components.config import Config, load_config


def resolve(preset: str, overrides: str = "", seed: int = -1, max_params_m: float = 0.0) -> Config:
    """The configuration of a pipeline run.

    Args:
        preset: a preset's name or a params file.
        overrides: `section.key=value`, separated by spaces, applied last.
        seed: -1 for the preset's.
        max_params_m: the most parameters, in millions, that the subnet may have; 0 for the preset's limit.
    """
    settings = []
    if seed >= 0:
        settings.append(f"seed={seed}")
    if max_params_m > 0:
        settings.append(f"search_subnet.limits.max_params_m={max_params_m}")
    return load_config(preset, [*settings, *shlex.split(overrides)])

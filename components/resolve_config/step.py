"""From the parameters of the run form to a configuration."""

import shlex
from collections.abc import Iterable
from pathlib import Path

import autoformer
import components
from autoformer.complexity import count_macs, count_params
from autoformer.errors import AutoFormerError
from autoformer.files import canonical_json, hash_value
from components.cli import BAD_INPUT, end_early
from components.config import STEPS, Config, load_config


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
    config = load_config(preset, [*settings, *split_overrides([overrides])])
    _check_limits(config)
    return config


def for_each_step(preset: str, overrides: str, seed: int, max_params_m: float, compiled_from: str) -> tuple[str, ...]:
    """The configuration of each step, in the order of `STEPS`; see `resolve`. That of register_model is whole.

    No result of register_model is ever taken from a cache, so that more than decides its result may be in its key; and
    on a cluster it is the step that tells MLflow the configuration of the whole run.

    Bad input, and a package of other source than is here, are one line on stderr, and end the process with code 2.
    """
    try:
        _check_version(compiled_from)
        config = resolve(preset, overrides, seed, max_params_m)
    except AutoFormerError as error:
        raise SystemExit(end_early("resolve_config", str(error), BAD_INPUT)) from None
    parts = {step: config.step_json(step) for step in STEPS}
    return tuple((parts | {"register_model": canonical_json(config.model_dump(mode="json"))}).values())


def _check_version(compiled_from: str) -> None:
    if compiled_from != source_version():
        raise AutoFormerError(
            f"the package was compiled from other source ({compiled_from}) than this image holds ({source_version()}); "
            "compile it again from the source of the image, or name the image that it was compiled for"
        )


def source_version() -> str:
    """Hash of all that a step may run. A compiled package states it, so that no image of other source runs it."""
    folders = [Path(str(package.__file__)).parent for package in (autoformer, components)]
    files = {file.relative_to(folder.parent).as_posix(): file for folder in folders for file in folder.rglob("*.py")}
    return hash_value({name: file.read_text(encoding="utf-8") for name, file in files.items()})[:16]


def split_overrides(texts: Iterable[str]) -> list[str]:
    """Overrides one by one, from texts that hold several, with spaces between them."""
    found = []
    for text in texts:
        try:
            found += shlex.split(text)
        except ValueError as error:
            raise AutoFormerError(f"--set {text}: {str(error).lower()}; quote values with spaces") from None
    return found


def _check_limits(config: Config) -> None:
    """Refuse limits that no subnet of the space meets: the search would find out, after the supernet is trained."""
    assert config.search_subnet is not None
    limits, space = config.search_subnet.limits, config.space
    for key, unit, count in (("params_m", 1e6, count_params), ("macs_g", 1e9, count_macs)):
        least, most = count(space, space.smallest) / unit, count(space, space.largest) / unit
        low, high = getattr(limits, f"min_{key}"), getattr(limits, f"max_{key}")
        beyond = f"max_{key} = {high} is less than the smallest" if high is not None and high < least else ""
        if low is not None and low > most:
            beyond = f"min_{key} = {low} is more than the largest"
        if beyond:
            raise AutoFormerError(
                f"search_subnet.limits.{beyond} subnet of '{space.name}' has: they have {least:.4g} to {most:.4g}"
            )

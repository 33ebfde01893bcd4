"""From the parameters of the run form to a configuration."""

from collections.abc import Sequence

from autoformer.complexity import count_macs, count_params
from autoformer.errors import AutoFormerError
from autoformer.files import canonical_json, hash_value
from autoformer.limits import UNITS
from runtime.common.code import package_code
from runtime.common.config import STEPS, Config, RetrainSubnet, SearchSubnet, load_config
from runtime.common.console import report_failure
from runtime.common.exit_codes import BAD_INPUT
from runtime.common.overrides import split
from runtime.steps.compiler import require_compiler
from runtime.storage.data import NoFolderError, hash_data

CACHED_STEPS = STEPS[:-1]  # register_model runs always


def resolve(preset: str, overrides: Sequence[str] = (), seed: int = -1, max_params_m: float = 0.0) -> Config:
    """The configuration of a pipeline run.

    Args:
        preset: a preset's name or a params file.
        overrides: `section.key=value`, applied last.
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
    config = load_config(preset, [*settings, *overrides])
    _check_limits(config)
    return config


def component_outputs(
    preset: str,
    overrides: str,
    seed: int,
    max_params_m: float,
    compiled_from: str,
    image: str,
    data: str,
    data_hash: str,
) -> tuple[str, ...]:
    """What decides the steps' results, for their cache keys; see `resolve`, `hash_data` and `lineages`.

    The configuration of register_model is whole: no result of that step is ever taken from a cache, so that more than
    decides it may be in its key; and on a cluster it is the step that tells MLflow the configuration of the whole run.

    Bad input, and a package of other source than is here, are one line on stderr, and end the process with code 2.

    Args:
        overrides: `section.key=value`, separated by spaces: a parameter of a run is one text.
        compiled_from: the source that the package was compiled from.
        image: of the steps; empty where the runner itself names the source of each.
        data: what the run form says, as the steps see it.
        data_hash: of the data; empty to take it here.

    Returns:
        The configuration of each of `STEPS`, the hash of the data, and the lineage of each of `CACHED_STEPS`.
    """
    try:
        _check_version(compiled_from)
        config = resolve(preset, split(overrides), seed, max_params_m)
        if config.section(RetrainSubnet).compile:  # a supernet later would be too late to hear that
            require_compiler()
        known = data_hash or _hash_here(data)
    except AutoFormerError as error:
        raise SystemExit(report_failure("resolve_config", str(error), BAD_INPUT)) from None
    parts = {step: config.step_json(step) for step in STEPS}
    parts["register_model"] = canonical_json(config.model_dump(mode="json"))
    return *parts.values(), known, *lineages(config, f"{image} {compiled_from}" if image else "")


def lineages(config: Config, made_by: str) -> tuple[str, ...]:
    """For each of `CACHED_STEPS`, a hash of what made its inputs: the steps before it, as they are configured.

    KFP's backend keys its cache by the names of a task's input artifacts, not by what they hold. Without this, a search
    would be found in the cache for another supernet.

    Args:
        made_by: image and source of the steps, which the key of a step that launches a job does not have.
    """
    configs = [config.step_json(step) for step in STEPS]
    return tuple(hash_value([made_by, *configs[: STEPS.index(step)]])[:16] for step in CACHED_STEPS)


def _hash_here(data: str) -> str:
    """`hash_data`. A folder that is missing is one that this pod has not mounted."""
    try:
        return hash_data(data)
    except NoFolderError as error:
        raise AutoFormerError(
            f"{error.folder}: no such folder in this pod; mount its volume in every step, or give data_hash"
        ) from None


def _check_version(compiled_from: str) -> None:
    if compiled_from != package_code():
        raise AutoFormerError(
            f"the package was compiled from other source ({compiled_from}) than this image holds ({package_code()}); "
            "compile it again from the source of the image, or name the image that it was compiled for"
        )


def _check_limits(config: Config) -> None:
    """Refuse limits that no subnet of the space meets: the search would find out, after the supernet is trained."""
    limits, space = config.section(SearchSubnet).limits, config.space
    for key, count in (("params_m", count_params), ("macs_g", count_macs)):
        least, most = (count(space, spec) / UNITS[key] for spec in (space.smallest, space.largest))
        low, high = getattr(limits, f"min_{key}"), getattr(limits, f"max_{key}")
        beyond = f"max_{key} = {high} is less than the smallest" if high is not None and high < least else ""
        if low is not None and low > most:
            beyond = f"min_{key} = {low} is more than the largest"
        if beyond:
            raise AutoFormerError(
                f"search_subnet.limits.{beyond} subnet of '{space.name}' has: they have {least:.4g} to {most:.4g}"
            )

"""Resolve the parameters of a KFP run form to a configuration."""

from collections.abc import Sequence

from autoformer.complexity import COUNTED_MACS
from autoformer.errors import AutoFormerError
from autoformer.files import canonical_json, hash_value
from autoformer.latency import LatencyTable
from autoformer.limits import UNITS
from runtime.common.budgets import budget_params
from runtime.common.code import package_code
from runtime.common.config import STEPS, Config, load_config
from runtime.common.console import report_failure
from runtime.common.exit_codes import BAD_INPUT
from runtime.common.overrides import split
from runtime.common.searches import configs_by_label, configured_search
from runtime.common.sections import RetrainSubnet, SearchSubnet
from runtime.steps.compiler import require_compiler
from runtime.storage.data import NoFolderError, hash_data
from runtime.storage.earlier_search import earlier_scores
from runtime.storage.named_files import latency_table

CACHED_STEPS = STEPS[:-1]  # register_model always runs


def resolve(preset: str, overrides: Sequence[str] = (), seed: int = -1, max_params_m: float = 0.0) -> Config:
    """The configuration of a pipeline run.

    Args:
        preset: a preset's name or a params file.
        overrides: `section.key=value`, applied last.
        seed: -1 for the preset's.
        max_params_m: maximum parameters of the subnet, in millions; 0 for the preset's limit.

    Raises:
        AutoFormerError: the preset or an override is invalid, or no subnet meets the limits.
    """
    settings = []
    if seed >= 0:
        settings.append(f"seed={seed}")
    if max_params_m > 0:
        settings.append(f"search_subnet.limits.max_params_m={max_params_m}")
    config = load_config(preset, [*settings, *overrides])
    table = latency_table(config.section(SearchSubnet).latency, config.space)
    _check_limits(config, table)
    _check_search(config, table)
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
    """The outputs of the component, which are in the steps' cache keys. See `resolve`, `hash_data` and `lineages`.

    register_model gets the whole configuration: it is never cached, and on a cluster it logs the run's configuration to
    MLflow. Bad input, and a package compiled from other source, end the process with one line and code 2.

    Args:
        overrides: `section.key=value`, separated by spaces: a parameter of a run is one text.
        compiled_from: hash of the source from which the package was compiled.
        image: image of the steps; empty if the runner uses a hash of each step's source.
        data: the data argument of the steps.
        data_hash: hash of the data; empty to compute it.

    Returns:
        The configuration of each of `STEPS`, the hash of the data, and the lineage of each of `CACHED_STEPS`.
    """
    try:
        if compiled_from != package_code():
            raise AutoFormerError(
                f"the package was compiled from other source ({compiled_from}) than this image holds "
                f"({package_code()}); compile it again from the source of the image, or name the image that it was "
                "compiled for"
            )
        config = resolve(preset, split(overrides), seed, max_params_m)
        if config.section(RetrainSubnet).compile:  # fails now instead of after the supernet's training
            require_compiler()
        data_hash = data_hash or hash_data(data)
    except AutoFormerError as error:
        message = str(error)
        if isinstance(error, NoFolderError):
            message = f"{error.folder}: no such folder in this pod; mount its volume in every step, or give data_hash"
        raise SystemExit(report_failure("resolve_config", message, BAD_INPUT)) from None
    parts = {step: config.step_json(step) for step in STEPS}
    parts["register_model"] = canonical_json(config.model_dump(mode="json"))
    return *parts.values(), data_hash, *lineages(config, f"{image} {compiled_from}" if image else "")


def lineages(config: Config, made_by: str) -> tuple[str, ...]:
    """For each of `CACHED_STEPS`, a hash of the configurations of the steps before it.

    KFP's backend keys its cache by the names of input artifacts, not by their content. Without the lineage, it could
    return the cached search of another supernet.

    Args:
        made_by: image and source of the steps, which are not in the key of a step that launches a job.
    """
    configs = [config.step_json(step) for step in STEPS]
    return tuple(hash_value([made_by, *configs[: STEPS.index(step)]])[:16] for step in CACHED_STEPS)


def _check_limits(config: Config, table: LatencyTable | None) -> None:
    """Refuse limits that no subnet of the space meets before the supernet is trained."""
    section, space = config.section(SearchSubnet), config.space
    limits = section.limits
    least, most = (limits.count(space, spec) for spec in (space.smallest, space.largest))
    if table:  # the fastest measured subnet need not be the smallest
        least["latency_ms"], most["latency_ms"] = table.extremes(space)
    for key in least:
        smallest, largest = least[key] / UNITS[key], most[key] / UNITS[key]
        low, high = getattr(limits, f"min_{key}"), getattr(limits, f"max_{key}")
        beyond = f"max_{key} = {high} is less than the smallest" if high is not None and high < smallest else ""
        if low is not None and low > largest:
            beyond = f"min_{key} = {low} is more than the largest"
        if beyond:
            raise AutoFormerError(
                f"search_subnet.limits.{beyond} subnet of '{space.name}' has: they have {smallest:.4g} to {largest:.4g}"
                + (f" ({COUNTED_MACS[limits.relative_position]})" if key == "macs_g" else "")
            )
    too_small = [budget for budget in section.budgets or () if budget_params(budget) < least["params_m"]]
    if too_small:
        raise AutoFormerError(
            f"search_subnet.budgets: {too_small[0]:g} is too small: the smallest subnet of '{space.name}' has "
            f"{least['params_m']:,.0f} parameters"
        )


def _check_search(config: Config, table: LatencyTable | None) -> None:
    """Draw the first generation of each search. Refuses limits that subnets meet one by one, but not together."""
    known = earlier_scores(config)
    for one in configs_by_label(config).values():
        try:
            configured_search(one, table, known).ask()
        except AutoFormerError as error:
            raise AutoFormerError(f"search_subnet.limits: {error}") from None

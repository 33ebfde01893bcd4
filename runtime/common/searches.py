"""The searches of a configuration: one, or one for each budget."""

from collections.abc import Sequence

from autoformer.candidates import ScoredCandidate
from autoformer.front import make_search
from autoformer.latency import LatencyTable
from autoformer.randomness import derived_rng
from autoformer.search import Evolution
from runtime.common.budgets import label_of
from runtime.common.config import Config
from runtime.common.sections import SearchSubnet


def configs_by_label(config: Config) -> dict[str, Config]:
    """Label -> configuration of the search for that budget alone; without budgets "" -> `config`."""
    section = config.section(SearchSubnet)
    if section.budgets is None:
        return {"": config}
    return {
        label_of(budget): config.model_copy(update={"search_subnet": section.within(budget)})
        for budget in section.budgets
    }


def configured_search(
    config: Config, table: LatencyTable | None = None, known: Sequence[ScoredCandidate] = ()
) -> Evolution:
    """The search of a configuration without budgets, from its seed; see `make_search`."""
    section = config.section(SearchSubnet)
    return make_search(config.space, section.limits, section, derived_rng("evolution", config.seed), table, known)

"""Several budgets in one search: the paper's evolution for each, smallest first, over one cache of scores.

Each budget has the same search, with the same seed, as in a run with this budget alone. Candidates that a smaller
budget's search has scored cost nothing. The choice for a budget is among all candidates within it, of any search.
"""

from collections.abc import Mapping
from dataclasses import replace

from autoformer.candidates import ScoredCandidate
from autoformer.space import SubnetSpec
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.search_loop import SearchResult, find_finalists, metrics_of_chosen
from runtime.common.budgets import budget_params
from runtime.common.sections import SearchSubnet


def choose_for_all(
    results: Mapping[str, SearchResult], section: SearchSubnet, cache: ScoreCache, whole_split: int
) -> dict[str, SearchResult]:
    """The results of the searches with unique ids, each with the best candidate within its budget.

    Args:
        results: label -> result of that budget's search, smallest budget first.
        section: with the same budgets.
    """
    assert section.budgets is not None
    numbered = _numbered(results)
    chosen: dict[str, SearchResult] = {}
    for (label, result), budget in zip(numbered.items(), section.budgets, strict=True):
        within = [*result.candidates, *_of_other_searches(numbered, label, budget_params(budget))]
        finalists = find_finalists(within, result.finalists, cache, section, whole_split)
        metrics = result.metrics | metrics_of_chosen(finalists[0])
        chosen[label] = result._replace(finalists=finalists, metrics=metrics)
    return chosen


def _of_other_searches(results: Mapping[str, SearchResult], label: str, most_params: int) -> list[ScoredCandidate]:
    """Complete candidates within a budget whose subnets are not complete in the budget's own search, each once."""
    known = {one.candidate.spec for one in results[label].candidates if one.complete}
    found: dict[SubnetSpec, ScoredCandidate] = {}
    for result in results.values():
        for one in result.candidates:
            if one.complete and one.candidate.params <= most_params and one.candidate.spec not in known:
                found.setdefault(one.candidate.spec, one)
    return [*found.values()]


def repeats(results: Mapping[str, SearchResult]) -> dict[SubnetSpec, list[str]]:
    """The subnets that several budgets have chosen, with the budgets' labels."""
    labels: dict[SubnetSpec, list[str]] = {}
    for label, result in results.items():
        labels.setdefault(result.chosen.candidate.spec, []).append(label)
    return {spec: names for spec, names in labels.items() if len(names) > 1}


def _numbered(results: Mapping[str, SearchResult]) -> dict[str, SearchResult]:
    numbered, first = {}, 0
    for label, result in results.items():
        candidates, finalists, front = (
            [_shifted(one, first) for one in some] for some in (result.candidates, result.finalists, result.front)
        )
        numbered[label] = result._replace(candidates=candidates, finalists=finalists, front=front)
        first += len(candidates)
    return numbered


def _shifted(scored: ScoredCandidate, by: int) -> ScoredCandidate:
    candidate = scored.candidate
    parents = tuple(parent + by for parent in candidate.parents)
    return scored._replace(candidate=replace(candidate, id=candidate.id + by, parents=parents))

"""Display names of the search methods."""

from collections.abc import Mapping

FRONT_SIZE = "front_candidates"  # a metric that only method front has


def method_of(searched: Mapping[str, float]) -> str:
    """The search method of a step, from its metrics."""
    return "NSGA-II" if FRONT_SIZE in searched else "evolution"


def found_by(searched: Mapping[str, float]) -> str:
    """The search that found the chosen subnet."""
    return "random search" if searched.get("chosen_is_random") else method_of(searched)

"""The names of the searches, for every place that shows one."""

from collections.abc import Mapping

FRONT_SIZE = "front_candidates"  # a metric of method front alone


def method_of(searched: Mapping[str, float]) -> str:
    """The search that ran before random search, by the metrics of the step."""
    return "NSGA-II" if FRONT_SIZE in searched else "evolution"


def found_by(searched: Mapping[str, float]) -> str:
    """The search that found the chosen subnet."""
    return "random search" if searched.get("chosen_is_random") else method_of(searched)

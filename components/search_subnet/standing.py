"""The state of a search after a generation, in two lines: the best candidate, and the Pareto front."""

from collections.abc import Sequence

from autoformer.candidates import ScoredCandidate
from autoformer.pareto import pareto_front
from autoformer.racing import Objective

FRONT = 5  # candidates of the front that a line shows


def standing(best: ScoredCandidate, scored: Sequence[ScoredCandidate], objective: Objective) -> list[str]:
    """Lines on the best candidate so far, and on some of those that no smaller one beats, smallest first."""
    complete = [one for one in scored if one.complete]
    front = [
        complete[index] for index in pareto_front([(one.candidate.params, _cost(one, objective)) for one in complete])
    ]
    front.sort(key=lambda one: one.candidate.params)
    last = len(front) - 1
    shown = [front[index] for index in sorted({last * place // (FRONT - 1) for place in range(FRONT)})]
    sizes = [f"{one.candidate.params / 1e6:.3g} M {one.top1_percent:.2f} %" for one in shown]
    return [
        f"best of {len(scored)} candidates: {best.top1_percent:.2f} %, loss {best.loss:.4f}, "
        f"{best.candidate.params / 1e6:.3g} M parameters",
        f"front, parameters and accuracy: {', '.join(sizes)}",
    ]


def _cost(scored: ScoredCandidate, objective: Objective) -> float:
    if objective == "accuracy":
        return -scored.top1_percent
    assert scored.loss is not None
    return scored.loss

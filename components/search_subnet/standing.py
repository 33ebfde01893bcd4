"""The state of a search after a generation, as two lines: the best candidate, and the Pareto front."""

from collections.abc import Sequence

from autoformer.candidates import ScoredCandidate
from autoformer.errors import quantity
from autoformer.front import costs_first, first_front, front_of, in_words, value_text
from autoformer.racing import Objective

FRONT = 5  # candidates of the front in a line


def standing(
    best: ScoredCandidate, scored: Sequence[ScoredCandidate], objective: Objective, objectives: Sequence[str] = ()
) -> list[str]:
    """Lines about the best candidate so far, and about some of the front, smallest first.

    Args:
        objectives: those of method front; empty for evolution, whose front has `objective` and parameters.
    """
    if objectives:
        front, shown = front_of(scored, objectives), costs_first(objectives)
        title = f"front of {quantity(len(front), 'candidate')}, {in_words(objectives)}"
    else:
        front = first_front(scored, (objective, "params_m"))
        title, shown = "front, parameters and accuracy", ["params_m", "accuracy"]
    last = len(front) - 1
    some = [front[index] for index in sorted({last * place // (FRONT - 1) for place in range(FRONT)})]
    values = [" ".join(value_text(one, name) for name in shown) for one in some]
    return [
        f"best of {quantity(len(scored), 'candidate')}: {best.top1_percent:.2f} %, loss {best.loss:.4f}, "
        f"{best.candidate.params / 1e6:.3g} M parameters",
        f"{title}: {', '.join(values)}",
    ]

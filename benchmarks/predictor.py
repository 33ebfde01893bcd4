"""Does a predictor spare evaluations? Evolution with and without it, from several seeds, over one supernet.

    python -m benchmarks.predictor [--seeds N] [--set search_subnet.KEY=VALUE …]
    python -m benchmarks.predictor --supernet artifacts/supernet --card artifacts/splits/card.json
        --search-split artifacts/splits/search.parquet

Both search by the loss, without a race: an evaluation is one candidate on all images of the search. A seed's bar is
the best loss that evolution reaches with all its evaluations. The rows say how many the predictor takes to reach it
(all, where it does not), as a share of evolution's, and the difference of the best losses after equally many. Intervals
are Student's over the seeds. Without `--supernet` one is trained by the demo's recipe.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from autoformer.scoring import SubnetScorer
from benchmarks import seeds as shared
from benchmarks.rows import Row, measured
from benchmarks.seeds import Searches, mean_interval
from runtime.common.config import SearchSubnet

DRAWN = 10  # offspring for each that is scored, unless the configuration names another number
SETTINGS = [f"search_subnet.{setting}" for setting in ("objective=loss", "racing=null", "finalists=1")]


class Seed(NamedTuple):
    """The best loss after each evaluation, of each search from one seed."""

    evolution: list[float]
    predictor: list[float]

    @property
    def bar(self) -> float:
        return self.evolution[-1]

    def reached(self, best: Sequence[float]) -> int | None:
        """Evaluations until the best loss is no worse than the bar; None where it stays above."""
        return next((number for number, loss in enumerate(best, start=1) if loss <= self.bar), None)

    def share(self, best: Sequence[float]) -> float:
        """Of evolution's evaluations, those until the bar."""
        return (self.reached(best) or len(self.evolution)) / len(self.evolution)


def compare(searches: Searches, seeds: int, announce: Callable[[str], None]) -> list[Seed]:
    section, found = searches.config.section(SearchSubnet), list[Seed]()
    for seed in range(searches.config.seed, searches.config.seed + seeds):
        plain = searches.run(seed, predictor=None, random_baseline=False)
        predicted = searches.run(seed, predictor=section.predictor or DRAWN, random_baseline=False)
        losses = [[one.loss for one in result.candidates if one.loss is not None] for result in (plain, predicted)]
        found.append(Seed(*(list(accumulate(each, min)) for each in losses)))
        own = found[-1]
        announce(
            f"seed {seed}: best loss of evolution {own.bar:.4f} after {own.reached(own.evolution)} of "
            f"{len(own.evolution)} evaluations; the predictor's {own.predictor[-1]:.4f}, and evolution's after "
            f"{own.reached(own.predictor) or 'more'}"
        )
    return found


def rows(found: Sequence[Seed]) -> list[Row]:
    """Shares and differences with their intervals, and in how many seeds each search reaches the bar."""
    shown = list[Row]()

    def add(name: str, unit: str, values: Sequence[float]) -> None:
        for part, value in zip(("mean", "95 % interval from", "to"), mean_interval(values), strict=True):
            shown.append(Row(f"{name}: {part}", value, unit))

    add(
        "predictor's evaluations to evolution's best loss / all of evolution's",
        "x",
        [s.share(s.predictor) for s in found],
    )
    add("evolution's own / all of evolution's", "x", [s.share(s.evolution) for s in found])
    reached = sum(one.reached(one.predictor) is not None for one in found)
    shown.append(Row(f"seeds of {len(found)} in which the predictor reaches it", reached, ""))
    for part in (4, 2, 1):
        differences = [
            min(s.predictor[: -(-len(s.evolution) // part)]) - s.evolution[-(-len(s.evolution) // part) - 1]
            for s in found
        ]
        name = "all" if part == 1 else f"1/{part} of the"
        add(f"best loss after {name} evaluations, predictor minus evolution", "nats", differences)
    return shown


def work(searches: Searches, _: SubnetScorer, seeds: int) -> dict[str, Any]:
    found = compare(searches, seeds, lambda line: print(line, flush=True))
    return measured(rows(found), seeds=[one._asdict() for one in found])


def main(argv: Sequence[str] | None = None) -> int:
    return shared.run("predictor", __doc__ or "", work, argv, SETTINGS)


if __name__ == "__main__":
    raise SystemExit(main())

"""Compare evolution with and without a predictor from several seeds, over one supernet.

    python -m benchmarks.predictor [--seeds N] [--set search_subnet.KEY=VALUE …]
    python -m benchmarks.predictor --supernet artifacts/supernet --card artifacts/splits/card.json
        --search-split artifacts/splits/search.parquet

Both search by the loss, without a race: an evaluation is one candidate on all images of the search. A seed's bar is the
best loss that evolution reaches with all its evaluations. The rows show the number of evaluations until the predictor
reaches it (all, if it does not), as a share of evolution's, and the difference of the best losses after equally many.
Intervals are Student's over the seeds. Without `--supernet` one is trained with the demo's recipe.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from autoformer.errors import quantity
from benchmarks.rows import Row, measured
from benchmarks.searches import Score, command, interval_rows, run_search, shared_scores
from runtime.common.config import Config
from runtime.common.sections import SearchSubnet

DRAWN = 10  # offspring for each that is scored, unless the configuration names another number
OVERRIDES = [
    f"search_subnet.{setting}" for setting in ("objective=loss", "racing=null", "finalists=1", "random_baseline=false")
]


class Seed(NamedTuple):
    """The best loss after each evaluation, of each search from one seed."""

    evolution: list[float]
    predictor: list[float]

    @property
    def bar(self) -> float:
        return self.evolution[-1]

    def reached(self, best: Sequence[float]) -> int | None:
        """Evaluations until the best loss is no worse than the bar; None if it stays above."""
        return next((number for number, loss in enumerate(best, start=1) if loss <= self.bar), None)

    def share(self, best: Sequence[float]) -> float:
        """Evaluations until the bar, as a share of evolution's."""
        return (self.reached(best) or len(self.evolution)) / len(self.evolution)


def compare(config: Config, score: Score, images: int, seeds: int) -> list[Seed]:
    """Run both searches from each seed, and print a line for each seed. `images`: size of the search split."""
    section, found = config.section(SearchSubnet), list[Seed]()
    settings = [section.model_copy(update={"predictor": draws}) for draws in (None, section.predictor or DRAWN)]
    with shared_scores(score, images) as cache:
        for seed in range(config.seed, config.seed + seeds):
            results = [
                run_search(config.model_copy(update={"search_subnet": each}), seed, cache, images) for each in settings
            ]
            losses = ([one.loss for one in result.candidates if one.loss is not None] for result in results)
            found.append(Seed(*(list(accumulate(each, min)) for each in losses)))
            own = found[-1]
            print(
                f"seed {seed}: best loss of evolution {own.bar:.4f} after {own.reached(own.evolution)} of "
                f"{quantity(len(own.evolution), 'evaluation')}; the predictor's {own.predictor[-1]:.4f}, and "
                f"evolution's after {own.reached(own.predictor) or 'more'}",
                flush=True,
            )
    return found


def rows(found: Sequence[Seed]) -> list[Row]:
    """Shares and differences with their intervals, and the number of seeds in which the predictor reaches the bar."""
    shown = interval_rows(
        "predictor's evaluations to evolution's best loss / all of evolution's",
        "x",
        [one.share(one.predictor) for one in found],
    )
    shown += interval_rows("evolution's own / all of evolution's", "x", [one.share(one.evolution) for one in found])
    reached = sum(one.reached(one.predictor) is not None for one in found)
    shown.append(Row(f"seeds of {len(found)} in which the predictor reaches it", reached, ""))
    for part in (4, 2, 1):
        differences = []
        for one in found:
            some = -(-len(one.evolution) // part)
            differences.append(min(one.predictor[:some]) - one.evolution[some - 1])
        name = "all" if part == 1 else f"1/{part} of the"
        shown += interval_rows(f"best loss after {name} evaluations, predictor minus evolution", "nats", differences)
    return shown


def measured_seeds(config: Config, score: Score, images: int, seeds: int) -> dict[str, Any]:
    found = compare(config, score, images, seeds)
    return measured(rows(found), seeds=[one._asdict() for one in found])


def main(argv: Sequence[str] | None = None) -> int:
    return command("predictor", __doc__ or "", measured_seeds, OVERRIDES, argv)


if __name__ == "__main__":
    raise SystemExit(main())

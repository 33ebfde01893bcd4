"""Compare evolution with random search from several seeds, over one supernet.

    python -m benchmarks.evolution [--seeds N] [--set search_subnet.KEY=VALUE …]
    python -m benchmarks.evolution --supernet artifacts/supernet --card artifacts/splits/card.json
        --search-split artifacts/splits/search.parquet

Each seed is one search of the pipeline: evolution, then random search with as many candidates within the same limits,
then the finalists of both on all search images. Seeds share supernet, images and budget. The interval of evolution's
best minus random search's best is Student's over the seeds. It covers the draws of the searches, but not other
supernets or images. Without `--supernet` one is trained first, with the demo's recipe.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from autoformer.candidates import ScoredCandidate
from benchmarks.rows import Row, measured
from benchmarks.searches import Score, command, config_of, interval_rows, over_the_demo, run_search, shared_scores
from components.search_subnet.search_loop import SearchResult
from runtime.common.config import Config

OVERRIDES = ["search_subnet.random_baseline=true"]


class Pair(NamedTuple):
    """The best subnet of each search of one seed, on all search images."""

    evolved: ScoredCandidate
    random: ScoredCandidate

    @property
    def points(self) -> float:
        return self.evolved.top1_percent - self.random.top1_percent

    @property
    def loss(self) -> float:
        """Difference of the losses; below 0 if evolution is better."""
        assert self.evolved.loss is not None and self.random.loss is not None
        return self.evolved.loss - self.random.loss


def pair(result: SearchResult) -> Pair:
    """The best finalist of each search. A subnet drawn by both counts for both."""
    drawn = {one.candidate.spec for one in result.candidates if one.is_baseline}
    evolved = {one.candidate.spec for one in result.candidates if not one.is_baseline}
    best = (next(one for one in result.finalists if one.candidate.spec in specs) for specs in (evolved, drawn))
    return Pair(*best)


def compare(config: Config, score: Score, images: int, seeds: int) -> list[Pair]:
    """Run both searches from each seed, and print a line for each seed.

    Args:
        score: of the supernet, on the search split.
        images: of the search split.
    """
    pairs = list[Pair]()
    with shared_scores(score, images) as cache:
        for seed in range(config.seed, config.seed + seeds):
            pairs.append(pair(run_search(config, seed, cache, images)))
            evolved, random = pairs[-1]
            print(
                f"seed {seed}: evolution {evolved.top1_percent:.2f} % with loss {evolved.loss:.4f}, random search "
                f"{random.top1_percent:.2f} % with loss {random.loss:.4f}: {pairs[-1].points:+.2f} points",
                flush=True,
            )
    return pairs


def rows(pairs: Sequence[Pair]) -> list[Row]:
    """Mean differences with their intervals, and how often each search was ahead."""
    found = [
        *interval_rows("evolution minus random search, accuracy", "points", [one.points for one in pairs]),
        *interval_rows("evolution minus random search, loss (below 0 is better)", "nats", [one.loss for one in pairs]),
    ]
    ahead = sum(one.loss < 0 for one in pairs)
    return [*found, Row(f"seeds of {len(pairs)} in which evolution has the lower loss", ahead, "")]


def measured_pairs(config: Config, score: Score, images: int, seeds: int) -> dict[str, Any]:
    pairs = compare(config, score, images, seeds)
    return measured(rows(pairs), points=[one.points for one in pairs], losses=[one.loss for one in pairs])


def measure(quick: bool = False) -> dict[str, Any]:
    """Train a supernet by the demo's recipe, and compare; `quick`: two small searches over a short training."""
    return over_the_demo(measured_pairs, config_of("demo", OVERRIDES, quick), 2 if quick else 5, quick)


def main(argv: Sequence[str] | None = None) -> int:
    return command("evolution", __doc__ or "", measured_pairs, OVERRIDES, argv)


if __name__ == "__main__":
    raise SystemExit(main())

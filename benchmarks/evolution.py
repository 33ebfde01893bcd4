"""Does evolution find better subnets than random search? Both from several seeds, over one supernet.

    python -m benchmarks.evolution [--seeds N] [--set search_subnet.KEY=VALUE …]
    python -m benchmarks.evolution --supernet artifacts/supernet --card artifacts/splits/card.json
        --search-split artifacts/splits/search.parquet

Each seed is a search as the pipeline's: evolution, then random search with as many candidates within the same limits,
the finalists of both on all search images. Seeds are paired: one supernet, one set of images, one budget. The interval
is Student's over the seeds, of evolution's best minus random search's best. It covers the draws of the searches, and
neither another supernet nor other images. Without `--supernet` one is trained first, by the demo's recipe.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autoformer.candidates import ScoredCandidate
from autoformer.checkpoint import load_supernet
from autoformer.racing import ScoringResult, ScoringTask
from autoformer.randomness import derived_rng
from autoformer.scoring import SubnetScorer
from autoformer.search import Evolution
from benchmarks.demo import DATA, prepare, train
from benchmarks.rows import Row, measured, table
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.search_loop import SearchResult, search
from runtime.common.config import Config, SearchSubnet, load_config
from runtime.common.console import Parser, run_command
from runtime.common.processes import set_threads
from runtime.steps import inputs

Score = Callable[[Iterable[ScoringTask]], Iterator[ScoringResult]]


class Pair(NamedTuple):
    """The best subnet of each search of one seed, on all search images."""

    evolved: ScoredCandidate
    random: ScoredCandidate

    @property
    def points(self) -> float:
        return self.evolved.top1_percent - self.random.top1_percent

    @property
    def loss(self) -> float:
        """Below 0 where evolution's is better."""
        assert self.evolved.loss is not None and self.random.loss is not None
        return self.evolved.loss - self.random.loss


def pair(result: SearchResult) -> Pair:
    """The best finalist of each search. A subnet that both have drawn counts for both."""
    drawn = {one.candidate.spec for one in result.candidates if one.is_baseline}
    evolved = {one.candidate.spec for one in result.candidates if not one.is_baseline}
    best = (next(one for one in result.finalists if one.candidate.spec in specs) for specs in (evolved, drawn))
    return Pair(*best)


def compare(config: Config, score: Score, images: int, seeds: int, announce: Callable[[str], None]) -> list[Pair]:
    """Both searches from each seed. A score that several need is computed once.

    Args:
        score: of the supernet, on the search split.
        images: of the search split.
    """
    pairs = list[Pair]()
    with tempfile.TemporaryDirectory() as folder:
        cache = ScoreCache(Path(folder) / "scores", images, lambda tasks: zip(tasks, score(tasks), strict=True))
        for seed in range(config.seed, config.seed + seeds):
            seeded = config.model_copy(update={"seed": seed})
            section = seeded.section(SearchSubnet)
            evolution = Evolution(config.space, section.limits, section, derived_rng("evolution", seed))
            part, first = min(section.images or images, images), evolution.ask()
            pairs.append(pair(search(seeded, evolution, first, cache, part, _ignore, _ignore, images)))
            evolved, random = pairs[-1]
            announce(
                f"seed {seed}: evolution {evolved.top1_percent:.2f} % with loss {evolved.loss:.4f}, random search "
                f"{random.top1_percent:.2f} % with loss {random.loss:.4f}: {pairs[-1].points:+.2f} points"
            )
    return pairs


def _ignore(*_: Any) -> None:
    """What a search shows and logs."""


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t with n - 1 degrees of freedom."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def rows(pairs: Sequence[Pair]) -> list[Row]:
    """Mean differences with their intervals, and how often each search was ahead."""
    found = list[Row]()
    for name, unit, values in (
        ("accuracy", "points", [one.points for one in pairs]),
        ("loss (below 0 is better)", "nats", [one.loss for one in pairs]),
    ):
        for part, value in zip(("mean", "95 % interval from", "to"), mean_interval(values), strict=True):
            found.append(Row(f"evolution minus random search, {name}: {part}", value, unit))
    ahead = sum(one.loss < 0 for one in pairs)
    return [*found, Row(f"seeds of {len(pairs)} in which evolution has the lower loss", ahead, "")]


def measure_supernet(config: Config, inputs_of: argparse.Namespace, seeds: int) -> dict[str, Any]:
    """`inputs_of`: the arguments `supernet`, `card`, `search_split` and `data` of a step."""
    section = config.section(SearchSubnet)
    card, (images,) = inputs.read_data(inputs_of, config, "search")
    inputs.read_supernet(inputs_of.supernet, config, section.weights)
    model = load_supernet(inputs_of.supernet, section.weights).model
    score = SubnetScorer(model, images, card, section.batch_size)
    pairs = compare(config, score, len(images.labels), seeds, lambda line: print(line, flush=True))
    return measured(rows(pairs), points=[one.points for one in pairs], losses=[one.loss for one in pairs])


def measure(quick: bool = False, config: Config | None = None, seeds: int = 5) -> dict[str, Any]:
    """Train a supernet by the demo's recipe, and compare; `quick`: two small searches over a short training."""
    config = config or load_config("demo")
    changes: dict[str, object] = {"epochs": 0.1, "warmup_epochs": 0.02} if quick else {}
    if quick:
        small = "images=500 population=8 generations=1 parents=3 mutations=4 crossovers=4 finalists=2"
        config, seeds = load_config("demo", [f"search_subnet.{setting}" for setting in small.split()]), 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        made: dict[str, Any] = {"supernet": train(folder, "supernet", **changes), "card": folder / "card.json"}
        made |= {"search_split": folder / "search.parquet", "data": str(DATA)}
        return measure_supernet(config, argparse.Namespace(**made), seeds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.evolution", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="searches of each kind, 2 or more (default: %(default)s)")
    parser.add_argument("--config", default="demo", help="preset or file with the search (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="search_subnet.KEY=VALUE", help="change a key")
    parser.add_argument("--supernet", type=Path, help="folder made by train_supernet (default: train the demo's)")
    parser.add_argument("--card", type=Path, help="with --supernet: its card, made by prepare_data")
    parser.add_argument("--search-split", type=Path, help="with --supernet: its search split, made by prepare_data")
    parser.add_argument("--data", default=str(DATA), help="with --supernet: its images (default: %(default)s)")

    def work(arguments: argparse.Namespace) -> None:
        if arguments.seeds < 2:
            parser.error(f"--seeds {arguments.seeds}: an interval needs 2 or more")
        config = load_config(arguments.config, [*arguments.set, "search_subnet.random_baseline=true"])
        set_threads(config.threads)
        if arguments.supernet is None:
            if config.space != load_config("demo").space:
                parser.error(f"--config {arguments.config}: its space is not the demo's; name its --supernet")
            result = measure(config=config, seeds=arguments.seeds)
        elif arguments.card is None or arguments.search_split is None:
            parser.error("--supernet needs --card and --search-split too")
        else:
            result = measure_supernet(config, arguments, arguments.seeds)
        print(table(result["rows"]))

    return run_command("benchmarks.evolution", parser, work, argv, after="")


if __name__ == "__main__":
    raise SystemExit(main())

"""What the comparisons of searches share: one supernet, several seeds, one cache of scores, intervals over seeds."""

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoformer.checkpoint import load_supernet
from autoformer.racing import ScoringResult, ScoringTask
from autoformer.scoring import SubnetScorer
from benchmarks.demo import DATA, prepare, train
from benchmarks.rows import Row, table
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.search_loop import SearchResult, search
from runtime.common.config import Config, load_config
from runtime.common.console import Parser, run_command
from runtime.common.processes import set_threads
from runtime.common.searches import configured_search
from runtime.common.sections import SearchSubnet
from runtime.steps import inputs

Score = Callable[[Iterable[ScoringTask]], Iterator[ScoringResult]]
# Takes the configuration, the supernet's scores on the search split, its images, and the number of seeds.
Measure = Callable[[Config, Score, int, int], dict[str, Any]]
QUICK = "images=500 population=8 generations=1 parents=3 mutations=4 crossovers=4 finalists=2"


@contextmanager
def shared_scores(score: Score, images: int) -> Iterator[ScoreCache]:
    """Computes once what several searches need. `images`: of the search split."""
    with tempfile.TemporaryDirectory() as folder:
        yield ScoreCache(Path(folder) / "scores", images, lambda tasks: zip(tasks, score(tasks), strict=True))


def run_search(config: Config, seed: int, cache: ScoreCache, images: int) -> SearchResult:
    """The pipeline's search from a seed. `images`: of the search split."""
    seeded = config.model_copy(update={"seed": seed})
    section, evolution = seeded.section(SearchSubnet), configured_search(seeded)
    part, first = min(section.images or images, images), evolution.ask()
    return search(seeded, evolution, first, cache, part, _ignore, _ignore, images)


def _ignore(*_: Any) -> None:
    """What a search shows and logs."""


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t with n - 1 degrees of freedom."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def interval_rows(name: str, unit: str, values: Sequence[float]) -> list[Row]:
    """One value for each seed: the mean and its interval."""
    parts = zip(("mean", "95 % interval from", "to"), mean_interval(values), strict=True)
    return [Row(f"{name}: {part}", value, unit) for part, value in parts]


def over_supernet(measure: Measure, config: Config, inputs_of: argparse.Namespace, seeds: int) -> dict[str, Any]:
    """`inputs_of`: the arguments `supernet`, `card`, `search_split` and `data` of a step."""
    section = config.section(SearchSubnet)
    card, (images,) = inputs.read_data(inputs_of, config, "search")
    inputs.read_supernet(inputs_of.supernet, config, section.weights)
    model = load_supernet(inputs_of.supernet, section.weights).model
    return measure(config, SubnetScorer(model, images, card, section.batch_size), len(images.labels), seeds)


def over_the_demo(measure: Measure, config: Config, seeds: int, quick: bool = False) -> dict[str, Any]:
    """Train a supernet by the demo's recipe, and measure; `quick`: after a short training."""
    changes: dict[str, object] = {"epochs": 0.1, "warmup_epochs": 0.02} if quick else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        made: dict[str, Any] = {"supernet": train(folder, "supernet", **changes), "card": folder / "card.json"}
        made |= {"search_split": folder / "search.parquet", "data": str(DATA)}
        return over_supernet(measure, config, argparse.Namespace(**made), seeds)


def config_of(source: str, overrides: Sequence[str], quick: bool = False) -> Config:
    """`quick`: with small searches."""
    return load_config(source, [*(f"search_subnet.{setting}" for setting in QUICK.split() if quick), *overrides])


def command(
    name: str, doc: str, measure: Measure, overrides: Sequence[str], argv: Sequence[str] | None,
    counted: tuple[str, int, str] = ("seeds", 5, "searches of each kind"),
) -> int:  # fmt: skip
    """The command line of a comparison.

    Args:
        overrides: of the configuration, after the user's.
        counted: the option for the last argument of `measure`, its default and its help.
    """
    option, default, what = counted
    parser = Parser(prog=f"python -m benchmarks.{name}", description=doc.split("\n")[0])
    parser.add_argument(f"--{option}", dest="count", type=int, default=default, help=f"{what}, 2 or more (%(default)s)")
    parser.add_argument("--config", default="demo", help="preset or file with the search (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="search_subnet.KEY=VALUE", help="change a key")
    parser.add_argument("--supernet", type=Path, help="folder made by train_supernet (default: train the demo's)")
    parser.add_argument("--card", type=Path, help="with --supernet: its card, made by prepare_data")
    parser.add_argument("--search-split", type=Path, help="with --supernet: its search split, made by prepare_data")
    parser.add_argument("--data", default=str(DATA), help="with --supernet: its images (default: %(default)s)")

    def work(arguments: argparse.Namespace) -> None:
        if arguments.count < 2:
            parser.error(f"--{option} {arguments.count}: an interval needs 2 or more")
        config = config_of(arguments.config, [*arguments.set, *overrides])
        set_threads(config.threads)
        if arguments.supernet is None:
            if config.space != load_config("demo").space:
                parser.error(f"--config {arguments.config}: its space is not the demo's; name its --supernet")
            result = over_the_demo(measure, config, arguments.count)
        elif arguments.card is None or arguments.search_split is None:
            parser.error("--supernet needs --card and --search-split too")
        else:
            result = over_supernet(measure, config, arguments, arguments.count)
        print(table(result["rows"]))

    return run_command(f"benchmarks.{name}", parser, work, argv, after="")

"""What the benchmarks of searches share: searches from several seeds over one supernet, and their command line."""

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autoformer.checkpoint import load_supernet
from autoformer.files import hash_path
from autoformer.racing import ScoringResult, ScoringTask
from autoformer.randomness import derived_rng
from autoformer.scoring import SubnetScorer
from autoformer.search import Evolution
from benchmarks.demo import DATA, prepare, train
from benchmarks.rows import table
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.search_loop import SearchResult, search
from runtime.common.config import Config, SearchSubnet, load_config
from runtime.common.console import Parser, run_command
from runtime.common.processes import set_threads
from runtime.steps import inputs

Score = Callable[[Iterable[ScoringTask]], Iterator[ScoringResult]]
QUICK = "images=500 population=8 generations=1 parents=3 mutations=4 crossovers=4 finalists=2"
SEEDS = 5


class Searches(NamedTuple):
    """Searches over one supernet. A score that several need is computed once.

    Attributes:
        images: of the search split.
    """

    config: Config
    cache: ScoreCache
    images: int

    def run(self, seed: int, **changes: Any) -> SearchResult:
        """The search of the pipeline from a seed. `changes`: to the section search_subnet."""
        values = self.config.section(SearchSubnet).model_dump() | changes
        section = SearchSubnet.model_validate(values)
        seeded = self.config.model_copy(update={"seed": seed, "search_subnet": section})
        evolution = Evolution(seeded.space, section.limits, section, derived_rng("evolution", seed))
        part, first = min(section.images or self.images, self.images), evolution.ask()
        return search(seeded, evolution, first, self.cache, part, _ignore, _ignore, self.images)


def _ignore(*_: Any) -> None:
    """What a search shows and logs."""


def score_cache(folder: Path, images: int, score: Score, name: str = "scores") -> ScoreCache:
    return ScoreCache(folder / name, images, lambda tasks: zip(tasks, score(tasks), strict=True))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t with n - 1 degrees of freedom."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


Work = Callable[[Searches, SubnetScorer, int], dict[str, Any]]  # the last argument is the number of seeds, or a like


def measure_supernet(work: Work, config: Config, paths: argparse.Namespace, count: int) -> dict[str, Any]:
    """`paths`: the arguments `supernet`, `card`, `search_split` and `data` of a step, and `work`, a folder or None."""
    section = config.section(SearchSubnet)
    card, (images,) = inputs.read_data(paths, config, "search")
    inputs.read_supernet(paths.supernet, config, section.weights)
    scorer = SubnetScorer(load_supernet(paths.supernet, section.weights).model, images, card, section.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(paths.work or folder)
        kept.mkdir(parents=True, exist_ok=True)
        name = f"{hash_path(paths.supernet)[:16]}-{hash_path(paths.search_split)[:16]}-{section.weights}.jsonl"
        cache = score_cache(kept, len(images.labels), scorer, name)
        return work(Searches(config, cache, len(images.labels)), scorer, count)


def measure_demo(work: Work, quick: bool, config: Config | None = None, count: int | None = None) -> dict[str, Any]:
    """Train a supernet by the demo's recipe, and measure; `quick`: small searches over a short training."""
    config = config or load_config("demo")
    changes: dict[str, object] = {"epochs": 0.1, "warmup_epochs": 0.02} if quick else {}
    if quick:
        config = load_config("demo", [f"search_subnet.{setting}" for setting in QUICK.split()])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        made: dict[str, Any] = {"supernet": train(folder, "supernet", **changes), "card": folder / "card.json"}
        made |= {"search_split": folder / "search.parquet", "data": str(DATA), "work": None}
        return measure_supernet(work, config, argparse.Namespace(**made), count or (2 if quick else SEEDS))


def run(
    name: str,
    about: str,
    work: Work,
    argv: Sequence[str] | None,
    settings: Sequence[str] = (),
    counted: tuple[str, int, str] = ("seeds", SEEDS, "searches of each kind"),
) -> int:
    """The command `python -m benchmarks.<name>`.

    Args:
        settings: those of the configuration that the comparison needs.
        counted: the option of the number that `work` gets, its default and its help.
    """
    option, default, help_text = counted
    parser = Parser(prog=f"python -m benchmarks.{name}", description=about.split("\n")[0])
    parser.add_argument(
        f"--{option}", dest="count", type=int, default=default, help=f"{help_text}, 2 or more (%(default)s)"
    )
    parser.add_argument("--config", default="demo", help="preset or file with the search (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="search_subnet.KEY=VALUE", help="change a key")
    parser.add_argument("--supernet", type=Path, help="folder made by train_supernet (default: train the demo's)")
    parser.add_argument("--card", type=Path, help="with --supernet: its card, made by prepare_data")
    parser.add_argument("--search-split", type=Path, help="with --supernet: its search split, made by prepare_data")
    parser.add_argument("--data", default=str(DATA), help="with --supernet: its images (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="with --supernet: folder that keeps its scores for the next command")

    def command(arguments: argparse.Namespace) -> None:
        if arguments.count < 2:
            parser.error(f"--{option} {arguments.count}: an interval needs 2 or more")
        config = load_config(arguments.config, [*arguments.set, *settings])
        set_threads(config.threads)
        if arguments.supernet is None:
            if config.space != load_config("demo").space:
                parser.error(f"--config {arguments.config}: its space is not the demo's; name its --supernet")
            result = measure_demo(work, quick=False, config=config, count=arguments.count)
        elif arguments.card is None or arguments.search_split is None:
            parser.error("--supernet needs --card and --search-split too")
        else:
            result = measure_supernet(work, config, arguments, arguments.count)
        print(table(result["rows"]))

    return run_command(f"benchmarks.{name}", parser, command, argv, after="")

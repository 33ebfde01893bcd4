"""Search the supernet for the best subnet under limits: evolution, then random search with as many candidates.

Candidates are scored on the search split alone. A race (`autoformer.racing`) stops hopeless ones after part of the
images; the best of both searches are scored on the whole split, and the best of these is chosen. Method front replaces
the evolution by NSGA-II (`autoformer.front`), without a race, and writes the Pareto front too. Several processes score
together, one a GPU; rank 0 runs the search and writes the result.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from autoformer.candidates import COLUMNS, LATENCY, Candidate, ScoredCandidate
from autoformer.errors import AutoFormerError
from autoformer.files import replacing, write_json, write_text
from autoformer.front import make_search
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.latency import FILE as LATENCY_FILE
from autoformer.latency import LatencyTable
from autoformer.pareto import pareto_front
from autoformer.racing import ScoringResult
from autoformer.randomness import derived_rng
from autoformer.search import Evolution
from autoformer.space import SubnetSpec
from components.search_subnet.parallel_scorer import ParallelScorer
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.search_loop import SearchResult, search
from runtime.common.config import Config, SearchSubnet
from runtime.common.console import Progress, print_line
from runtime.common.processes import set_threads
from runtime.common.stopping import Stopped
from runtime.common.tables import write_table
from runtime.steps import inputs
from runtime.steps.command import run_step, step_parser
from runtime.steps.rendezvous import process_group
from runtime.steps.step_context import StepContext, open_step
from runtime.storage.earlier_search import earlier_scores
from runtime.storage.named_files import latency_table
from runtime.tracking import StepLogger

STEP = "search_subnet"
FRONT = "front.csv"  # with method front
PROGRESS = ("generation", "scored", "images_scored", "evolution_best_top1_percent", "random_best_top1_percent")


def parser() -> argparse.ArgumentParser:
    result = step_parser(STEP, "Search the supernet for the best subnet under limits, on the search split.")
    inputs.add_data_arguments(result, "search")
    inputs.add_folder_arguments(result, "supernet")
    inputs.add_output_arguments(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv, shared=True)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(SearchSubnet)
    card, (images,) = inputs.read_data(arguments, config, "search")
    inputs.read_supernet(arguments.supernet, config, section.weights)
    count = section.images or len(images.labels)
    if count > len(images.labels):
        raise AutoFormerError(f"search_subnet.images = {count}: the search split has {len(images.labels)}")
    table = latency_table(section.latency, config.space)
    keys = ("card", "search_split", "supernet")
    known = earlier_scores(config, {key: getattr(arguments, key) for key in keys}, len(images.labels))
    evolution = make_search(config.space, section.limits, section, derived_rng("evolution", config.seed), table, known)
    first = evolution.ask()  # raises before anything heavy if no candidate is legal
    with (
        process_group(config) as world,
        open_step(STEP, arguments, config, *keys, world=world, has_checkpoints=True) as opened,
    ):
        score = ParallelScorer(world, config.space, make_scorer(arguments.supernet, config, card, images))
        if world.is_rank_zero:
            result = _search(opened, evolution, first, score, count, len(images.labels))
            score.stop()
            write_result(arguments.out, config, result, opened.workspace.provenance, table)
            _log(opened.tracked, arguments.out, result)
        else:
            score.serve()


def _search(
    opened: StepContext,
    evolution: Evolution,
    first: list[Candidate],
    score: ParallelScorer,
    images: int,
    whole_split: int,
) -> SearchResult:
    """Run the search with a progress bar, and resume from the scores of an earlier try."""
    section = opened.config.section(SearchSubnet)
    if section.warm_start:
        seeds = sum(candidate.origin == "earlier" for candidate in first)
        print_line(
            f"{STEP}: {len(evolution.known)} scores on {images} images known from {section.warm_start.search}; "
            f"the best {seeds} within the limits enter generation 0"
        )
    cache = ScoreCache(opened.workspace.file("scores.jsonl"), whole_split, score, opened.mirror.request_upload)
    with Progress(STEP, section.budget, "candidates") as progress:
        try:
            result = search(
                opened.config, evolution, first, cache, images, progress.update, opened.tracked.metrics, whole_split,
                announce=lambda line: progress.print_above(f"{STEP}: {line}"),
            )  # fmt: skip
        except Stopped as stopped:
            stopped.note = f" after {len(cache)} scored candidates"
            raise
    opened.record.values |= {name: getattr(cache, name) for name in ("candidates_scored_now", "images_scored_now")}
    return result


def make_scorer(
    folder: Path, config: Config, card: DatasetCard, images: DecodedSplit
) -> Callable[..., Iterator[ScoringResult]]:
    """Scores subnets with inherited weights, on this process's device."""
    from autoformer.checkpoint import load_supernet
    from autoformer.devices import find_device, find_precision
    from autoformer.scoring import SubnetScorer

    section = config.section(SearchSubnet)
    set_threads(config.threads)
    device = find_device(config.device)
    supernet = load_supernet(folder, section.weights).model.to(device)
    return SubnetScorer(supernet, images, card, section.batch_size, find_precision(section.precision, device))


def write_result(
    out: Path, config: Config, result: SearchResult, provenance: dict[str, Any], table: LatencyTable | None = None
) -> None:
    """Write the search folder, whole or not at all. `table`: of the latencies, which the folder then holds too."""
    columns = (*COLUMNS, LATENCY) if table else COLUMNS
    made_of = f"seed {config.seed}, code {provenance['code']}, supernet {provenance['inputs']['supernet']}"
    chosen = {
        "name": f"{config.name}-chosen",
        "space": config.space.name,
        "source": f"{STEP} ({search_of(result)}), {made_of}",
        "subnet": result.chosen.candidate.spec.to_dict(),
    }
    with replacing(out) as folder:
        folder.mkdir()
        write_table(folder / "candidates.csv", columns, [scored.to_row() for scored in result.candidates])
        write_table(folder / "finalists.csv", columns, [scored.to_row() for scored in result.finalists])
        if result.front:
            write_table(folder / FRONT, columns, [scored.to_row() for scored in result.front])
        write_table(folder / "progress.csv", PROGRESS, result.progress)
        write_text(folder / "chosen.yaml", yaml.safe_dump(chosen, sort_keys=False))
        write_json(folder / "metrics.json", result.metrics)
        write_json(folder / "provenance.json", provenance)
        if table:
            write_json(folder / LATENCY_FILE, table.model_dump(mode="json"))


def search_of(result: SearchResult) -> str:
    """The search that found the chosen subnet."""
    return "random search" if result.chosen.is_baseline else "NSGA-II" if result.front else "evolution"


def _log(tracked: StepLogger, out: Path, result: SearchResult) -> None:
    chosen = result.chosen.candidate.spec
    tracked.subnet(chosen)
    tracked.metrics(result.metrics)
    tracked.headline(result.metrics, chosen)
    tracked.table(out / "candidates.csv")
    if result.front:
        tracked.table(out / FRONT)
    tracked.children(_best_and_front(result), chosen)
    print(f"{STEP}: chosen from {search_of(result)}, candidate {result.chosen.candidate.id}")
    print(f"{STEP}: " + ", ".join(f"{key} {value:,.6g}" for key, value in result.metrics.items()), flush=True)


def _best_and_front(result: SearchResult) -> list[ScoredCandidate]:
    """The ten best and the front, by default of accuracy and parameters, at most 50: MLflow gets a run for each."""
    complete = [scored for scored in result.candidates if scored.complete]
    costs = [(scored.candidate.params, -scored.top1_percent) for scored in complete]
    best = sorted(range(len(costs)), key=lambda index: (costs[index][1], costs[index][0]))[:10]
    front = result.front or [complete[index] for index in pareto_front(costs)]
    by_spec: dict[SubnetSpec, ScoredCandidate] = {}
    for scored in [*(complete[index] for index in best), *front]:
        by_spec.setdefault(scored.candidate.spec, scored)
    return list(by_spec.values())[:50]

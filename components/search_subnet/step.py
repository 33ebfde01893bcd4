"""Search the supernet: evolution, and random search of the same budget, both scored on the search split alone.

Hopeless candidates are stopped on a part of the split (`autoformer.racing`); the best are always scored on all of it.
Several processes score together, one a GPU; rank 0 evolves, decides and writes.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from autoformer.candidates import COLUMNS, Candidate, ScoredCandidate
from autoformer.complexity import count_macs
from autoformer.errors import AutoFormerError
from autoformer.files import replacing, write_json, write_text
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.pareto import pareto_front
from autoformer.racing import ScoringResult, ScoringTask
from autoformer.randomness import derived_rng
from autoformer.search import Evolution
from autoformer.space import SearchSpace, SubnetSpec
from components.search_subnet.score_cache import Crew, ScoreCache
from components.search_subnet.search_loop import SearchResult, search
from runtime.common.config import Config, SearchSubnet
from runtime.common.console import Progress
from runtime.common.processes import set_threads
from runtime.common.stopping import Stopped
from runtime.common.tables import write_table
from runtime.steps.command import run_step, step_parser
from runtime.steps.inputs import (
    add_data_arguments,
    add_folder_arguments,
    add_output_arguments,
    read_data,
    read_supernet,
)
from runtime.steps.rendezvous import process_group
from runtime.steps.step_context import StepContext, open_step

STEP = "search_subnet"
PROGRESS = ("generation", "scored", "images_scored", "evolution_best_top1_percent", "random_best_top1_percent")


def parser() -> argparse.ArgumentParser:
    result = step_parser(STEP, "Search the supernet for the best subnet under limits, on the search split.")
    add_data_arguments(result, "search")
    add_folder_arguments(result, "supernet")
    add_output_arguments(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv, shared=True)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(SearchSubnet)
    card, (images,) = read_data(arguments, config, "search")
    read_supernet(arguments.supernet, config, section.weights)
    count = section.images or len(images.labels)
    if count > len(images.labels):
        raise AutoFormerError(f"search_subnet.images = {count}: the search split has {len(images.labels)}")
    evolution = Evolution(config.space, section.limits, section, derived_rng("evolution", config.seed))
    first = evolution.ask()  # legal candidates exist, or the step ends here, before anything heavy
    used = DecodedSplit(images.pixels[:count], images.labels[:count], images.checksums[:count])
    with (
        process_group(config) as world,
        open_step(
            STEP, arguments, config, "card", "search_split", "supernet", world=world, has_checkpoints=True
        ) as opened,
    ):
        crew = Crew(world, _scorer(arguments.supernet, config, card, used), partial(_cost, config.space))
        if world.is_rank_zero:
            _lead(opened, evolution, first, crew, count)
        else:
            crew.work()


def _cost(space: SearchSpace, task: ScoringTask) -> float:
    return count_macs(space, task.spec) * len(task.images)


def _lead(opened: StepContext, evolution: Evolution, first: list[Candidate], crew: Crew, images: int) -> None:
    """Evolve, decide who is scored on what, and write the result: the work of rank 0."""
    config, tracked, out = opened.config, opened.tracked, opened.arguments.out
    memory = ScoreCache(opened.workspace.file("scores.jsonl"), images, crew, opened.mirror.request_upload)
    with Progress(STEP, config.section(SearchSubnet).budget, "candidates") as progress:
        try:
            result = search(config, evolution, first, memory, images, progress.update, tracked.metrics)
        except Stopped as stopped:
            stopped.note = f" after {len(memory)} scored candidates"
            raise
    crew.dismiss()
    opened.record.values |= {
        "candidates_scored_now": memory.candidates_scored_now,
        "images_scored_now": memory.images_scored_now,
    }
    write_result(out, config, result, opened.workspace.provenance)
    tracked.subnet(result.chosen.candidate.spec)
    tracked.metrics(result.metrics)
    tracked.headline(result.metrics, result.chosen.candidate.spec)
    tracked.table(out / "candidates.csv")
    tracked.children(_shown(result), result.chosen.candidate.spec)
    print(f"{STEP}: " + ", ".join(f"{key} {value:,.6g}" for key, value in result.metrics.items()), flush=True)


def _scorer(
    folder: Path, config: Config, card: DatasetCard, images: DecodedSplit
) -> Callable[..., Iterator[ScoringResult]]:
    """What answers tasks with inherited weights, on this process's device."""
    from autoformer.checkpoint import load_supernet
    from autoformer.devices import find_device, find_precision
    from autoformer.scoring import SubnetScorer

    section = config.section(SearchSubnet)
    set_threads(config.threads)
    device = find_device(config.device)
    supernet = load_supernet(folder, section.weights).model.to(device)
    return SubnetScorer(supernet, images, card, section.batch_size, find_precision(section.precision, device))


def _shown(result: SearchResult) -> list[ScoredCandidate]:
    """The Pareto front of accuracy and parameters, and the ten best: what MLflow shows as runs of their own."""
    complete = [outcome for outcome in result.outcomes if outcome.complete]
    costs = [(outcome.candidate.params, -outcome.top1_percent) for outcome in complete]
    best = sorted(range(len(costs)), key=lambda index: (costs[index][1], costs[index][0]))[:10]
    shown: dict[SubnetSpec, ScoredCandidate] = {}
    for index in [*best, *pareto_front(costs)]:
        shown.setdefault(complete[index].candidate.spec, complete[index])
    return list(shown.values())[:50]


def write_result(out: Path, config: Config, result: SearchResult, provenance: dict[str, Any]) -> None:
    """Write the search folder, whole or not at all."""
    chosen = {
        "name": f"{config.name}-chosen",
        "space": config.space.name,
        "source": f"{STEP}, seed {config.seed}, code {provenance['code']}, supernet {provenance['inputs']['supernet']}",
        "subnet": result.chosen.candidate.spec.to_dict(),
    }
    with replacing(out) as folder:
        folder.mkdir()
        write_table(folder / "candidates.csv", COLUMNS, [outcome.to_row() for outcome in result.outcomes])
        write_table(folder / "progress.csv", PROGRESS, result.progress)
        write_text(folder / "chosen.yaml", yaml.safe_dump(chosen, sort_keys=False))
        write_json(folder / "metrics.json", result.metrics)
        write_json(folder / "provenance.json", provenance)

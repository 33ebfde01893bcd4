"""Search the supernet for the best subnet under limits: evolution, then random search with as many candidates.

Candidates are scored on the search split only. A race (`autoformer.racing`) stops clearly worse ones after a part of
the images. The best of both searches are scored on the whole split, and the best of these is chosen. Method front
replaces the evolution by NSGA-II (`autoformer.front`), without a race, and writes the Pareto front too. With several
GPUs one process per GPU scores candidates; rank 0 runs the search and writes the result.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from autoformer.candidates import COLUMNS, LATENCY, Candidate, ScoredCandidate
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import replacing, write_json, write_text
from autoformer.front import first_front, front_of
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.latency import FILE as LATENCY_FILE
from autoformer.latency import LatencyTable
from autoformer.racing import ScoringResult
from autoformer.search import Evolution
from autoformer.space import SubnetSpec
from components.search_subnet.budgets import choose_for_all, repeats
from components.search_subnet.parallel_scorer import ParallelScorer
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.search_loop import SearchResult, search
from runtime.common.budgets import FOLDER, merge_metrics, prefix_of, step_title
from runtime.common.config import Config
from runtime.common.console import Progress, print_line
from runtime.common.processes import set_threads
from runtime.common.search_names import found_by, method_of
from runtime.common.searches import configs_by_label, configured_search
from runtime.common.sections import SearchSubnet
from runtime.common.stopping import Stopped
from runtime.common.tables import write_table
from runtime.steps import inputs
from runtime.steps.command import run_step
from runtime.steps.rendezvous import process_group
from runtime.steps.step_context import StepContext, open_step
from runtime.storage.earlier_search import earlier_scores
from runtime.storage.named_files import latency_table
from runtime.tracking.step_logger import OBJECTIVES, StepLogger, child_run

STEP = "search_subnet"
FRONT = "front.csv"  # with method front
PROGRESS = ("generation", "scored", "images_scored", "evolution_best_top1_percent", "random_best_top1_percent")


class _Start(NamedTuple):
    """The search of one budget before its first score."""

    config: Config
    evolution: Evolution
    first: list[Candidate]


def parser() -> argparse.ArgumentParser:
    description = "Search the supernet for the best subnet under limits, on the search split."
    return inputs.input_parser(STEP, description, ["search"], "supernet")


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv, shared=True)


def read_inputs(arguments: argparse.Namespace, config: Config) -> tuple[DatasetCard, DecodedSplit, int]:
    """The card, the images of the search split, and the number that score a candidate. Checks the supernet too."""
    section = config.section(SearchSubnet)
    card, (images,) = inputs.read_data(arguments, config, "search")
    inputs.read_supernet(arguments.supernet, config, section.weights)
    count = section.images or len(images.labels)
    if count > len(images.labels):
        raise AutoFormerError(f"search_subnet.images = {count}: the search split has {len(images.labels)}")
    return card, images, count


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(SearchSubnet)
    card, images, count = read_inputs(arguments, config)
    table = latency_table(section.latency, config.space)
    keys = ("card", "search_split", "supernet")
    known = earlier_scores(config, {key: getattr(arguments, key) for key in keys}, len(images.labels))
    starts = {label: _start(one, table, known) for label, one in configs_by_label(config).items()}
    with (
        process_group(config) as world,
        open_step(STEP, arguments, config, *keys, world=world, has_checkpoints=True) as opened,
    ):
        score = ParallelScorer(world, config.space, make_scorer(arguments.supernet, config, card, images))
        if world.is_rank_zero:
            if table and (note := table.note_on(config.space)):
                print_line(f"{STEP}: search_subnet.latency.table: {note}")
            results = _search(opened, starts, score, count, len(images.labels))
            score.stop()
            write_results(arguments.out, config, results, opened.workspace.provenance, table)
            _log(opened.tracked, arguments.out, results, config.section(SearchSubnet))
        else:
            score.serve()


def _start(config: Config, table: LatencyTable | None, known: Sequence[ScoredCandidate]) -> _Start:
    evolution = configured_search(config, table, known)
    return _Start(config, evolution, evolution.ask())  # raises early if no candidate is legal


def _search(
    opened: StepContext, starts: Mapping[str, _Start], score: ParallelScorer, images: int, whole_split: int
) -> dict[str, SearchResult]:
    """Run the search of each budget, from the stored scores of an interrupted run if there are any."""
    section = opened.config.section(SearchSubnet)
    cache = ScoreCache(opened.workspace.file("scores.jsonl"), whole_split, score, opened.mirror.request_upload)
    results = {}
    for label, start in starts.items():
        results[label] = _search_one(opened, label, start, cache, images, whole_split)
    if section.budgets is not None:
        results = choose_for_all(results, section, cache, whole_split)
    opened.record.values |= {name: getattr(cache, name) for name in ("candidates_scored_now", "images_scored_now")}
    return results


def _search_one(
    opened: StepContext, label: str, start: _Start, cache: ScoreCache, images: int, whole_split: int
) -> SearchResult:
    """Run one search, with a progress bar."""
    title, section = step_title(STEP, label), start.config.section(SearchSubnet)
    if section.warm_start:
        seeds = sum(candidate.origin == "earlier" for candidate in start.first)
        print_line(
            f"{title}: {quantity(len(start.evolution.known), 'score')} on {quantity(images, 'image')} known from "
            f"{section.warm_start.search}; generation 0 begins with the best {seeds} within the limits"
        )

    def log(metrics: Mapping[str, float], step: int) -> None:
        opened.tracked.metrics({f"{prefix_of(label)}{name}": value for name, value in metrics.items()}, step)

    with Progress(title, section.most_candidates, "candidates") as progress:
        try:
            return search(
                start.config, start.evolution, start.first, cache, images, progress.update, log, whole_split,
                announce=lambda line: progress.print_above(f"{title}: {line}"),
            )  # fmt: skip
        except Stopped as stopped:
            stopped.note = f" after {quantity(len(cache), 'scored candidate')}"
            raise


def make_scorer(
    folder: Path, config: Config, card: DatasetCard, images: DecodedSplit
) -> Callable[..., Iterator[ScoringResult]]:
    """A scorer of subnets with inherited weights, on this process's device."""
    from autoformer.checkpoint import load_supernet
    from autoformer.devices import find_device, find_precision
    from autoformer.scoring import SubnetScorer

    section = config.section(SearchSubnet)
    set_threads(config.threads)
    device = find_device(config.device)
    supernet = load_supernet(folder, section.weights).model.to(device)
    return SubnetScorer(supernet, images, card, section.batch_size, find_precision(section.precision, device))


def write_results(
    out: Path,
    config: Config,
    results: Mapping[str, SearchResult],
    provenance: dict[str, Any],
    table: LatencyTable | None = None,
) -> None:
    """Write the search folder, whole or not at all.

    Args:
        results: label -> result, smallest budget first.
        table: the latency table, copied to the folder.
    """
    made_of = f"seed {config.seed}, code {provenance['code']}, supernet {provenance['inputs']['supernet']}"
    chosen = {
        label: {
            "name": f"{config.name}-chosen" + (f"-{label}" if label else ""),
            "space": config.space.name,
            "source": f"{STEP} ({found_by(result.metrics)}), {made_of}",
            "subnet": result.chosen.candidate.spec.to_dict(),
        }
        for label, result in results.items()
    }
    *_, largest = chosen
    budget = ("budget",) if largest else ()
    columns = (*COLUMNS, *((LATENCY,) if table else ()), *budget)
    with replacing(out) as folder:
        folder.mkdir()
        write_table(folder / "candidates.csv", columns, _rows(results, "candidates"))
        write_table(folder / "finalists.csv", columns, _rows(results, "finalists"))
        if any(result.front for result in results.values()):
            write_table(folder / FRONT, columns, _rows(results, "front"))
        write_table(folder / "progress.csv", (*PROGRESS, *budget), _rows(results, "progress"))
        write_text(folder / "chosen.yaml", yaml.safe_dump(chosen[largest], sort_keys=False))
        for label in filter(None, chosen):
            (folder / FOLDER).mkdir(exist_ok=True)
            write_text(folder / FOLDER / f"{label}.yaml", yaml.safe_dump(chosen[label], sort_keys=False))
        write_json(folder / "metrics.json", merge_metrics({label: result.metrics for label, result in results.items()}))
        write_json(folder / "provenance.json", provenance)
        if table:
            write_json(folder / LATENCY_FILE, table.model_dump(mode="json"))


def _rows(
    results: Mapping[str, SearchResult], table: Literal["candidates", "finalists", "front", "progress"]
) -> list[dict[str, Any]]:
    """The rows of a table, each with the label of its search's budget."""
    rows = []
    for label, result in results.items():
        for one in getattr(result, table):
            row = one.to_row() if isinstance(one, ScoredCandidate) else one
            rows.append(row | {"budget": label} if label else row)
    return rows


def _log(tracked: StepLogger, out: Path, results: Mapping[str, SearchResult], section: SearchSubnet) -> None:
    chosen = {label: result.chosen.candidate.spec for label, result in results.items()}
    *_, largest = chosen
    tracked.subnet(chosen[largest])
    tracked.metrics(merge_metrics({label: result.metrics for label, result in results.items()}))
    tracked.headline(results[largest].metrics, chosen[largest])
    tracked.table(out / "candidates.csv")
    if any(result.front for result in results.values()):
        tracked.table(out / FRONT)
    objectives = section.front_objectives if section.method == "front" else ("accuracy", "params_m")
    front = front_of([one for result in results.values() for one in result.candidates], objectives)
    tracked.tags({"method": method_of(results[largest].metrics), OBJECTIVES: ", ".join(objectives)})
    logged, on_front = _best_and_front(results), {one.candidate.spec for one in front}
    tracked.child_runs([child_run(one, [*chosen.values()], on_front) for one in logged])
    if missing := len(on_front - {one.candidate.spec for one in logged}):
        print(
            f"{STEP}: MLflow gets runs of {quantity(len(logged), 'candidate')}, without {missing} of the "
            f"{len(on_front)} on the front; candidates.csv has all",
            flush=True,
        )
    for label, result in results.items():
        title = step_title(STEP, label)
        print(f"{title}: chosen from {found_by(result.metrics)}, candidate {result.chosen.candidate.id}")
        print(f"{title}: " + ", ".join(f"{key} {value:,.6g}" for key, value in result.metrics.items()), flush=True)
        tracked.tags({f"{prefix_of(label)}found_by": found_by(result.metrics)})
        if label:
            tracked.headline(result.metrics, chosen[label], label)
    for labels in repeats(results).values():
        print(f"{STEP}: the subnet of {labels[0]} is also the best found within {' and '.join(labels[1:])}", flush=True)


def _best_and_front(results: Mapping[str, SearchResult]) -> list[ScoredCandidate]:
    """At most 50 candidates, which get runs in MLflow: the chosen ones, and each search's ten best and front.

    The front is that of accuracy and parameters, unless the method has other objectives.
    """
    by_spec: dict[SubnetSpec, ScoredCandidate] = {}
    for label, result in results.items():
        if label:
            by_spec.setdefault(result.chosen.candidate.spec, result.chosen)
    for result in results.values():
        complete = [scored for scored in result.candidates if scored.complete]
        best = sorted(complete, key=lambda scored: (-scored.top1_percent, scored.candidate.params))[:10]
        for scored in [*best, *(result.front or first_front(complete, ("accuracy", "params_m")))]:
            by_spec.setdefault(scored.candidate.spec, scored)
    return list(by_spec.values())[:50]

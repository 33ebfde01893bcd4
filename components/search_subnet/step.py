"""Search the supernet: evolution, and random search of the same budget, both scored on the search split alone."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from autoformer.dataset import DatasetCard, Images
from autoformer.errors import AutoFormerError
from autoformer.files import replacing, write_json, write_text
from autoformer.pareto import pareto_front
from autoformer.randomness import derived_rng
from autoformer.search import Candidate, Evolution, EvolutionSettings, Limits, random_baseline
from autoformer.space import SubnetSpec
from components import tracking
from components.cli import Progress, run_step, step_parser
from components.config import Config, SearchSubnet
from components.inputs import add_data_arguments, add_folder_arguments, add_output_arguments, read_data, read_supernet
from components.opening import open_step
from components.stopping import Stopped
from components.tables import write_table

STEP = "search_subnet"
COLUMNS = (
    "id",
    "origin",
    "generation",
    "parents",
    "depth",
    "embed_dim",
    "num_heads",
    "mlp_ratio",
    "params",
    "macs",
    "top1_percent",
    "loss",
)
PROGRESS = ("generation", "scored", "evolution_best_top1_percent", "random_best_top1_percent")


class Score(NamedTuple):
    top1_percent: float
    loss: float


def parser() -> argparse.ArgumentParser:
    result = step_parser(STEP, "Search the supernet for the best subnet under limits, on the search split.")
    add_data_arguments(result, "search")
    add_folder_arguments(result, "supernet")
    add_output_arguments(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.search_subnet
    assert section is not None
    card, (images,) = read_data(arguments, config, "search")
    read_supernet(arguments.supernet, config, section.weights)
    if section.images is not None and section.images > len(images.labels):
        raise AutoFormerError(f"search_subnet.images = {section.images}: the search split has {len(images.labels)}")
    evolution = Evolution(config.space, limits(section), settings(section), derived_rng("evolution", config.seed))
    first = evolution.ask()  # legal candidates exist, or the step ends here, before anything heavy
    with open_step(STEP, arguments, config, "card", "search_split", "supernet") as opened:
        workspace, record, tracked = opened.workspace, opened.record, opened.tracked
        score = _scorer(arguments.supernet, config, card, images)
        memory = ScoreMemory(workspace.file("scores.jsonl"), score)
        with Progress(STEP, section.budget, "candidates") as progress:
            try:
                result = search(config, evolution, first, memory, progress, tracked)
            except Stopped as stopped:
                stopped.note = f" after {len(memory)} scored candidates"
                raise
        record.values["candidates_scored_now"] = memory.scored_now
        _write(arguments.out, config, result, workspace.provenance)
        tracked.subnet(result.chosen.spec)
        tracked.metrics(result.metrics)
        tracked.headline(result.metrics, result.chosen.spec)
        tracked.table(arguments.out / "candidates.csv")
        tracked.children(_children(result))
    print(f"{STEP}: " + ", ".join(f"{key} {value:,.6g}" for key, value in result.metrics.items()), flush=True)


def limits(section: SearchSubnet) -> Limits:
    def whole(value: float | None, unit: float) -> int | None:
        return None if value is None else round(value * unit)

    wanted = section.limits
    return Limits(
        whole(wanted.min_params_m, 1e6), whole(wanted.max_params_m, 1e6),
        whole(wanted.min_macs_g, 1e9), whole(wanted.max_macs_g, 1e9),
    )  # fmt: skip


def settings(section: SearchSubnet) -> EvolutionSettings:
    return EvolutionSettings(**section.model_dump(include=set(EvolutionSettings.__dataclass_fields__)))


class ScoreMemory:
    """Scores each subnet once, and remembers the scores in a file, a line each, so that a killed search resumes."""

    def __init__(self, file: Path, score: Callable[[SubnetSpec], Score]) -> None:
        self._file, self._score = file, score
        self._known = dict(_read_scores(file))
        self.scored_now = 0

    def __call__(self, spec: SubnetSpec) -> Score:
        if spec not in self._known:
            self._known[spec] = self._score(spec)
            self.scored_now += 1
            line = {"subnet": spec.to_dict(), "score": self._known[spec]}
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return self._known[spec]

    def __len__(self) -> int:
        return len(self._known)


def _read_scores(file: Path) -> list[tuple[SubnetSpec, Score]]:
    """The scores of an earlier try. A last line that a kill cut off is dropped, from the file too."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(file, whole)
    lines = [json.loads(line) for line in whole.splitlines()]
    return [(SubnetSpec.from_dict(line["subnet"]), Score(*line["score"])) for line in lines]


class Result(NamedTuple):
    """All candidates with their scores, the chosen one, and how the search went."""

    candidates: list[tuple[Candidate, Score]]
    chosen: Candidate
    progress: list[dict[str, Any]]
    metrics: dict[str, float]


def search(
    config: Config,
    evolution: Evolution,
    first: list[Candidate],
    memory: ScoreMemory,
    progress: Progress,
    tracked: "tracking.StepRun",
) -> Result:
    """Run evolution to its end, then random search of as many candidates."""
    section = config.search_subnet
    assert section is not None
    table: list[tuple[Candidate, Score]] = []

    def scores(candidates: Sequence[Candidate]) -> list[Score]:
        found = []
        for candidate in candidates:
            found.append(memory(candidate.spec))
            table.append((candidate, found[-1]))
            progress.update(len(table), f"best {max(score.top1_percent for _, score in table):.2f} %")
        return found

    candidates, ends = first, []
    while candidates:
        found = scores(candidates)
        evolution.tell(candidates, [score.top1_percent for score in found])
        ends.append(len(table))
        tracked.metrics(_generation_metrics(found, evolution), step=evolution.generation - 1)
        candidates = evolution.ask()

    evolved = list(table)
    baseline: list[Score] = []
    if section.random_baseline:
        rng = derived_rng("random baseline", config.seed)
        drawn = random_baseline(config.space, limits(section), len(evolved), section.tries, rng)
        moved = [_renumbered(candidate, len(evolved)) for candidate in drawn]
        baseline = scores(moved)
    chosen = evolution.best(1)[0].candidate
    rows = [_progress_row(generation, end, evolved, baseline) for generation, end in enumerate(ends)]
    return Result(table, chosen, rows, _metrics(chosen, evolved, baseline, len(memory)))


def _generation_metrics(found: Sequence[Score], evolution: Evolution) -> dict[str, float]:
    percents = [score.top1_percent for score in found]
    return {
        "search/best_top1_percent": evolution.best(1)[0].score,
        "search/generation_best_top1_percent": max(percents),
        "search/generation_mean_top1_percent": sum(percents) / len(percents),
        "search/scored": len(evolution.scored),
    }


def _renumbered(candidate: Candidate, offset: int) -> Candidate:
    fields = {name: getattr(candidate, name) for name in candidate.__dataclass_fields__}
    return Candidate(**fields | {"id": candidate.id + offset})


def _progress_row(
    generation: int, end: int, evolved: Sequence[tuple[Candidate, Score]], baseline: Sequence[Score]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "generation": generation,
        "scored": end,
        "evolution_best_top1_percent": max(score.top1_percent for _, score in evolved[:end]),
    }
    if baseline:
        row["random_best_top1_percent"] = max(score.top1_percent for score in baseline[:end])
    return row


def _metrics(
    chosen: Candidate, evolved: Sequence[tuple[Candidate, Score]], baseline: Sequence[Score], scored: int
) -> dict[str, float]:
    score = next(score for candidate, score in evolved if candidate.id == chosen.id)
    metrics = {
        "chosen_top1_percent": score.top1_percent,
        "chosen_loss": score.loss,
        "chosen_params_m": chosen.params / 1e6,
        "chosen_macs_g": chosen.macs / 1e9,
        "candidates_scored": scored,
    }
    if baseline:
        metrics["random_best_top1_percent"] = max(score.top1_percent for score in baseline)
    return metrics


def _scorer(folder: Path, config: Config, card: DatasetCard, images: Images) -> Callable[[SubnetSpec], Score]:
    """A function that scores a subnet with inherited weights."""
    import torch

    from autoformer.checkpoint import load_supernet
    from autoformer.devices import find_device
    from autoformer.evaluation import predict_logits
    from components.training import set_threads

    section = config.search_subnet
    assert section is not None
    set_threads(config.threads)
    device = find_device(config.device)
    supernet = load_supernet(folder, section.weights).model.to(device)
    pixels = torch.from_numpy(images.pixels[: section.images])
    labels = torch.from_numpy(images.labels[: section.images])

    def score(spec: SubnetSpec) -> Score:
        logits = predict_logits(
            lambda batch: supernet(batch, spec), pixels, card.mean, card.std, section.batch_size, device
        )
        top1_percent = 100.0 * int((logits.argmax(dim=1) == labels).sum()) / len(labels)
        return Score(top1_percent, torch.nn.functional.cross_entropy(logits, labels).item())

    return score


def _row(candidate: Candidate, score: Score) -> dict[str, Any]:
    spec = candidate.spec
    return {
        "id": candidate.id,
        "origin": candidate.origin,
        "generation": candidate.generation,
        "parents": ";".join(map(str, candidate.parents)),
        "depth": spec.depth,
        "embed_dim": spec.embed_dim,
        "num_heads": ";".join(map(str, spec.num_heads)),
        "mlp_ratio": ";".join(f"{ratio:g}" for ratio in spec.mlp_ratio),
        "params": candidate.params,
        "macs": candidate.macs,
        **score._asdict(),
    }


def _children(result: Result) -> list[dict[str, Any]]:
    """The Pareto front of accuracy and parameters, and the ten best: what MLflow shows as runs of their own."""
    costs = [(candidate.params, -score.top1_percent) for candidate, score in result.candidates]
    best = sorted(range(len(costs)), key=lambda index: (costs[index][1], costs[index][0]))[:10]
    shown: dict[SubnetSpec, int] = {}
    for index in [*best, *pareto_front(costs)]:
        shown.setdefault(result.candidates[index][0].spec, index)
    return [
        _row(*result.candidates[index]) | {"chosen": result.candidates[index][0].spec == result.chosen.spec}
        for index in list(shown.values())[:50]
    ]


def _write(out: Path, config: Config, result: Result, provenance: dict[str, Any]) -> None:
    chosen = {
        "name": f"{config.name}-chosen",
        "space": config.space.name,
        "source": f"{STEP}, seed {config.seed}, code {provenance['code']}, supernet {provenance['inputs']['supernet']}",
        "subnet": result.chosen.spec.to_dict(),
    }
    with replacing(out) as folder:
        folder.mkdir()
        write_table(folder / "candidates.csv", COLUMNS, [_row(*row) for row in result.candidates])
        write_table(folder / "progress.csv", PROGRESS, result.progress)
        write_text(folder / "chosen.yaml", yaml.safe_dump(chosen, sort_keys=False))
        write_json(folder / "metrics.json", result.metrics)
        write_json(folder / "provenance.json", provenance)

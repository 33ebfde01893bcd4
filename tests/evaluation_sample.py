"""What the earlier steps hand to evaluate_subnet: small, in the real formats, with weights that learnt something."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import yaml
from tiny import TinyData
from torch import Tensor

from autoformer.candidates import COLUMNS, LATENCY, Candidate, ScoredCandidate
from autoformer.cards import Preprocessing, SubnetCard, SupernetCard
from autoformer.checkpoint import save_subnet, save_supernet
from autoformer.files import write_json, write_text
from autoformer.front import front_of, make_search
from autoformer.images.batches import normalise
from autoformer.images.split_images import load_images
from autoformer.latency import FILE, LatencyTable
from autoformer.limits import Limits
from autoformer.named import load_space
from autoformer.search import EvolutionSettings, random_baseline
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet
from components.evaluate_subnet.results import Search, read_searches
from components.search_subnet.step import PROGRESS
from runtime.common.config import Config, load_config
from runtime.common.tables import write_table

SUPERNET_HISTORY = (
    "step",
    "epoch",
    "learning_rate",
    "train_loss",
    *(f"{n}_top1_percent" for n in ("smallest", "middle", "largest")),
)
RETRAIN_HISTORY = ("step", "epoch", "learning_rate", "train_loss", "search_top1_percent")
PROVENANCE = {
    "step": "sample",
    "seed": 7,
    "code": "0123456789abcdef",
    "config": {"retrain_subnet": {"mode": "finetune"}},
}


class Sample(NamedTuple):
    arguments: list[str]  # of the step, without --out and --record
    config: Config
    supernet: Path
    search: Path
    retrain: Path


def make_sample(root: Path, data: TinyData, steps: int = 25, population: int = 12, generations: int = 4) -> Sample:
    """Folders of supernet, search and retrain below `root`; `steps` of training for each set of weights."""
    space = load_space("fashion-mnist")
    text = {
        "name": "sample", "seed": 7, "dataset": data.card.name, "threads": 1, "space": space.model_dump(mode="json"),
        "evaluate_subnet": {"batch_size": 64, "mistakes": 24},
    }  # fmt: skip
    folders = {name: root / name for name in ("supernet", "search", "retrain")}
    chosen = write_search(folders["search"], space, population, generations)
    write_models(folders["supernet"], folders["retrain"], space, chosen, data, steps)
    paths = {"data": data.data, "card": data.card_path, "test-split": data.test, **folders}
    arguments = [
        "--config",
        json.dumps(text),
        *(part for name, path in paths.items() for part in (f"--{name}", str(path))),
    ]
    return Sample(arguments, load_config(json.dumps(text), steps=["evaluate_subnet"]), **folders)


def write_search(
    folder: Path, space: SearchSpace, population: int, generations: int, max_params: int = 700_000,
    latencies: LatencyTable | None = None, objectives: Sequence[str] = (),
) -> SubnetSpec:  # fmt: skip
    """A real search over invented scores: larger is better, with noise. Returns the chosen subnet.

    `objectives`: of NSGA-II, which stops no candidate early; empty for evolution.
    """
    rng = Random(1)

    def score(candidate: Candidate) -> float:
        return 76 + 7 * (1 - math.exp(-candidate.params / (max_params / 2.8))) + rng.gauss(0, 0.35)

    limits = Limits(max_params_m=max_params / 1e6)
    settings = EvolutionSettings(
        population=population, generations=generations, parents=6, mutations=population // 2, crossovers=population // 3
    )
    if objectives:
        score_named = next(name for name in objectives if name in ("accuracy", "loss"))
        changes = {"method": "front", "objective": score_named, "objectives": tuple(objectives)}
        settings = settings.model_copy(update=changes)
    evolution = make_search(space, limits, settings, Random(2), latencies)
    table, ends = [], []
    while candidates := evolution.ask():
        scores = [score(candidate) for candidate in candidates]
        evolution.tell([_outcome(*pair, stopped=False) for pair in zip(candidates, scores, strict=True)])
        table += list(zip(candidates, scores, strict=True))
        ends.append(len(table))
    baseline = [
        (replace(candidate, id=candidate.id + len(table)), score(candidate))
        for candidate in random_baseline(space, limits, len(table), 10_000, Random(3), latencies)
    ]
    best = evolution.best(1)[0]
    progress = [
        {
            "generation": generation,
            "scored": end,
            "images_scored": 3000 * end,
            "evolution_best_top1_percent": max(value for _, value in table[:end]),
            "random_best_top1_percent": max(value for _, value in baseline[:end]),
        }
        for generation, end in enumerate(ends)
    ]
    bar = sorted(value for _, value in table)[len(table) // 4]  # the worst quarter was stopped early
    scored = [_outcome(candidate, value, value < bar and not objectives) for candidate, value in table + baseline]
    rows = [one.to_row() for one in scored]
    write_table(folder / "candidates.csv", (*COLUMNS, LATENCY) if latencies else COLUMNS, rows)
    if latencies:
        write_json(folder / FILE, latencies.model_dump(mode="json"))
    write_table(folder / "progress.csv", PROGRESS, progress)
    spec = best.candidate.spec
    chosen = {"name": "sample-chosen", "space": space.name, "source": "search_subnet, seed 7", "subnet": spec.to_dict()}
    write_text(folder / "chosen.yaml", yaml.safe_dump(chosen, sort_keys=False))
    metrics = {
        "chosen_top1_percent": best.top1_percent,
        "chosen_is_random": 0.0,
        "evolution_best_top1_percent": best.top1_percent,
        "random_best_top1_percent": max(value for _, value in baseline),
        "evolution_minus_random_percent": best.top1_percent - max(value for _, value in baseline),
        "evolution_minus_random_low_percent": -1.0,
        "evolution_minus_random_high_percent": 1.0,
    }
    if objectives:
        metrics["front_candidates"] = len(front_of(scored, objectives))
        write_json(folder / "provenance.json", {"config": {"search_subnet": settings.model_dump(mode="json")}})
    write_json(folder / "metrics.json", metrics)
    return spec


def write_models(
    supernet_folder: Path, retrain: Path, space: SearchSpace, chosen: SubnetSpec, data: TinyData, steps: int
) -> None:
    images = load_images(data.train, data.data, data.card)
    pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
    preprocessing = Preprocessing(mean=data.card.mean, std=data.card.std, classes=data.card.classes)
    torch.manual_seed(0)
    supernet, specs = Supernet(space), Random(4)

    def train(
        forward: Callable[[Tensor], Tensor], parameters: Iterable[Tensor], evaluate: dict[str, Any]
    ) -> list[dict[str, Any]]:
        optimiser = torch.optim.AdamW(parameters, lr=2e-3)
        rows = []
        for step in range(1, steps + 1):
            index = torch.randint(len(labels), (64,))
            batch = normalise(pixels[index], data.card.mean, data.card.std)
            loss = torch.nn.functional.cross_entropy(forward(batch), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rows.append(
                {"step": step, "epoch": 64 * step / len(labels), "learning_rate": 2e-3, "train_loss": loss.item()}
            )
            if step % (steps // 5) == 0:
                whole = normalise(pixels[:200], data.card.mean, data.card.std)
                with torch.inference_mode():
                    right = {
                        name: f(whole).argmax(1).eq(labels[:200]).float().mean().item() for name, f in evaluate.items()
                    }
                rows[-1] |= {f"{name}_top1_percent": 100 * value for name, value in right.items()}
        return rows

    extremes = {"smallest": space.smallest, "middle": space.middle, "largest": space.largest}
    sizes = {name: partial(supernet, spec=spec) for name, spec in extremes.items()}
    history = train(lambda x: supernet(x, space.sample(specs)), supernet.parameters(), sizes)
    save_supernet(
        supernet_folder, supernet.state_dict(), None,
        SupernetCard(space=space, preprocessing=preprocessing, provenance=PROVENANCE | {"step": "train_supernet"}),
    )  # fmt: skip
    write_table(supernet_folder / "history.csv", SUPERNET_HISTORY, history)
    models = {
        "inherited": supernet.extract(chosen),
        "model": supernet.extract(chosen),
        "scratch": Supernet(space).extract(chosen),
    }
    for name, table in (("model", "history.csv"), ("scratch", "scratch_history.csv")):
        write_table(
            retrain / table, RETRAIN_HISTORY, train(models[name], models[name].parameters(), {"search": models[name]})
        )
    for name, model in models.items():
        provenance = PROVENANCE | {"step": "retrain_subnet", "weights": {"model": "finetune"}.get(name, name)}
        save_subnet(
            retrain / name, model.eval(),
            SubnetCard(space=space, preprocessing=preprocessing, provenance=provenance, subnet=chosen),
        )  # fmt: skip


def _outcome(candidate: Candidate, top1_percent: float, stopped: bool) -> ScoredCandidate:
    return ScoredCandidate(
        candidate, top1_percent, None if stopped else 2 - top1_percent / 60, 500 if stopped else 3000
    )


def read_search(folder: Path, chosen: SubnetSpec, images: int | None = None) -> Search:
    """A search without budgets. `chosen`: the subnet of its chosen.yaml."""
    return read_searches(folder, {"": chosen}, images)[""]

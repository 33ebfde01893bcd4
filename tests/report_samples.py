"""Reports of realistic size from invented results: hundreds of candidates, real photographs, few or many classes."""

import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from evaluation_sample import read_search, write_search
from latencies import table_of
from photographs import CLASSES as PHOTOGRAPHS
from photographs import sample_photograph
from PIL import Image
from run_steps import SECTIONS

from autoformer.evaluation import confusion_matrix, paired_difference, score
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.latency import CheckedSubnet, LatencyTable
from autoformer.named import NamedSubnet, load_space
from components.evaluate_subnet.measure import Evaluation, Measured, worst_mistakes
from components.evaluate_subnet.report import render
from components.evaluate_subnet.results import Results
from runtime.common.budgets import budget_params, label_of

GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
KINDS = ("greater spotted", "lesser black-backed", "long-tailed", "common", "northern")
BIRDS = ("woodpecker", "gull", "duck", "kingfisher", "wheatear")


class Sample(NamedTuple):
    """Invented results; with `budgets`, in millions, of a run with several."""

    space: str
    max_params: int
    classes: tuple[str, ...]
    population: int  # twice as many candidates a generation, with the baseline
    generations: int
    timed: bool = False  # with a table of latencies
    budgets: tuple[float, ...] = ()
    objectives: tuple[str, ...] = ()  # of NSGA-II


SAMPLES = {
    "ten": Sample("fashion-mnist", 700_000, GARMENTS, 20, 6),  # 280 candidates
    "budgets": Sample("fashion-mnist", 700_000, GARMENTS, 20, 6, budgets=(0.25, 0.26, 0.45, 0.7)),
    "front": Sample("fashion-mnist", 700_000, GARMENTS, 20, 6, objectives=("loss", "params_m")),
    "fronts": Sample(
        "photos-64", 1_500_000, GARMENTS, 20, 6, timed=True, objectives=("accuracy", "macs_g", "latency_ms")
    ),
    "two": Sample("photos-64", 1_500_000, ("cat", "no cat"), 20, 6),
    "hundred": Sample(
        "photos-64",
        1_500_000,
        tuple(f"{kind} {bird}, plumage {n}" for kind in KINDS for bird in BIRDS for n in range(4)),
        40,
        7,
        timed=True,
    ),
}
CONFIG: dict[str, Any] = {"seed": 3, "name": "sample", "evaluate_subnet": {"batch_size": 256, "mistakes": 24}}


def make_report(name: str, folder: Path) -> Path:
    """Write report.html of a sample into a folder of its own, and return it."""
    sample = SAMPLES[name]
    results, evaluation = invent(sample, folder / name)
    path = folder / name / "report.html"
    budgets = {label_of(budget): within(results, evaluation, budget) for budget in sample.budgets}
    if budgets:
        results, evaluation, _ = [*budgets.values()][-1]
    path.write_text(render(results, evaluation, CONFIG, budgets), encoding="utf-8")
    return path


def within(results: Results, evaluation: Evaluation, budget: float) -> Measured:
    """The same results of another subnet: the best candidate within a budget, which is a little worse."""
    candidates = results.search.candidates
    fits = [i for i, one in enumerate(candidates) if one.complete and one.candidate.params <= budget_params(budget)]
    chosen = max(fits, key=lambda index: candidates[index].top1_percent)
    spec = candidates[chosen].candidate.spec
    subnet = NamedSubnet(name="sample", space=results.space.name, source="a test", subnet=spec)
    rng = np.random.default_rng(candidates[chosen].candidate.params)
    predicted = np.where(rng.random(len(evaluation.actual)) < 0.04 / budget, 0, evaluation.predicted)
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted), len(results.card.classes)) * 4.0
    scores = evaluation.scores | {"retrained": score(logits, torch.from_numpy(evaluation.actual))}
    figures = {
        "params": candidates[chosen].candidate.params, "macs": candidates[chosen].candidate.macs,
        "inherited_test_top1_percent": scores["inherited"].top1_percent,
        "scratch_test_top1_percent": scores["scratch"].top1_percent,
    }  # fmt: skip
    searched = {"inherited_top1_percent": candidates[chosen].top1_percent, "retrained_top1_percent": 90.0}
    return Measured(
        results._replace(subnet=subnet, search=results.search._replace(chosen=chosen), retrain_metrics=searched),
        evaluation._replace(predicted=predicted, scores=scores),
        figures,
    )


def invent(sample: Sample, folder: Path) -> tuple[Results, Evaluation]:
    space = load_space(sample.space).model_copy(update={"num_classes": len(sample.classes)})
    latencies = table_of(space) if sample.timed else None
    if latencies:
        latencies = latencies.model_copy(update={"check": tuple(checked(latencies, 30))})
    write_search(folder, space, sample.population, sample.generations, sample.max_params, latencies, sample.objectives)
    subnet = NamedSubnet.from_yaml(folder / "chosen.yaml")
    count, size, channels = len(sample.classes), space.image_size, space.in_channels
    images = 30 * count if count > 2 else 600
    hashes = {split: f"{index}" * 64 for index, split in enumerate(("train", "search", "test"))}
    card = DatasetCard(
        name="birds" if count == 100 else "Fashion-MNIST" if count == 10 else "my-photos", classes=sample.classes,
        image_size=size, channels=channels, encoding="raw", mean=(0.3,) * channels, std=(0.3,) * channels,
        counts={"train": 20 * images, "search": images, "test": images}, licence="not stated",
        source="/home/somebody/pictures/a folder of photographs/2026", archives={}, split_hashes=hashes,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(images) % count
    logits = torch.randn(images, count, generator=generator)
    logits[torch.arange(images), labels] += 4.0 if count > 2 else 2.2
    logits[labels == 1, 0] += 1.2  # one pair that is confused more often
    pixels = _photographs(images, size) if channels == 3 else _garments(images, size)
    test = DecodedSplit(pixels, labels.numpy(), [""] * images)
    return _results(card, space, subnet, folder), _evaluation(logits, labels, test)


def checked(table: LatencyTable, count: int) -> Iterator[CheckedSubnet]:
    """Measured latencies of random subnets, some percent off the predicted ones."""
    rng = Random(0)
    for _ in range(count):
        spec = table.space.sample(rng)
        predicted = table.predict(spec)
        yield CheckedSubnet(subnet=spec, predicted_ms=predicted, measured_ms=predicted * rng.gauss(1.02, 0.06))


def _results(card: DatasetCard, space: Any, subnet: NamedSubnet, folder: Path) -> Results:
    epochs = [index / 10 for index in range(1, 201)]

    def rising(to: float, speed: float) -> list[tuple[float, float]]:
        return [(epoch, to * (1 - math.exp(-speed * epoch))) for epoch in epochs[9::10]]

    loss = [(epoch, 0.6 + 1.8 * math.exp(-epoch / 4) + 0.05 * math.sin(37 * epoch)) for epoch in epochs]
    return Results(
        card=card, space=space, subnet=subnet, mode="finetune", models={},
        search=read_search(folder, subnet.subnet, 3000),
        supernet_curves={
            "train_loss": loss, "smallest_top1_percent": rising(79, 0.5), "middle_top1_percent": rising(83, 0.4),
            "largest_top1_percent": rising(84, 0.3),
        },
        retrain_curves={"train_loss": loss, "search_top1_percent": rising(88, 0.9)},
        scratch_curves={"train_loss": loss, "search_top1_percent": rising(86, 0.3)},
        provenance={
            step: {"seed": 3, "code": "0123456789abcdef", "inputs": {"card": "c" * 64}}
            | {"config": {"seed": 3, step: SECTIONS[step]}}
            for step in ("train_supernet", "retrain_subnet")
        },
    )  # fmt: skip


def _evaluation(logits: torch.Tensor, labels: torch.Tensor, images: DecodedSplit) -> Evaluation:
    classes = logits.shape[1]
    worse = logits + 0.8 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    right = {name: (values.argmax(1) == labels).numpy() for name, values in (("best", logits), ("worse", worse))}
    predicted = logits.argmax(1).numpy()
    return Evaluation(
        scores={"retrained": score(logits, labels), "inherited": score(worse, labels), "scratch": score(worse, labels)},
        weights={"retrained": "a", "inherited": "b", "scratch": "c"},
        differences={
            "inherited": paired_difference(right["best"], right["worse"]),
            "scratch": paired_difference(right["best"], right["worse"]),
        },
        actual=images.labels,
        predicted=predicted,
        confusion=confusion_matrix(images.labels, predicted, classes),
        mistakes=worst_mistakes(logits, images.labels, images.pixels.__getitem__, 24),
    )


def _photographs(count: int, size: int) -> np.ndarray:
    """Parts of real photographs, uint8 (n, 3, S, S)."""
    rng = np.random.default_rng(0)
    pictures = [np.asarray(sample_photograph(name)) for name in PHOTOGRAPHS]
    found = []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        side = int(rng.uniform(0.4, 0.9) * min(picture.shape[:2]))
        top, left = (int(rng.integers(length - side)) for length in picture.shape[:2])
        part = Image.fromarray(picture[top : top + side, left : left + side])
        found.append(np.asarray(part.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1))
    return np.stack(found)


def _garments(count: int, size: int) -> np.ndarray:
    """Grey shapes with a shade, uint8 (n, 1, S, S)."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    rng = np.random.default_rng(0)
    drawn = rng.uniform(0.6, 3, (count, 3)) * (1, 1, 0.15)
    shapes = [np.where(np.abs(x) ** p + np.abs(y) ** q < r, 200 + 100 * y, 0) for p, q, r in drawn]
    return np.stack(shapes).clip(0, 255).astype(np.uint8)[:, None]

"""Read and check the results of the earlier steps. Torch-free, so bad input is refused at once."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from autoformer.candidates import COLUMNS, LATENCY, ScoredCandidate
from autoformer.cards import read_subnet_card, read_supernet_card
from autoformer.errors import AutoFormerError, quantity
from autoformer.images.archives import EncodedSplit
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.latency import LatencyTable, table_of_search
from autoformer.named import NamedSubnet
from autoformer.reading import as_kind, read_json_as
from autoformer.search import EvolutionSettings
from autoformer.space import SearchSpace, SubnetSpec
from runtime.common.budgets import folder_of, metrics_of, read_chosen
from runtime.common.config import Config
from runtime.common.console import existing
from runtime.common.records import Provenance, read_metrics
from runtime.common.search_names import method_of
from runtime.common.tables import read_table
from runtime.steps.inputs import read_images_to_evaluate

Model = Literal["retrained", "inherited", "finetuned", "scratch"]
MODEL_FOLDERS: dict[Model, str] = {
    "retrained": "model",
    "inherited": "inherited",
    "finetuned": "finetuned",  # where the mode `best` has kept other weights
    "scratch": "scratch",
}
_OPTIONAL: tuple[Model, ...] = ("finetuned", "scratch")
SUPERNET_CURVES = ("smallest_top1_percent", "middle_top1_percent", "largest_top1_percent")
PROGRESS_CURVES = ("evolution_best_top1_percent", "random_best_top1_percent")
Point = tuple[float, float]


class Search(NamedTuple):
    candidates: list[ScoredCandidate]  # evolution first; with several budgets each subnet once
    chosen: int  # index in candidates
    progress: dict[str, list[Point]]  # column of progress.csv -> (candidates scored, best top-1 so far)
    metrics: dict[str, float]
    images: int | None  # search images of a complete score; None if unknown
    table: LatencyTable | None = None  # the latency table of the search
    objectives: tuple[str, ...] = ()  # of method front; empty for evolution
    images_seen: Mapping[SubnetSpec, int] | None = None  # images that scored each subnet; None if not recorded

    @property
    def method(self) -> str:
        return method_of(self.metrics)


class Results(NamedTuple):
    """The inputs of one subnet's evaluation, except weights and images."""

    card: DatasetCard
    space: SearchSpace
    subnet: NamedSubnet
    mode: str  # of the retraining: "scratch", "finetune" or "inherited"
    models: dict[Model, Path]
    search: Search
    supernet_curves: dict[str, list[Point]]  # "train_loss" and SUPERNET_CURVES -> (epoch, value)
    retrain_curves: dict[str, list[Point]]  # "train_loss" and "search_top1_percent" -> (epoch, value)
    scratch_curves: dict[str, list[Point]]  # the same for the subnet trained from scratch; empty without one
    provenance: dict[str, Any]  # "train_supernet" and "retrain_subnet" -> provenance
    retrain_metrics: Mapping[str, float] = MappingProxyType({})  # of one of several budgets


def read_all(
    arguments: argparse.Namespace, config: Config, decoded_mb: int
) -> tuple[dict[str, Results], DecodedSplit | EncodedSplit]:
    """Read and check every input: the results of each budget by its label, smallest first, and the test images.

    Args:
        decoded_mb: memory for decoded test images; a larger split is decoded during the evaluation.

    Raises:
        AutoFormerError: one line with the file and the remedy.
    """
    card, images = read_images_to_evaluate(arguments, config, "test", decoded_mb)
    for folder, step in (("supernet", "train_supernet"), ("search", "search_subnet"), ("retrain", "retrain_subnet")):
        existing(getattr(arguments, folder), step)
    chosen = read_chosen(arguments.search)
    supernet = read_supernet_card(arguments.supernet)
    supernet_curves = _curves(arguments.supernet / "history.csv", "epoch", ("train_loss", *SUPERNET_CURVES))
    specs = {label: named.subnet for label, named in chosen.items()}
    searches = read_searches(arguments.search, specs, card.counts.get("search"))
    results = {}
    for label, subnet in chosen.items():
        retrain = folder_of(arguments.retrain, label)
        models = _models(existing(retrain, "retrain_subnet"))
        provenances = {name: _check_model(file, card, config.space, subnet.subnet) for name, file in models.items()}
        results[label] = Results(
            card=card,
            space=config.space,
            subnet=subnet,
            mode=str(provenances["retrained"].get("weights", "unknown")),
            models=models,
            search=searches[label],
            supernet_curves=supernet_curves,
            retrain_curves=_retrain_curves(retrain / "history.csv"),
            scratch_curves=_retrain_curves(retrain / "scratch_history.csv"),
            provenance={"train_supernet": supernet.provenance, "retrain_subnet": provenances["retrained"]},
            retrain_metrics=read_metrics(retrain / "metrics.json", "inherited_top1_percent") if label else {},
        )
    return results, images


def _models(retrain: Path) -> dict[Model, Path]:
    folders = {model: retrain / folder for model, folder in MODEL_FOLDERS.items()}
    models = {model: folder for model, folder in folders.items() if model not in _OPTIONAL or folder.exists()}
    for folder in models.values():
        existing(folder / "model.safetensors", "retrain_subnet")
    return models


def read_searches(folder: Path, chosen: Mapping[str, SubnetSpec], images: int | None = None) -> dict[str, Search]:
    """Read the tables of a search folder; with several budgets the candidates are those of all.

    Args:
        chosen: label of a budget -> its subnet.
        images: size of the search split; the search's configuration may use fewer.

    Raises:
        AutoFormerError: a table is damaged or does not contain a chosen subnet.
    """
    table = existing(folder / "candidates.csv", "search_subnet")
    latencies = table_of_search(folder)
    candidates = _scored(table, (*COLUMNS, LATENCY) if latencies else COLUMNS)
    metrics = read_metrics(existing(folder / "metrics.json", "search_subnet"))
    images_seen = _images_seen(candidates, folder / "finalists.csv", metrics)
    if "" not in chosen:
        candidates = _each_once(candidates)
    places = {label: _place(candidates, spec, table) for label, spec in chosen.items()}
    provenance, objectives = folder / "provenance.json", tuple[str, ...]()
    if provenance.exists():
        section = read_json_as(Provenance, provenance).section("search_subnet")
        images = as_kind(int | None, section.get("images"), f"{provenance}, images") or images  # type: ignore[arg-type]
        objectives = _objectives(section, provenance)
    if "latency_ms" in objectives and any(outcome.candidate.latency_ms is None for outcome in candidates):
        raise AutoFormerError(f"{table}: no column {LATENCY}, an objective of the search; run search_subnet again")
    progress = existing(folder / "progress.csv", "search_subnet")
    return {
        label: Search(
            candidates=candidates,
            chosen=place,
            progress=_curves(progress, "scored", PROGRESS_CURVES, {"budget": label} if label else {}),
            metrics=metrics_of(metrics, label),
            images=images,
            table=latencies,
            objectives=objectives,
            images_seen=images_seen,
        )
        for label, place in places.items()
    }


def _scored(table: Path, columns: Sequence[str]) -> list[ScoredCandidate]:
    candidates = []
    for row in _rows(table, columns):
        try:
            candidates.append(ScoredCandidate.from_row(row))
        except ValueError as error:
            raise AutoFormerError(f"{table}: candidate {row['id']}: {error}; run search_subnet again") from None
    return candidates


def _images_seen(
    candidates: Sequence[ScoredCandidate], finalists: Path, metrics: Mapping[str, float]
) -> dict[SubnetSpec, int] | None:
    """Images that scored each subnet: the most of its rows, since scores are stored and no image is scored twice.

    Two races of a subnet that both stop may differ in some images; these are not recorded. Scores of an earlier search
    (a warm start) cost nothing, but only the seeds of generation 0 are marked: None if others were drawn again. None
    without finalists, too.
    """
    seen: dict[SubnetSpec, int] = {}

    def add(rows: Sequence[ScoredCandidate]) -> None:
        for one in rows:
            seen[one.candidate.spec] = max(seen.get(one.candidate.spec, 0), one.images)

    add([one for one in candidates if one.candidate.origin != "earlier"])
    counted = sum(metrics.get(name, 0) for name in ("images_scored", "random_images_scored"))
    if any(one.candidate.origin == "earlier" for one in candidates) and sum(seen.values()) != counted:
        return None
    if not finalists.exists():
        return None
    add(_scored(finalists, COLUMNS))
    return seen


def _place(candidates: Sequence[ScoredCandidate], chosen: SubnetSpec, table: Path) -> int:
    """The index of the chosen subnet; if both searches drew it, of evolution's candidate."""
    same = [index for index, outcome in enumerate(candidates) if outcome.candidate.spec == chosen]
    if not same:
        raise AutoFormerError(f"{table}: does not hold the subnet of chosen.yaml; run search_subnet again")
    return min(same, key=lambda index: candidates[index].is_baseline)


def _objectives(section: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """The objectives of method front, from the configuration of a search; empty for evolution."""
    keys = {key: section[key] for key in ("method", "objective", "objectives") if key in section}
    settings = as_kind(EvolutionSettings, keys, f"{file}, search_subnet")
    return settings.front_objectives if settings.method == "front" else ()


def _each_once(candidates: Sequence[ScoredCandidate]) -> list[ScoredCandidate]:
    """One candidate per subnet: the first complete one, else the first."""
    by_spec: dict[SubnetSpec, ScoredCandidate] = {}
    for outcome in candidates:
        spec = outcome.candidate.spec
        if spec not in by_spec or (outcome.complete and not by_spec[spec].complete):
            by_spec[spec] = outcome
    return [*by_spec.values()]


def _check_model(folder: Path, card: DatasetCard, space: SearchSpace, spec: SubnetSpec) -> dict[str, Any]:
    """The provenance of a model. Raises `AutoFormerError` for another data set, space or subnet."""
    file = folder / "model.json"
    existing(file, "retrain_subnet")
    model = read_subnet_card(folder)
    classes = model.preprocessing.classes
    if classes != card.classes:
        raise AutoFormerError(
            f"{file}: trained for {_class_list(classes)}, but the data set's card has {_class_list(card.classes)}; "
            "run retrain_subnet on this data set"
        )
    if model.space != space:
        raise AutoFormerError(
            f"{file}: of the space '{model.space.name}' as it was then, not of the configured '{space.name}'; "
            "run retrain_subnet again"
        )
    if model.subnet != spec:
        raise AutoFormerError(f"{file}: not the subnet of the search's chosen.yaml; run retrain_subnet again")
    return model.provenance


def _class_list(classes: Sequence[str]) -> str:
    return f"{quantity(len(classes), 'class')} ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})"


def _retrain_curves(file: Path) -> dict[str, list[Point]]:
    """The curves of a retraining; empty if nothing was trained."""
    return _curves(file, "epoch", ("train_loss", "search_top1_percent")) if file.exists() else {}


def _curves(
    file: Path, x: str, columns: Sequence[str], where: Mapping[str, str] | None = None
) -> dict[str, list[Point]]:
    """Column -> (x, value) of each row with a value; columns without values are left out.

    Args:
        where: column -> its value in the rows to read; None for all rows.
    """
    where = where or {}
    rows = [row for row in _rows(file, (x, *columns, *where)) if all(row[key] == value for key, value in where.items())]
    try:
        curves = {column: [(float(row[x]), float(row[column])) for row in rows if row[column]] for column in columns}
    except ValueError as error:
        raise AutoFormerError(f"{file}: {error}; run the step that makes it again") from None
    return {column: points for column, points in curves.items() if points}


def _rows(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    return read_table(existing(file, "an earlier step"), columns)

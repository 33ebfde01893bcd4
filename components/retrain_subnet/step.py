"""Retrain the chosen subnet: from scratch, fine-tuned from its inherited weights, or unchanged with these.

With several budgets, the subnet of each is retrained in turn, and a subnet of several budgets once.

In the mode `best` it is fine-tuned, and keeps the weights that are most accurate on the search split: inherited,
fine-tuned, or those of the reference from scratch. That reference sees as many images as both trainings: the supernet's
recipe for the epochs of both.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from autoformer.cards import Preprocessing, SubnetCard, SupernetCard
from autoformer.errors import AutoFormerError
from autoformer.files import replacing, write_json
from autoformer.images.archives import EncodedSplit
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.reading import read_json_as
from autoformer.recipe import Recipe
from autoformer.space import SubnetSpec
from runtime.common.budgets import folder_of, merge_metrics, prefix_of, read_chosen, step_title
from runtime.common.config import Config
from runtime.common.processes import set_threads
from runtime.common.records import Provenance
from runtime.common.sections import RetrainSubnet, TrainSupernet
from runtime.common.tables import write_table
from runtime.steps import inputs
from runtime.steps.command import run_step
from runtime.steps.compiler import require_compiler
from runtime.steps.rendezvous import process_group
from runtime.steps.step_context import StepContext, open_step

if TYPE_CHECKING:
    from runtime.steps.training_loop import TrainingResult

STEP = "retrain_subnet"
Weights = Literal["ema", "raw"]
HISTORY = ("step", "epoch", "learning_rate", "train_loss", "search_top1_percent")
TRAINED_ON = "search_split_trained_on"  # metric that exists if the search split was trained on
_METRICS = {"inherited": "inherited", "model": "retrained", "scratch": "scratch"}  # model -> prefix of its metric
_BEST = {
    "inherited": "inherited",
    "model": "finetune",
    "scratch": "scratch",
}  # name of a model -> mode, first of equals


def parser() -> argparse.ArgumentParser:
    splits = ["train", "train_full", "search"]
    return inputs.input_parser(STEP, "Retrain the subnet that the search has chosen.", splits, "supernet", "search")


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv, shared=True)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(RetrainSubnet)
    if section.compile:
        require_compiler()
    with process_group(config) as world:
        card, (search_images,) = inputs.read_data(arguments, config, "search")
        train_images = inputs.read_train_images(arguments, config, card, section, STEP, section.split)
        chosen = read_chosen(arguments.search, config.space)
        weights = _scored_weights(arguments.search)
        supernet = inputs.read_supernet(arguments.supernet, config, weights)
        reference = _reference(section, supernet, arguments.supernet)
        keys = ("card", f"{section.split}_split", "search_split", "supernet", "search")
        with open_step(STEP, arguments, config, *keys, world=world, has_checkpoints=True) as opened:
            *_, largest = chosen.values()
            opened.tracked.subnet(largest.subnet)
            set_threads(config.threads)
            retrained: dict[SubnetSpec, _Retrained] = {}
            for label, named in chosen.items():
                if named.subnet in retrained:
                    if world.is_rank_zero:
                        print(
                            f"{step_title(STEP, label)}: the subnet of a smaller budget, which is retrained once",
                            flush=True,
                        )
                    continue
                retraining = _Retraining(
                    opened, card, train_images, search_images, named.subnet, label, weights, reference
                )
                retrained[named.subnet] = retraining.run()
            if world.is_rank_zero:
                by_label = {label: retrained[named.subnet] for label, named in chosen.items()}
                _write(opened, by_label, supernet.preprocessing)
                opened.tracked.metrics(merge_metrics({label: result.metrics for label, result in by_label.items()}))
                for label, result in by_label.items():
                    print(f"{step_title(STEP, label)}: {_in_words(result.metrics)}", flush=True)


def _scored_weights(search: Path) -> Weights:
    """The supernet weights that the search used; the chosen subnet inherits the same."""
    file = search / "provenance.json"
    weights = read_json_as(Provenance, file).section("search_subnet").get("weights")
    if weights not in get_args(Weights):
        raise AutoFormerError(f"{file}: not what search_subnet writes; run search_subnet again")
    return cast(Weights, weights)


def _reference(section: RetrainSubnet, supernet: SupernetCard, folder: Path) -> RetrainSubnet | None:
    """The configuration of the reference from scratch; None without one."""
    if not section.scratch_reference or section.mode == "scratch":
        return None
    try:
        recipe = TrainSupernet.model_validate(supernet.provenance["config"]["train_supernet"])
    except (KeyError, TypeError, ValueError):
        raise AutoFormerError(f"{folder}/supernet.json: has no recipe; run train_supernet again") from None
    epochs = recipe.epochs + (0 if section.mode == "inherited" else section.epochs)
    return section.model_copy(update={name: getattr(recipe, name) for name in Recipe.model_fields} | {"epochs": epochs})


class _Retrained(NamedTuple):
    """Name -> model of one subnet. Only rank 0 has metrics.

    Attributes:
        mode: origin of `model`: "scratch", "finetune" or "inherited".
    """

    subnet: SubnetSpec
    models: dict[str, Any]
    trained: "dict[str, TrainingResult]"
    metrics: dict[str, float]
    mode: str


@dataclass(frozen=True)
class _Retraining:
    """Of one subnet.

    Its models: `inherited`; `model`, by the mode; `scratch`, a reference where configured; `finetuned` where the mode
    `best` has kept other weights.
    """

    opened: StepContext
    card: DatasetCard
    train_images: DecodedSplit | EncodedSplit
    search_images: DecodedSplit
    subnet: SubnetSpec
    label: str  # of the budget
    weights: Weights  # supernet weights to inherit
    reference: RetrainSubnet | None  # configuration of `scratch`

    @property
    def section(self) -> RetrainSubnet:
        return self.opened.config.section(RetrainSubnet)

    def run(self) -> _Retrained:
        mode: str = self.section.mode
        models: dict[str, Any] = {"inherited": self._inherited()}
        trained: dict[str, TrainingResult] = {}
        metrics: dict[str, float] = {}
        if mode == "inherited":
            models["model"] = models["inherited"]
        else:
            start = self._random(self.section) if mode == "scratch" else self._inherited()
            models["model"], trained["model"] = self._train(start, "model", self.section)
        if self.reference is not None:
            start = self._random(self.reference)
            models["scratch"], trained["scratch"] = self._train(start, "scratch", self.reference)
        if self.opened.world.is_rank_zero:
            metrics = self._metrics(models, trained)
            if mode == "best":
                mode = _keep_the_best(models, metrics)
        return _Retrained(self.subnet, models, trained, metrics, mode)

    def _inherited(self) -> Any:
        from autoformer.checkpoint import load_supernet

        supernet = load_supernet(self.opened.arguments.supernet, self.weights, self.section.drop_path).model
        return supernet.extract(self.subnet)

    def _random(self, section: RetrainSubnet) -> Any:
        import torch

        from autoformer.layers import initialise
        from autoformer.supernet import Supernet

        torch.manual_seed(self.opened.config.seed + 1)
        model = Supernet(self.opened.config.space, section.drop_path).extract(self.subnet)
        initialise(model, section.init_gain)
        return model

    def _train(self, model: Any, name: str, section: RetrainSubnet) -> tuple[Any, "TrainingResult"]:
        """Train a model by the recipe of a section; return it with averaged weights."""
        from autoformer.devices import find_device
        from autoformer.sampling import whole_model
        from runtime.steps.training_loop import Row, SearchSplitAccuracy, TrainingNames, train
        from runtime.steps.training_setup import Training, make_trainer

        config, opened = self.opened.config, self.opened
        own_name = f"{self.label}-{name}" if self.label else name
        if section.compile:
            model.compile()  # compiles only `forward`: weights keep their names, and copies are not compiled
        training = Training(
            step=STEP,
            section=section,
            space=config.space,
            model=model,
            subnet=self.subnet,
            sampler=whole_model,
            images=self.train_images,
            card=self.card,
            seed=config.seed + 1,  # another order of the images than in the supernet's training
            device=find_device(config.device),
            accumulation_file=opened.workspace.file(f"{own_name}-found.json"),
            world=opened.world,
        )
        trainer = make_trainer(training)
        accuracy = SearchSplitAccuracy(self.search_images, self.card, training.device, section.score_images)

        def score(averaged: Any) -> Row:
            if section.split == "train_full":  # includes the search split
                return {}
            return {"search_top1_percent": accuracy.top1_percent(averaged.eval())}

        title = f"{step_title(STEP, self.label)} ({section.mode if name == 'model' else name})"
        names = TrainingNames(own_name, title, prefix_of(self.label) + ("" if name == "model" else f"{name}/"))
        return trainer.averaged, train(opened, training, trainer, score, names)

    def _metrics(self, models: Mapping[str, Any], trained: Mapping[str, "TrainingResult"]) -> dict[str, float]:
        """Accuracy on the whole search split, of each model that was not trained on it."""
        from autoformer.devices import find_device
        from runtime.steps.training_loop import SearchSplitAccuracy

        device = find_device(self.opened.config.device)
        accuracy = SearchSplitAccuracy(self.search_images, self.card, device)
        trained_on = self.section.split == "train_full" and bool(trained)
        metrics: dict[str, float] = {
            f"{_METRICS[name]}_top1_percent": accuracy.top1_percent(model.to(device).eval())
            for name, model in models.items()
            if not (trained_on and name in trained)
        }
        if self.reference is not None:
            metrics["scratch_epochs"] = self.reference.epochs
        return metrics | ({TRAINED_ON: True} if trained_on else {})


def _keep_the_best(models: dict[str, Any], metrics: dict[str, float]) -> str:
    """Make the most accurate model on the search split the `model`; return its mode. Of equals the first of _BEST."""
    scores = {name: metrics[f"{_METRICS[name]}_top1_percent"] for name in _BEST if name in models}
    best = max(scores, key=scores.__getitem__)
    metrics["finetuned_top1_percent"], metrics["retrained_top1_percent"] = scores["model"], scores[best]
    if best != "model":
        models["finetuned"], models["model"] = models["model"], models[best]
    return _BEST[best]


def _write(opened: StepContext, retrained: Mapping[str, _Retrained], preprocessing: Preprocessing) -> None:
    """Write the step's folder, whole or not at all. `retrained`: by label, smallest budget first."""
    *_, largest = retrained
    with replacing(opened.arguments.out) as folder:
        for label, result in retrained.items():
            _write_one(opened, folder_of(folder, label), result, preprocessing)
        if largest:  # also where a run without budgets has its files
            _write_histories(folder, retrained[largest])
            write_json(
                folder / "metrics.json", merge_metrics({label: result.metrics for label, result in retrained.items()})
            )


def _write_one(opened: StepContext, folder: Path, result: _Retrained, preprocessing: Preprocessing) -> None:
    from autoformer.checkpoint import save_subnet

    folder.mkdir(parents=True)
    modes = {"model": result.mode, "finetuned": "finetune"}
    for name, model in result.models.items():
        provenance = opened.workspace.provenance | {"weights": modes.get(name, name)}
        if TRAINED_ON in result.metrics and name in result.trained:
            provenance[TRAINED_ON] = True
        card = SubnetCard(
            space=opened.config.space, preprocessing=preprocessing, provenance=provenance, subnet=result.subnet
        )
        save_subnet(folder / name, model, card)
    _write_histories(folder, result)
    write_json(folder / "metrics.json", result.metrics)


def _write_histories(folder: Path, result: _Retrained) -> None:
    for name, training in result.trained.items():
        prefix = "" if name == "model" else f"{name}_"
        write_table(folder / f"{prefix}history.csv", HISTORY, training.history)
        if training.rollbacks:
            write_json(folder / f"{prefix}rollbacks.json", training.rollbacks)


def _in_words(metrics: Mapping[str, float]) -> str:
    scores = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if name != TRAINED_ON)
    return scores + (f", {TRAINED_ON}: no score of what was trained" if TRAINED_ON in metrics else "")

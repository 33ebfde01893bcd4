"""Retrain the chosen subnet: from scratch, fine-tuned from what it inherited, or kept as it was inherited."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from autoformer.cards import Preprocessing
from autoformer.errors import AutoFormerError
from autoformer.files import read_json, replacing, write_json
from autoformer.images.archives import EncodedSplit
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.space import NamedSubnet, SubnetSpec
from runtime.common.config import Config, RetrainSubnet
from runtime.common.console import existing
from runtime.common.processes import set_threads
from runtime.common.tables import write_table
from runtime.steps.command import run_step, step_parser
from runtime.steps.compiler import require_compiler
from runtime.steps.inputs import (
    add_data_arguments,
    add_folder_arguments,
    add_output_arguments,
    read_data,
    read_supernet,
    read_train_images,
)
from runtime.steps.rendezvous import process_group
from runtime.steps.step_context import StepContext, open_step

STEP = "retrain_subnet"
Weights = Literal["ema", "raw"]
TRAINED_ON = "search_split_trained_on"  # said where it is so: then no accuracy on it is that of unseen images
HISTORY = ("step", "epoch", "learning_rate", "train_loss", "search_top1_percent")


def parser() -> argparse.ArgumentParser:
    result = step_parser(STEP, "Retrain the subnet that the search has chosen.")
    add_data_arguments(result, "train", "train_full", "search")
    add_folder_arguments(result, "supernet", "search")
    add_output_arguments(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv, shared=True)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(RetrainSubnet)
    if section.compile:
        require_compiler()
    with process_group(config) as world:
        card, (search_images,) = read_data(arguments, config, "search")
        train_images = read_train_images(arguments, config, card, section, STEP, section.split)
        chosen = NamedSubnet.from_yaml(existing(arguments.search, "search_subnet") / "chosen.yaml")
        chosen.check(config.space)
        weights = _scored_weights(arguments.search)
        preprocessing = read_supernet(arguments.supernet, config, weights).preprocessing
        start = Start(chosen.subnet, weights, preprocessing)
        data = ("card", f"{section.split}_split", "search_split")
        with open_step(
            STEP, arguments, config, *data, "supernet", "search", world=world, has_checkpoints=True
        ) as opened:
            opened.tracked.subnet(chosen.subnet)
            _Retraining(opened, section, card, train_images, search_images, start).run()


def _scored_weights(search: Path) -> Weights:
    """The supernet weights that the search has scored its candidates with: those that the chosen one inherits."""
    file = search / "provenance.json"
    try:
        weights: Weights = read_json(file)["config"]["search_subnet"]["weights"]
    except (KeyError, TypeError):
        raise AutoFormerError(f"{file}: not what search_subnet writes; run search_subnet again") from None
    return weights


class Start(NamedTuple):
    """What the step goes out from: the chosen subnet, and what it takes over from the supernet."""

    subnet: SubnetSpec
    weights: Weights
    preprocessing: Preprocessing


class _Retraining:
    """One run of the step: the inherited subnet, the retrained one, and the reference from scratch."""

    def __init__(
        self,
        opened: StepContext,
        section: RetrainSubnet,
        card: DatasetCard,
        train_images: DecodedSplit | EncodedSplit,
        search_images: DecodedSplit,
        start: Start,
    ) -> None:
        from autoformer.devices import find_device
        from runtime.steps.training_loop import SearchSplitAccuracy

        config = opened.config
        self.opened, self.config, self.section, self.card, self.start = opened, config, section, card, start
        self.train_images = train_images
        self.device = find_device(config.device)
        self.scorer = SearchSplitAccuracy(search_images, card, self.device)
        self.watcher = SearchSplitAccuracy(search_images, card, self.device, section.score_images)
        set_threads(config.threads)

    def run(self) -> None:
        inherited = self._inherited()
        models: dict[str, Any] = {"inherited": inherited}
        histories: dict[str, Any] = {}
        if self.section.mode == "inherited":
            models["model"] = inherited
        else:
            start = self._fresh() if self.section.mode == "scratch" else self._inherited()
            models["model"], histories["history"] = self._train(start, "model")
        if self.section.scratch_reference and self.section.mode != "scratch":
            models["scratch"], histories["scratch_history"] = self._train(self._fresh(), "scratch")
        if not self.opened.world.is_rank_zero:
            return
        trained_on = self.section.split == "train_full" and bool(histories)  # whether the search images were
        metrics: dict[str, float] = {
            f"{_METRIC[name]}_top1_percent": self._top1_percent(model)
            for name, model in models.items()
            if not (trained_on and self._is_trained(name))
        }
        if trained_on:
            metrics[TRAINED_ON] = True
        self._write(models, histories, metrics)
        self.opened.tracked.metrics(metrics)
        print(f"{STEP}: " + told(metrics), flush=True)

    def _inherited(self) -> Any:
        from autoformer.checkpoint import load_supernet

        supernet = load_supernet(self.opened.arguments.supernet, self.start.weights, self.section.drop_path).model
        return supernet.extract(self.start.subnet)

    def _fresh(self) -> Any:
        import torch

        from autoformer.layers import initialise
        from autoformer.supernet import Supernet

        torch.manual_seed(self.config.seed + 1)
        model = Supernet(self.config.space, self.section.drop_path).extract(self.start.subnet)
        initialise(model, self.section.init_gain)
        return model

    def _train(self, model: Any, name: str) -> tuple[Any, Any]:
        """Train `model` with the step's recipe; return it, averaged, and its history."""
        from autoformer.sampling import whole_model
        from runtime.steps.training_loop import Row, TrainingNames, train
        from runtime.steps.training_setup import Training, make_trainer

        if self.section.compile:
            model.compile()  # its forward alone: the names of its weights stay, and a copy of it is not compiled
        training = Training(
            step=STEP,
            section=self.section,
            space=self.config.space,
            model=model,
            subnet=self.start.subnet,
            sampler=whole_model,
            images=self.train_images,
            card=self.card,
            seed=self.config.seed + 1,  # another order of the images than the supernet has seen
            device=self.device,
            accumulation_file=self.opened.workspace.file(f"{name}-found.json"),
            world=self.opened.world,
        )
        trainer = make_trainer(training)

        def score(averaged: Any) -> Row:
            if self.section.split == "train_full":  # on images that it is trained on, which tells nothing
                return {}
            return {"search_top1_percent": self.watcher.top1_percent(averaged.eval())}

        what = f"{STEP} ({self.section.mode if name == 'model' else name})"
        names = TrainingNames(name, what, prefix="" if name == "model" else f"{name}/")
        return trainer.averaged, train(self.opened, training, trainer, score, names)

    def _is_trained(self, name: str) -> bool:
        return name == "scratch" or (name == "model" and self.section.mode != "inherited")

    def _top1_percent(self, model: Any) -> float:
        return self.scorer.top1_percent(model.to(self.device).eval())

    def _write(self, models: dict[str, Any], histories: dict[str, Any], metrics: dict[str, float]) -> None:
        from autoformer.checkpoint import SubnetCard, save_subnet

        with replacing(self.opened.arguments.out) as folder:
            folder.mkdir()
            for name, model in models.items():
                provenance = self.opened.workspace.provenance | {"weights": self._origin(name)}
                if TRAINED_ON in metrics and self._is_trained(name):
                    provenance[TRAINED_ON] = True
                card = SubnetCard(
                    space=self.config.space,
                    preprocessing=self.start.preprocessing,
                    provenance=provenance,
                    subnet=self.start.subnet,
                )
                save_subnet(folder / name, model, card)
            for name, trained in histories.items():
                write_table(folder / f"{name}.csv", HISTORY, trained.history)
                if trained.rollbacks:
                    write_json(folder / f"{name.replace('history', 'rollbacks')}.json", trained.rollbacks)
            write_json(folder / "metrics.json", metrics)

    def _origin(self, name: str) -> str:
        return self.section.mode if name == "model" else name


def told(metrics: Mapping[str, float]) -> str:
    """The accuracies on the search split, and whether the split was trained on."""
    scores = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if name != TRAINED_ON)
    return scores + (f", {TRAINED_ON}: no score of what was trained" if TRAINED_ON in metrics else "")


_METRIC = {"model": "retrained", "inherited": "inherited", "scratch": "scratch"}

"""Retrain the chosen subnet: from scratch, fine-tuned from what it inherited, or kept as it was inherited."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from autoformer.cards import Preprocessing
from autoformer.dataset import DatasetCard, Images
from autoformer.errors import AutoFormerError
from autoformer.files import read_json, replacing, write_json
from autoformer.space import NamedSubnet
from components import tracking
from components.cli import existing, run_step, step_parser
from components.config import Config, RetrainSubnet
from components.inputs import add_data_arguments, add_output_arguments, check_images, read_data, read_supernet
from components.tables import write_table
from components.workspace import Record, Workspace

STEP = "retrain_subnet"
Weights = Literal["ema", "raw"]
HISTORY = ("step", "epoch", "learning_rate", "train_loss", "search_top1_percent")


def parser() -> argparse.ArgumentParser:
    result = step_parser(STEP, "Retrain the subnet that the search has chosen.")
    add_data_arguments(result, "train", "search")
    result.add_argument("--supernet", type=Path, required=True, help="folder made by train_supernet")
    result.add_argument("--search", type=Path, required=True, help="folder made by search_subnet")
    add_output_arguments(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv)


def run(arguments: argparse.Namespace, config: Config) -> None:
    assert config.retrain_subnet is not None
    card, (train_images, search_images) = read_data(arguments, config, "train", "search")
    check_images(train_images, config.retrain_subnet, STEP)
    chosen = NamedSubnet.from_yaml(existing(arguments.search, "search_subnet") / "chosen.yaml")
    chosen.check(config.space)
    weights = _scored_weights(arguments.search)
    preprocessing = read_supernet(arguments.supernet, config, weights).preprocessing
    workspace = Workspace(
        STEP,
        config,
        {
            "card": arguments.card,
            "train": arguments.train_split,
            "search_split": arguments.search_split,
            "supernet": arguments.supernet,
            "search": arguments.search,
        },
    )
    with (
        Record(arguments.record, STEP) as record,
        tracking.step_run(STEP, config, record.values, workspace.provenance) as tracked,
    ):
        tracked.subnet(chosen.subnet)
        retraining = _Retraining(
            arguments, config, card, train_images, search_images, chosen, weights, workspace, record, tracked
        )
        retraining.run(preprocessing)
    workspace.clear()


def _scored_weights(search: Path) -> Weights:
    """The supernet weights that the search has scored its candidates with: those that the chosen one inherits."""
    file = search / "provenance.json"
    try:
        weights: Weights = read_json(file)["config"]["search_subnet"]["weights"]
    except (KeyError, TypeError):
        raise AutoFormerError(f"{file}: not what search_subnet writes; run search_subnet again") from None
    return weights


class _Retraining:
    """One run of the step: the inherited subnet, the retrained one, and the reference from scratch."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        config: Config,
        card: DatasetCard,
        train_images: Images,
        search_images: Images,
        chosen: NamedSubnet,
        weights: Weights,
        workspace: Workspace,
        record: Record,
        tracked: tracking.StepRun,
    ) -> None:
        from components.training import Scorer, set_threads

        assert config.retrain_subnet is not None
        self.arguments, self.config, self.card, self.chosen = arguments, config, card, chosen
        self.section: RetrainSubnet = config.retrain_subnet
        self.weights, self.workspace, self.record, self.tracked = weights, workspace, record, tracked
        self.train_images = train_images
        self.scorer = Scorer(search_images, card, len(search_images.labels))
        self.watcher = Scorer(search_images, card, self.section.score_images)
        set_threads(config.threads)

    def run(self, preprocessing: Preprocessing) -> None:
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
        metrics = {f"{_METRIC[name]}_top1_percent": self._top1_percent(model) for name, model in models.items()}
        self._write(models, histories, metrics, preprocessing)
        self.tracked.metrics(metrics)
        print(f"{STEP}: " + ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()), flush=True)

    def _inherited(self) -> Any:
        from autoformer.checkpoint import load_supernet

        supernet = load_supernet(self.arguments.supernet, self.weights, self.section.drop_path).model
        return supernet.extract(self.chosen.subnet)

    def _fresh(self) -> Any:
        import torch

        from autoformer.layers import initialise
        from autoformer.supernet import Supernet

        torch.manual_seed(self.config.seed + 1)
        model = Supernet(self.config.space, self.section.drop_path).extract(self.chosen.subnet)
        initialise(model, self.section.init_gain)
        return model

    def _train(self, model: Any, name: str) -> tuple[Any, Any]:
        """Train `model` with the step's recipe; return it, averaged, and its history."""
        import torch

        from autoformer.training import Trainer, subnet_forward
        from components.training import Row, train

        trainer = Trainer(
            model,
            subnet_forward,
            torch.from_numpy(self.train_images.pixels),
            torch.from_numpy(self.train_images.labels),
            self.card.mean,
            self.card.std,
            self.section.recipe(),
            self.config.seed + 1,  # another order of the images than the supernet has seen
        )

        def score(averaged: torch.nn.Module) -> Row:
            return {"search_top1_percent": self.watcher.top1_percent(averaged.eval())}

        def log(row: Row) -> None:
            self.tracked.row(row, prefix="" if name == "model" else f"{name}/")

        what = f"{STEP} ({self.section.mode if name == 'model' else name})"
        checkpoint = self.workspace.file(f"{name}.pt")
        history = train(trainer, self.section, score, checkpoint, what, log, self.record.values)
        return trainer.averaged, history

    def _top1_percent(self, model: Any) -> float:
        return self.scorer.top1_percent(model.eval())

    def _write(
        self, models: dict[str, Any], histories: dict[str, Any], metrics: dict[str, float], preprocessing: Preprocessing
    ) -> None:
        from autoformer.checkpoint import SubnetCard, save_subnet

        with replacing(self.arguments.out) as folder:
            folder.mkdir()
            for name, model in models.items():
                provenance = self.workspace.provenance | {"weights": self._origin(name)}
                card = SubnetCard(
                    space=self.config.space,
                    preprocessing=preprocessing,
                    provenance=provenance,
                    subnet=self.chosen.subnet,
                )
                save_subnet(folder / name, model, card)
            for name, rows in histories.items():
                write_table(folder / f"{name}.csv", HISTORY, rows)
            write_json(folder / "metrics.json", metrics)

    def _origin(self, name: str) -> str:
        return self.section.mode if name == "model" else name


_METRIC = {"model": "retrained", "inherited": "inherited", "scratch": "scratch"}

"""Train the supernet and score its smallest, middle and largest subnet on the way."""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from autoformer.cards import Preprocessing, SupernetCard
from autoformer.files import replacing, write_json
from autoformer.images.archives import EncodedSplit
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from runtime.common.config import Config, TrainSupernet
from runtime.common.processes import set_threads
from runtime.common.tables import write_table
from runtime.steps import inputs
from runtime.steps.command import run_step, step_parser
from runtime.steps.rendezvous import process_group
from runtime.steps.step_context import StepContext, open_step
from runtime.storage.artifacts import publish

if TYPE_CHECKING:
    from autoformer.training import Trainer
    from runtime.steps.training_loop import TrainingResult

STEP = "train_supernet"
SCORED = ("smallest", "middle", "largest")
HISTORY = ("step", "epoch", "learning_rate", "train_loss", *(f"{name}_top1_percent" for name in SCORED))


def parser() -> argparse.ArgumentParser:
    result = step_parser(STEP, "Train the weight-entangled supernet on the train split.")
    inputs.add_data_arguments(result, "train", "search")
    inputs.add_output_arguments(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv, shared=True)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(TrainSupernet)
    with process_group(config) as world:
        card, (search_images,) = inputs.read_data(arguments, config, "search")
        train_images = inputs.read_train_images(arguments, config, card, section, STEP)
        keys = ("card", "train_split", "search_split")
        with open_step(STEP, arguments, config, *keys, world=world, has_checkpoints=True) as opened:
            _train(opened, card, train_images, search_images)


def _train(
    opened: StepContext, card: DatasetCard, train_images: DecodedSplit | EncodedSplit, search_images: DecodedSplit
) -> None:
    from runtime.steps.training_loop import Row, SearchSplitAccuracy, TrainingNames, train
    from runtime.steps.training_setup import make_trainer, supernet_training

    set_threads(opened.config.threads)
    accumulation_file = opened.workspace.file("found.json")
    training = supernet_training(opened.config, train_images, card, accumulation_file, opened.world)
    trainer, space = make_trainer(training), training.space
    accuracy = SearchSplitAccuracy(search_images, card, trainer.device, training.section.score_images)

    def score(model: Any) -> Row:
        model.eval()
        forwards = {name: partial(model, spec=getattr(space, name)) for name in SCORED}
        return {f"{name}_top1_percent": accuracy.top1_percent(forward) for name, forward in forwards.items()}

    trained = train(opened, training, trainer, score, TrainingNames("checkpoint", STEP))
    if opened.world.is_rank_zero:
        _write(opened, card, trainer, trained)


def _write(opened: StepContext, card: DatasetCard, trainer: "Trainer", trained: "TrainingResult") -> None:
    from autoformer.checkpoint import save_supernet

    out, (history, rollbacks) = opened.arguments.out, trained
    preprocessing = Preprocessing(mean=card.mean, std=card.std, classes=card.classes, pixels=card.pixels)
    provenance = opened.workspace.provenance
    supernet_card = SupernetCard(space=opened.config.space, preprocessing=preprocessing, provenance=provenance)
    metrics = {key: value for key, value in history[-1].items() if key not in ("step", "epoch", "learning_rate")}
    with replacing(out) as folder:
        ema = None if trainer.ema is None else trainer.averaged.state_dict()
        save_supernet(folder, trainer.model.state_dict(), ema, supernet_card)
        write_table(folder / "history.csv", HISTORY, history)
        if rollbacks:
            write_json(folder / "rollbacks.json", rollbacks)
        write_json(folder / "metrics.json", metrics)
        publish(folder, STEP)
    opened.tracked.artifact(out / "history.csv")
    print(f"{STEP}: {trainer.total_steps} steps, " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()), flush=True)

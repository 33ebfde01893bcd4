"""Train the supernet, and score its smallest, middle and largest subnet meanwhile; or adopt an existing supernet."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from autoformer.cards import Preprocessing, SupernetCard
from autoformer.errors import quantity
from autoformer.files import replacing, write_json
from autoformer.images.archives import EncodedSplit
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.space import SearchSpace
from runtime.common.config import Config
from runtime.common.processes import set_threads
from runtime.common.sections import Adopted, TrainSupernet
from runtime.common.tables import write_table
from runtime.steps import inputs
from runtime.steps.command import run_step
from runtime.steps.rendezvous import process_group
from runtime.steps.step_context import StepContext, open_step
from runtime.storage.artifacts import publish
from runtime.storage.named_files import verified_file

if TYPE_CHECKING:
    from autoformer.supernet import Supernet
    from runtime.steps.training_loop import SearchSplitAccuracy, TrainingResult

STEP = "train_supernet"
SCORED = ("smallest", "middle", "largest")
HISTORY = ("step", "epoch", "learning_rate", "train_loss", *(f"{name}_top1_percent" for name in SCORED))


def parser() -> argparse.ArgumentParser:
    return inputs.input_parser(STEP, "Train the weight-entangled supernet on the train split.", ["train", "search"])


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv, shared=True)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(TrainSupernet)
    with process_group(config) as world:
        card, (search_images,) = inputs.read_data(arguments, config, "search")
        keys = ("card", "train_split", "search_split")
        if section.adopt is not None:
            with open_step(STEP, arguments, config, *keys, world=world) as opened:
                if world.is_rank_zero:
                    adopt(opened, section.adopt, card, search_images)
            return
        train_images = inputs.read_train_images(arguments, config, card, section, STEP)
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
        return _score(model, space, accuracy)

    trained = train(opened, training, trainer, score, TrainingNames("checkpoint", STEP))
    if opened.world.is_rank_zero:
        ema = None if trainer.ema is None else trainer.averaged.state_dict()
        metrics = _write(opened, card, trainer.model, ema, trained)
        _report(quantity(trainer.total_steps, "step"), metrics)


def _score(model: Any, space: SearchSpace, accuracy: "SearchSplitAccuracy") -> dict[str, float | int]:
    model.eval()
    forwards = {name: partial(model, spec=getattr(space, name)) for name in SCORED}
    return {f"{name}_top1_percent": accuracy.top1_percent(forward) for name, forward in forwards.items()}


def adopt(opened: StepContext, adopted: Adopted, card: DatasetCard, search_images: DecodedSplit) -> None:
    """Score the supernet of a checkpoint, and write it like a trained one, also as averaged weights."""
    from autoformer.devices import find_device
    from autoformer.official import load_any_supernet
    from runtime.steps.training_loop import SearchSplitAccuracy, TrainingResult

    set_threads(opened.config.threads)
    space, section = opened.config.space, opened.config.section(TrainSupernet)
    folder = opened.workspace.file("adopted")
    checkpoint = verified_file(adopted.checkpoint, adopted.sha256, folder, "train_supernet.adopt.checkpoint")
    supernet, device = load_any_supernet(checkpoint, space), find_device(opened.config.device)
    accuracy = SearchSplitAccuracy(search_images, card, device, section.score_images)
    row = {"step": 0, "epoch": 0.0, **_score(supernet.to(device), space, accuracy)}
    supernet.cpu()
    metrics = _write(opened, card, supernet, supernet.state_dict(), TrainingResult([row], []))
    _report(f"adopted {adopted.checkpoint}", metrics)


def _report(what: str, metrics: Mapping[str, float | int]) -> None:
    print(f"{STEP}: {what}, " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()), flush=True)


def _write(
    opened: StepContext, card: DatasetCard, model: "Supernet", ema: dict[str, Any] | None, trained: "TrainingResult"
) -> dict[str, float | int]:
    from autoformer.checkpoint import save_supernet

    out, (history, rollbacks) = opened.arguments.out, trained
    preprocessing = Preprocessing(mean=card.mean, std=card.std, classes=card.classes, pixels=card.pixels)
    supernet_card = SupernetCard(
        space=opened.config.space, bias_rule=model.bias_rule, preprocessing=preprocessing,
        provenance=opened.workspace.provenance,
    )  # fmt: skip
    metrics = {key: value for key, value in history[-1].items() if key not in ("step", "epoch", "learning_rate")}
    with replacing(out) as folder:
        save_supernet(folder, model.state_dict(), ema, supernet_card)
        write_table(folder / "history.csv", HISTORY, history)
        if rollbacks:
            write_json(folder / "rollbacks.json", rollbacks)
        write_json(folder / "metrics.json", metrics)
        publish(folder, STEP)
    opened.tracked.artifact(out / "history.csv")
    return metrics

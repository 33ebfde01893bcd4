"""What the two training steps share: they drive the same loop, keep a history, and resume from a checkpoint."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoformer.dataset import DatasetCard, Images
from autoformer.errors import AutoFormerError
from autoformer.evaluation import predict_logits
from autoformer.files import replacing
from autoformer.training import Trainer
from components.cli import Progress
from components.config import TrainingSection

Row = dict[str, float | int]


class Scorer:
    """Top-1 accuracy, in percent, on the first images of the search split, the same ones every time."""

    def __init__(self, split: Images, card: DatasetCard, device: torch.device, images: int | None = None) -> None:
        self.pixels, self.labels = torch.from_numpy(split.pixels[:images]), torch.from_numpy(split.labels[:images])
        self.mean, self.std, self.device = card.mean, card.std, device

    def top1_percent(self, forward: Callable[[Tensor], Tensor]) -> float:
        logits = predict_logits(forward, self.pixels, self.mean, self.std, 500, self.device)
        return 100.0 * int((logits.argmax(dim=1) == self.labels).sum()) / len(self.labels)


def train(
    trainer: Trainer,
    section: TrainingSection,
    score: Callable[[torch.nn.Module], Row],
    checkpoint: Path,
    what: str,
    log: Callable[[Row], None],
    record: dict[str, Any],
) -> list[Row]:
    """Train to the end, from the checkpoint where there is one; return one row every `log_steps` steps.

    Args:
        score: scores the averaged model every `score_steps` steps and at the end.
        checkpoint: written every `checkpoint_steps` steps, and read first.
        log: is given each new row.
        record: is told where training was resumed, and its rate.
    """
    history = _resume(trainer, checkpoint)
    first = trainer.step
    if first:
        record["resumed_from_step"] = first
        print(f"{what}: resumed from step {first} of {trainer.total_steps}", flush=True)
    start = time.monotonic()
    with Progress(
        what, trainer.total_steps * trainer.images_per_step, "images", first * trainer.images_per_step
    ) as progress:
        while trainer.step < trainer.total_steps:
            row = _next_row(trainer, section, score)
            history.append(row)
            log(row)
            progress.update(trainer.step * trainer.images_per_step, f"loss {row['train_loss']:.3f}")
            if trainer.step % section.checkpoint_steps == 0:
                _save(trainer, history, checkpoint)
    seconds = time.monotonic() - start
    record["images_per_second"] = round((trainer.step - first) * trainer.images_per_step / max(seconds, 1e-9))
    return history


def _next_row(trainer: Trainer, section: TrainingSection, score: Callable[[torch.nn.Module], Row]) -> Row:
    loss = trainer.advance(section.log_steps)
    if not torch.isfinite(torch.tensor(loss)):
        raise AutoFormerError(
            f"the training loss is {loss} by step {trainer.step}; lower the learning_rate or set clip_grad"
        )
    row: Row = {
        "step": trainer.step,
        "epoch": round(trainer.epoch, 4),
        "learning_rate": trainer.learning_rate,
        "train_loss": loss,
    }
    if trainer.step % section.score_steps == 0 or trainer.step == trainer.total_steps:
        row |= score(trainer.averaged)
    return row


def _save(trainer: Trainer, history: list[Row], checkpoint: Path) -> None:
    with replacing(checkpoint) as temporary:
        torch.save({"trainer": trainer.state_dict(), "history": history}, temporary)


def _resume(trainer: Trainer, checkpoint: Path) -> list[Row]:
    """Load the checkpoint, if there is one, into the trainer; return the history up to it."""
    if not checkpoint.exists():
        return []
    try:
        state = torch.load(checkpoint, map_location=trainer.device, weights_only=True)
        trainer.load_state_dict(state["trainer"])
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0]
        raise AutoFormerError(f"{checkpoint}: not a readable checkpoint ({reason}); delete it to start again") from None
    history: list[Row] = state["history"]
    return history


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)

"""The training loop of the two training steps: history, checkpoints, rollbacks and stops.

After a NaN or infinite loss or weight, training returns to the last regular checkpoint, or to the beginning (a
rollback), and multiplies its learning rates by `rollback_factor`. After `max_rollbacks` rollbacks the step ends. With
float16 the gradient scaler skips such a step; a rollback follows only if no step of a row has a finite loss.

Several ranks train in lockstep. Each keeps the losses of its shard on its device, and one all-reduce per row adds them,
so all ranks decide alike. Rank 0 scores, writes and logs, while the others continue to the next collective. At each
step a gloo all-reduce, which runs beside the GPUs, exchanges whether a signal has come; its result is read one step
later. So all ranks stop at the same step, and no GPU waits.
"""

import contextlib
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autoformer.checkpoint import first_not_finite
from autoformer.devices import is_out_of_memory
from autoformer.distributed import World
from autoformer.errors import AutoFormerError, quantity
from autoformer.evaluation import predict_logits
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.training import Trainer
from runtime.common.console import Progress, print_line
from runtime.common.stopping import Stopped, delay_signals, receive_signal, received_signal
from runtime.steps.checkpoints import Checkpoints, State, load
from runtime.steps.step_context import StepContext
from runtime.steps.training_setup import Training, out_of_memory, resolved_settings

Row = dict[str, float | int]
Rollback = dict[str, Any]  # step, reason, subnet, back_to_step, learning_rate_scale: a row of rollbacks.json
BATCH_SIZE = 500  # images per forward pass when scoring
ACCURACY = "_top1_percent"  # suffix of the scores in a row


class SearchSplitAccuracy:
    """Top-1 accuracy in percent on the first images of the search split, always the same ones."""

    def __init__(self, split: DecodedSplit, card: DatasetCard, device: torch.device, images: int | None = None) -> None:
        self.pixels, self.labels = torch.from_numpy(split.pixels[:images]), torch.from_numpy(split.labels[:images])
        self.mean, self.std, self.device = card.mean, card.std, device

    def top1_percent(self, forward: Callable[[Tensor], Tensor]) -> float:
        logits = predict_logits(forward, self.pixels, self.mean, self.std, BATCH_SIZE, self.device)
        return 100.0 * int((logits.argmax(dim=1) == self.labels).sum()) / len(self.labels)


class TrainingResult(NamedTuple):
    """A row every `log_steps` steps, and the rollbacks."""

    history: list[Row]
    rollbacks: list[Rollback]


class TrainingNames(NamedTuple):
    checkpoint: str  # file name in the work folder, without suffix
    what: str  # prefix of printed lines
    prefix: str = ""  # of metric names


Score = Callable[[torch.nn.Module], Row]


def train(
    opened: StepContext, training: Training, trainer: Trainer, score: Score, names: TrainingNames
) -> TrainingResult:
    """Train to the end, from the checkpoint if there is one.

    Args:
        opened: its work folder holds the checkpoints; its record gets the settings, the step that training was resumed
            from, and the rate; its MLflow run gets each new row.
        trainer: of `training`.
        score: scores the averaged model every `score_steps` steps and at the end.

    Raises:
        AutoFormerError: a checkpoint is damaged or cannot be written, losses are not finite in spite of rollbacks, or
            the memory has run out.
        Stopped: after a signal, with a checkpoint written.
    """
    loop = _Loop(opened, training, trainer, score, names)
    settings = resolved_settings(trainer)
    opened.record.values |= settings
    opened.tracked.tags({f"{names.prefix}{key}": str(value) for key, value in settings.items()})
    decay = trainer.final_ema_decay
    if decay is not None and training.section.ema_decay and decay < training.section.ema_decay:
        print_line(
            f"{names.what}: the averaged weights end with decay {decay:.4g}, not ema_decay "
            f"{training.section.ema_decay:g}: timm's warm-up is longer than {quantity(trainer.total_steps, 'step')}"
        )
    first = loop.resume()
    if first:
        opened.record.values["resumed_from_step"] = first
        print_line(f"{names.what}: resumed from step {first} of {trainer.total_steps}")
    start = time.monotonic()
    images, total = trainer.images_per_step, trainer.total_steps * trainer.images_per_step
    with Progress(names.what, total, "images", first * images) as progress, contextlib.closing(trainer.images):
        # other ranks than 0 stop only when all ranks do
        with contextlib.nullcontext() if trainer.world.is_rank_zero else delay_signals():
            fits = loop.run(lambda note: progress.update(trainer.step * images, note), progress.print_above)
    if not fits:
        raise out_of_memory(training, trainer)
    rate = loop.steps_taken * images / max(time.monotonic() - start, 1e-9)
    opened.record.values["images_per_second"] = round(rate)
    return TrainingResult(loop.history, loop.rollbacks)


def scores_text(row: Row) -> str:
    """The accuracies in a row; empty if it has none."""
    scores = {key.removesuffix(ACCURACY): value for key, value in row.items() if key.endswith(ACCURACY)}
    return ", ".join(f"{'' if name == 'search' else f'{name} '}{value:.2f} %" for name, value in scores.items())


class _StopRequest:
    """The signal that stops all ranks: the highest that any rank had a step ago. Called once per step."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._pending: tuple[Tensor, torch.distributed.Work] | None = None

    def __call__(self) -> bool:
        if self.world.size == 1:
            return received_signal() is not None
        if self._pending is not None:
            (number, work), self._pending = self._pending, None
            work.wait()
            if int(number):
                receive_signal(int(number))
                return True
        number = torch.tensor(received_signal() or 0)
        work = torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._pending = number, work
        return False


class _Loop:
    """A training and its history. Can be checkpointed between any two steps."""

    def __init__(
        self, opened: StepContext, training: Training, trainer: Trainer, score: Score, names: TrainingNames
    ) -> None:
        self.opened, self.training, self.trainer, self.score, self.names = opened, training, trainer, score, names
        self.section, self.world = training.section, trainer.world
        self.stop_requested = _StopRequest(trainer.world)
        self.history: list[Row] = []
        self.rollbacks: list[Rollback] = []
        self.losses = self._no_losses()  # of the steps since the last row; on the device until the row is complete
        self.steps_taken = 0  # by this process
        self.checkpoints = Checkpoints(opened, names.checkpoint, trainer.world)

    def resume(self) -> int:
        """Load the checkpoint of an earlier try, if there is one; return its step."""
        checkpoint = self.checkpoints.newest_of_all()
        if checkpoint is not None:
            load(checkpoint, self._restore)
            for row in self.history:  # MLflow may lack the last rows if it was unavailable when the step was killed
                self.opened.tracked.row(row, self.names.prefix)
        elif self.world.is_rank_zero:
            self.checkpoints.save_beginning(self._state)
        self.world.all_gather(None)  # all have read before anything is replaced
        return self.trainer.step

    def run(self, report: Callable[[str], None], announce: Callable[[str], None]) -> bool:
        """Train to the end; `report` each row, and `announce` each score. False if memory has run out."""
        try:
            while self.trainer.step < self.trainer.total_steps or len(self.losses):
                row = self.next_row()
                if row and (scores := scores_text(row)):
                    images = self.trainer.step * self.trainer.images_per_step
                    announce(f"{self.names.what}: after {quantity(images, 'image')}, on the search split: {scores}")
                report(f"loss {row['train_loss']:.3f}" if row else "back at the last checkpoint")
        except Stopped as stopped:
            stopped.note = f" at step {self.stop()} of {self.trainer.total_steps}"
            raise
        except (RuntimeError, MemoryError) as error:
            if "DataLoader worker" in str(error):
                raise AutoFormerError(
                    "a process that decodes images ahead was killed, as where memory or a container's /dev/shm is "
                    "full; give it more, or set AUTOFORMER_WORKERS to fewer, 0 for none; the same command resumes"
                ) from None
            if not is_out_of_memory(error):
                raise
            return False  # the error would keep memory that the caller needs
        return True

    def next_row(self) -> Row | None:
        """Train up to the next row of the history; None after a rollback."""
        with delay_signals():
            missing = self.section.log_steps - len(self.losses)
            last = min(self.trainer.step + missing, self.trainer.total_steps)
            stopping, shards = False, []
            while self.trainer.step < last and not (stopping := self.stop_requested()):
                shards.append(self.trainer.take_step())
                self.steps_taken += 1
            if shards:
                self.losses = torch.cat([self.losses, self.world.all_reduce(torch.stack(shards))])
        if stopping:  # only other ranks than 0 get here, whose signals are delayed
            raise Stopped(received_signal() or signal.SIGTERM)
        losses = self.losses.cpu()
        fault = self._not_finite(losses, check_weights=self._is_due(self.section.checkpoint_steps))
        if fault:
            with delay_signals():
                self._go_back(*fault)
            return None
        row = self._row(losses)
        with delay_signals():
            self.history.append(row)
            self.losses = self._no_losses()
            self.opened.tracked.row(row, self.names.prefix)
            if self.world.is_rank_zero and self._is_due(self.section.checkpoint_steps):
                self.checkpoints.save_regular(self._state())
        return row

    def stop(self) -> int:
        """Save a checkpoint, unless a value is not finite; return the step from which the same command resumes."""
        if self._not_finite(self.losses.cpu(), check_weights=True) is None:
            if self.world.is_rank_zero:
                self.checkpoints.save_interrupted(self._state())
            return self.trainer.step
        checkpoint = self.checkpoints.newest() if self.world.is_rank_zero else None
        if checkpoint is None:
            return 0
        load(checkpoint, self._restore)
        return self.trainer.step

    def _no_losses(self) -> Tensor:
        return torch.zeros(0, device=self.trainer.device)

    def _row(self, losses: Tensor) -> Row:
        row: Row = {
            "step": self.trainer.step,
            "epoch": round(self.trainer.epoch, 4),
            "learning_rate": self.trainer.learning_rate,
            "train_loss": float(losses[losses.isfinite()].double().mean()),
        }
        if self.world.is_rank_zero and self._is_due(self.section.score_steps):
            row |= self.score(self.trainer.averaged)
        return row

    def _is_due(self, every: int) -> bool:
        return self.trainer.step % every == 0 or self.trainer.step == self.trainer.total_steps

    def _not_finite(self, losses: Tensor, check_weights: bool) -> tuple[int, str] | None:
        """The first step, counted from 0, with a NaN or infinite value, and a message; None if all are finite."""
        infinite = (~losses.isfinite()).nonzero().flatten().tolist()
        if infinite and not (self.trainer.scaler.is_enabled() and len(infinite) < len(losses)):
            first = infinite[0]
            return self.trainer.step - len(losses) + first, f"the loss of step {{}} is {losses[first]:g}"
        if check_weights:
            for model in (self.trainer.model, self.trainer.averaged):
                if name := first_not_finite(model.state_dict()):
                    return self.trainer.step - 1, f"'{name}' holds NaN or infinity after step {{}}"
        return None

    def _go_back(self, step: int, message: str) -> None:
        """Return to the last regular checkpoint, with lower learning rates; `step` is counted from 0."""
        subnet, rollbacks, reason = self.training.subnet_of(step), self.rollbacks, message.format(step + 1)
        what = f"{reason}, with subnet {subnet.to_json()}"
        if len(rollbacks) >= self.section.max_rollbacks:
            raise AutoFormerError(
                f"{what}, after {quantity(len(rollbacks), 'rollback')}; lower the learning_rate, or set clip_grad"
            )
        load(self.checkpoints.to_roll_back_to(), self._restore)
        scale = self.section.rollback_factor ** (len(rollbacks) + 1)
        self.trainer.learning_rate_scale = scale
        rollback: Rollback = {
            "step": step + 1,
            "reason": reason,
            "subnet": subnet.to_dict(),
            "back_to_step": self.trainer.step,
            "learning_rate_scale": scale,
        }
        self.rollbacks = [*rollbacks, rollback]
        outcome = f"back to step {self.trainer.step}, learning rates times {scale:g}"
        print_line(f"{self.names.what}: {what}; {outcome}")
        self.opened.tracked.tags({f"{self.names.prefix}rollbacks": f"{len(self.rollbacks)}: {reason}; {outcome}"})

    def _state(self) -> State:
        return {
            "trainer": self.trainer.state_dict(),
            "history": self.history,
            "losses": self.losses,
            "rollbacks": self.rollbacks,
        }

    def _restore(self, state: State) -> None:
        self.trainer.load_state_dict(state["trainer"])
        self.losses = state["losses"].to(self.trainer.device)
        self.history, self.rollbacks = state["history"], state["rollbacks"]

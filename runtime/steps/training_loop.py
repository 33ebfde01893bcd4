"""What the two training steps share: they drive the same loop, keep a history, resume, and roll back.

A loss that is NaN or infinite, or such a weight, sends training back to the last regular checkpoint, or to the
beginning, and its learning rates are from there on `rollback_factor` times what they were. After `max_rollbacks`
of these the step ends. With float16 a step of that kind is skipped by the gradient scaler, which is no reason to
go back as long as one step of the row is sound.

Several ranks train in step. Each keeps its share of the losses on its device; they are added up once a row, so that
all ranks decide alike whether to go back. Rank 0 alone scores, writes and tells; the others go on meanwhile, to the
next word that needs rank 0. Whether a signal has come is a number that every rank adds to at each step, through gloo,
beside the GPUs, and hears one step later: all stop at the same step, and no device is waited for.
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
from autoformer.errors import AutoFormerError
from autoformer.evaluation import predict_logits
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.training import Trainer
from runtime.common.console import Progress, print_line
from runtime.common.stopping import Stopped, delay_signals, receive_signal, received_signal
from runtime.steps.checkpoints import Checkpoints, State, load
from runtime.steps.step_context import StepContext
from runtime.steps.training_setup import Training, findings, out_of_memory

Row = dict[str, float | int]
Rollback = dict[str, Any]  # step, reason, subnet, back_to_step, learning_rate_scale: a row of rollbacks.json


class SearchSplitAccuracy:
    """Top-1 accuracy, in percent, on the first images of the search split, the same ones every time."""

    def __init__(self, split: DecodedSplit, card: DatasetCard, device: torch.device, images: int | None = None) -> None:
        self.pixels, self.labels = torch.from_numpy(split.pixels[:images]), torch.from_numpy(split.labels[:images])
        self.mean, self.std, self.device = card.mean, card.std, device

    def top1_percent(self, forward: Callable[[Tensor], Tensor]) -> float:
        logits = predict_logits(forward, self.pixels, self.mean, self.std, 500, self.device)
        return 100.0 * int((logits.argmax(dim=1) == self.labels).sum()) / len(self.labels)


class TrainingResult(NamedTuple):
    """One row every `log_steps` steps, and where training went back."""

    history: list[Row]
    rollbacks: list[Rollback]


class TrainingNames(NamedTuple):
    """What one training is called."""

    checkpoint: str  # file in the work folder, without ending
    what: str  # before its lines
    prefix: str = ""  # of its metrics


def train(
    opened: StepContext,
    training: Training,
    trainer: Trainer,
    score: Callable[[torch.nn.Module], Row],
    names: TrainingNames,
) -> TrainingResult:
    """Train to the end, from the checkpoint where there is one.

    Args:
        opened: has the work folder; its record is told where training was resumed, and its rate, and its MLflow
            run is given each new row.
        trainer: of `training`.
        score: scores the averaged model every `score_steps` steps and at the end.

    Raises:
        AutoFormerError: a checkpoint is damaged or cannot be written, losses are not finite in spite of rollbacks, or
            the memory has run out.
        Stopped: after a checkpoint.
    """
    loop = _Loop(opened, training, trainer, score, names)
    found = findings(trainer)
    opened.record.values |= found
    opened.tracked.tags({f"{names.prefix}{key}": str(value) for key, value in found.items()})
    first = loop.resume()
    if first:
        opened.record.values["resumed_from_step"] = first
        print_line(f"{names.what}: resumed from step {first} of {trainer.total_steps}")
    start = time.monotonic()
    images, total = trainer.images_per_step, trainer.total_steps * trainer.images_per_step
    with Progress(names.what, total, "images", first * images) as progress, contextlib.closing(trainer.images):
        # a rank that follows stops where all do, never by itself
        with contextlib.nullcontext() if trainer.world.is_rank_zero else delay_signals():
            fits = loop.run(lambda note: progress.update(trainer.step * images, note))
    if not fits:
        raise out_of_memory(training, trainer)
    rate = loop.steps_taken * images / max(time.monotonic() - start, 1e-9)
    opened.record.values["images_per_second"] = round(rate)
    return TrainingResult(loop.history, loop.rollbacks)


class _Agreement:
    """Whether all ranks shall stop, asked once a step: the highest signal that any of them had at the last asking."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._asked: tuple[Tensor, torch.distributed.Work] | None = None

    def __call__(self) -> bool:
        if self.world.size == 1:
            return received_signal() is not None
        answer = self._answer()
        if answer:
            receive_signal(answer)
            return True
        number = torch.tensor(received_signal() or 0)
        work = torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._asked = number, work
        return False

    def _answer(self) -> int:
        if self._asked is None:
            return 0
        (number, work), self._asked = self._asked, None
        work.wait()
        return int(number)


class _Loop:
    """A training and its history, at every moment between two steps in a state that can be saved and gone on with."""

    def __init__(
        self,
        opened: StepContext,
        training: Training,
        trainer: Trainer,
        score: Callable[[torch.nn.Module], Row],
        names: TrainingNames,
    ) -> None:
        self.opened, self.training, self.trainer, self.score, self.names = opened, training, trainer, score, names
        self.section = training.section
        self.history: list[Row] = []
        self.world = trainer.world
        self.told_to_stop = _Agreement(trainer.world)
        self.losses = self._no_losses()  # of the steps since the last row; they stay on the device until it is full
        self.rollbacks: list[Rollback] = []
        self.steps_taken = 0  # by this process
        self.checkpoints = Checkpoints(opened, names.checkpoint, trainer.world)

    def resume(self) -> int:
        """Load what an earlier try has left, if anything; returns its step."""
        found = self.checkpoints.newest_of_all()
        if found is not None:
            load(found, self._restore)
            for row in self.history:  # of which MLflow may lack the last, where it was away when the step was killed
                self.opened.tracked.row(row, self.names.prefix)
        elif self.world.is_rank_zero:
            self.checkpoints.save_beginning(self._state)
        self.world.all_gather(None)  # all have read before anything is replaced
        return self.trainer.step

    def run(self, tell: Callable[[str], None]) -> bool:
        """Train to the end; `tell` hears of each row. False where the memory has run out."""
        try:
            while self.trainer.step < self.trainer.total_steps or len(self.losses):
                row = self.next_row()
                tell(f"loss {row['train_loss']:.3f}" if row else "back at the last checkpoint")
        except Stopped as stopped:
            stopped.note = f" at step {self.stop()} of {self.trainer.total_steps}"
            raise
        except (RuntimeError, MemoryError) as error:
            if "DataLoader worker" in str(error):
                raise AutoFormerError(
                    "a process that decodes images ahead was killed, as where memory or a container's /dev/shm is "
                    "full; give it more, or set AUTOFORMER_WORKERS to fewer, 0 for none; the same command goes on"
                ) from None
            if not is_out_of_memory(error):
                raise
            return False  # with the error its memory is set free
        return True

    def next_row(self) -> Row | None:
        """Train up to the next row of the history; None where training has gone back instead."""
        with delay_signals():
            wanted = self.section.log_steps - len(self.losses)
            last = min(self.trainer.step + wanted, self.trainer.total_steps)
            stopping, shares = False, []
            while self.trainer.step < last and not (stopping := self.told_to_stop()):
                shares.append(self.trainer.take_step())
                self.steps_taken += 1
            if shares:
                self.losses = torch.cat([self.losses, self.world.all_reduce(torch.stack(shares))])
        if stopping:  # of a rank that follows, for which the signal waits
            raise Stopped(received_signal() or signal.SIGTERM)
        losses = self.losses.cpu()
        unsound = self._unsound(losses)
        if unsound:
            with delay_signals():
                self._go_back(*unsound)
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
        """Keep what has been done, unless it is unsound; returns the step that the same command goes on from."""
        if self._unsound(self.losses.cpu(), check_weights=True) is None:
            if self.world.is_rank_zero:
                self.checkpoints.save_interrupted(self._state())
            return self.trainer.step
        found = self.checkpoints.newest() if self.world.is_rank_zero else None
        if found is None:
            return 0
        load(found, self._restore)
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

    def _unsound(self, losses: Tensor, check_weights: bool | None = None) -> tuple[int, str] | None:
        """The step, from 0, and what is NaN or infinite in it; None where all is as it should be.

        Weights are looked at where a checkpoint is due.
        """
        infinite = (~losses.isfinite()).nonzero().flatten().tolist()
        if infinite and not (self.trainer.scaler.is_enabled() and len(infinite) < len(losses)):
            first = infinite[0]
            return self.trainer.step - len(losses) + first, f"the loss of step {{}} is {losses[first]:g}"
        if self._is_due(self.section.checkpoint_steps) if check_weights is None else check_weights:
            for model in (self.trainer.model, self.trainer.averaged):
                name = first_not_finite(model.state_dict())
                if name:
                    return self.trainer.step - 1, f"'{name}' holds NaN or infinity after step {{}}"
        return None

    def _go_back(self, step: int, reason: str) -> None:
        """Return to the last regular checkpoint, with lower learning rates; `step` is counted from 0."""
        subnet, rollbacks = self.training.subnet_of(step), self.rollbacks
        what = f"{reason.format(step + 1)}, with subnet {subnet.to_json()}"
        if len(rollbacks) >= self.section.max_rollbacks:
            raise AutoFormerError(
                f"{what}, after {len(rollbacks)} rollbacks; lower the learning_rate, or set clip_grad"
            )
        load(self.checkpoints.to_roll_back_to(), self._restore)
        self.trainer.learning_rate_scale = self.section.rollback_factor ** (len(rollbacks) + 1)
        rollback: Rollback = {
            "step": step + 1,
            "reason": reason.format(step + 1),
            "subnet": subnet.to_dict(),
            "back_to_step": self.trainer.step,
            "learning_rate_scale": self.trainer.learning_rate_scale,
        }
        self.rollbacks = [*rollbacks, rollback]
        told = f"back to step {self.trainer.step}, learning rates times {self.trainer.learning_rate_scale:g}"
        print_line(f"{self.names.what}: {what}; {told}")
        self.opened.tracked.tags(
            {f"{self.names.prefix}rollbacks": f"{len(self.rollbacks)}: {rollback['reason']}; {told}"}
        )

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

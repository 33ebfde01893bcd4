"""The three checkpoints of a training, in its work folder.

- The regular checkpoint is written every `checkpoint_steps` steps, if losses and weights are finite. A rollback returns
  to it, so the result does not depend on interruptions.
- The beginning is the target of rollbacks before the first regular checkpoint.
- The interrupted checkpoint is written when a signal stops the step, also between two rows of the history. It is read
  first, and deleted with the next regular one.

Rank 0 writes. Every rank reads; on other machines than rank 0's it reads a copy.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autoformer.devices import is_out_of_memory
from autoformer.distributed import World
from autoformer.errors import AutoFormerError
from autoformer.files import replacing
from autoformer.reading import in_short
from autoformer.weights import read_torch
from runtime.steps.rendezvous import copy_to_all_machines
from runtime.steps.step_context import StepContext

State = dict[str, Any]
_REMEDY = "delete it to start again"


class Checkpoints:
    """The files of one training. `name`: file name without suffix."""

    def __init__(self, opened: StepContext, name: str, world: World) -> None:
        self._mirror, self._world = opened.mirror, world
        self._regular = opened.workspace.file(f"{name}.pt")
        self._beginning = opened.workspace.file(f"{name}-beginning.pt")
        self._interrupted = opened.workspace.file(f"{name}-interrupted.pt")

    def newest(self) -> Path | None:
        """This machine's checkpoint to resume from; None if there is none."""
        return next((file for file in (self._interrupted, self._regular) if file.exists()), None)

    def newest_of_all(self) -> Path | None:
        """Rank 0's newest checkpoint, copied to this machine. Collective: every rank must call it."""
        newest = self.newest()
        name = self._world.broadcast(None if newest is None else newest.name)
        return None if name is None else self._copied(name)

    def to_roll_back_to(self) -> Path:
        """Rank 0's checkpoint for a rollback, copied to this machine. Collective: every rank must call it."""
        file = self._regular if self._regular.exists() else self._beginning
        return self._copied(self._world.broadcast(file.name))

    def save_regular(self, state: State) -> None:
        self._save(self._regular, state)
        for file in (self._interrupted, self._beginning):
            file.unlink(missing_ok=True)
        self._mirror.request_upload()

    def save_beginning(self, state: Callable[[], State]) -> None:
        """Save the beginning, unless it exists."""
        if not self._beginning.exists():
            self._save(self._beginning, state())

    def save_interrupted(self, state: State) -> None:
        self._save(self._interrupted, state)

    def _copied(self, name: str) -> Path:
        return copy_to_all_machines(self._world, self._regular.with_name(name))

    def _save(self, file: Path, state: State) -> None:
        with replacing(file) as temporary, temporary.open("wb") as opened:
            try:
                torch.save(state, opened)
            except RuntimeError as error:  # torch reports a bad file; the cause is the disk error
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        self._mirror.request_upload()


def load(file: Path, restore: Callable[[State], None]) -> None:
    """Read a checkpoint and pass it to `restore`. Raises `AutoFormerError` if it is damaged."""
    state = read_torch(file, _REMEDY)  # on the CPU: a GPU would hold the state twice
    try:
        restore(state)
    except Exception as error:  # torch raises many kinds for a state of another shape
        if is_out_of_memory(error):
            raise
        raise AutoFormerError(f"{file}: not a readable checkpoint ({in_short(error)}); {_REMEDY}") from None

"""The checkpoints of a training, in its work folder.

The regular one is written every `checkpoint_steps` steps, and only where losses and weights are finite; so what a
rollback returns to does not depend on when a training was interrupted. Until there is one, a rollback returns to the
beginning. The interrupted one is written where the step is told to stop, in the midst of a row of the history too;
it is read first, and gone with the next regular one.

Rank 0 writes. Every rank reads, on other machines than rank 0's from a copy.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autoformer.devices import is_out_of_memory
from autoformer.distributed import World
from autoformer.errors import AutoFormerError
from autoformer.files import replacing
from runtime.steps.rendezvous import hand_out
from runtime.steps.step_context import StepContext

State = dict[str, Any]


class Checkpoints:
    """The files of one training. `name`: of the files, without ending."""

    def __init__(self, opened: StepContext, name: str, world: World) -> None:
        self._mirror, self._world = opened.mirror, world
        self._regular = opened.workspace.file(f"{name}.pt")
        self._beginning = opened.workspace.file(f"{name}-beginning.pt")
        self._interrupted = opened.workspace.file(f"{name}-interrupted.pt")

    def newest(self) -> Path | None:
        """The checkpoint to resume from, on this machine; None where there is none."""
        return next((file for file in (self._interrupted, self._regular) if file.exists()), None)

    def newest_of_all(self) -> Path | None:
        """The newest checkpoint of rank 0, copied to this machine. Every rank calls it."""
        newest = self.newest()
        name = self._world.broadcast(None if newest is None else newest.name)
        return None if name is None else self._copied(name)

    def to_roll_back_to(self) -> Path:
        """The checkpoint of rank 0 that a rollback returns to, copied to this machine. Every rank calls it."""
        file = self._regular if self._regular.exists() else self._beginning
        return self._copied(self._world.broadcast(file.name))

    def save_regular(self, state: State) -> None:
        self._save(self._regular, state)
        for file in (self._interrupted, self._beginning):
            file.unlink(missing_ok=True)
        self._mirror.request_upload()

    def save_beginning(self, state: Callable[[], State]) -> None:
        """Save it unless it is there, from an earlier try that came no further."""
        if not self._beginning.exists():
            self._save(self._beginning, state())

    def save_interrupted(self, state: State) -> None:
        self._save(self._interrupted, state)

    def _copied(self, name: str) -> Path:
        return hand_out(self._world, self._regular.with_name(name))

    def _save(self, file: Path, state: State) -> None:
        with replacing(file) as temporary, temporary.open("wb") as opened:
            try:
                torch.save(state, opened)
            except RuntimeError as error:  # torch's own, about the file's form; the reason lies below it
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        self._mirror.request_upload()


def load(file: Path, restore: Callable[[State], None]) -> None:
    """Read a checkpoint and hand it to `restore`. Raises `AutoFormerError` where either finds it damaged."""
    try:
        restore(torch.load(file, map_location="cpu", weights_only=True))  # or a GPU would hold all of it twice
    except Exception as error:  # torch raises many kinds for a damaged file
        if isinstance(error, OSError) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()[:20]) or type(error).__name__
        raise AutoFormerError(f"{file}: not a readable checkpoint ({reason}); delete it to start again") from None

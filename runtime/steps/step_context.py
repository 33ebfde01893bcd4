"""How a step that has checked its input begins and ends: its work in progress, its record and its MLflow run."""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from autoformer.distributed import SINGLE_PROCESS, World
from runtime import tracking
from runtime.common.config import Config
from runtime.common.locks import hold_lock
from runtime.common.workspace import Record, Workspace
from runtime.storage.mirror import Mirror, mirrored

NOWHERE = Mirror()


@dataclass(frozen=True)
class StepContext:
    """What a step is given to work with, and what it says where its result came from."""

    arguments: argparse.Namespace
    config: Config
    workspace: Workspace
    record: Record
    tracked: tracking.StepLogger
    world: World = SINGLE_PROCESS
    mirror: Mirror = NOWHERE  # is told when checkpoints change


@contextlib.contextmanager
def open_step(
    step: str,
    arguments: argparse.Namespace,
    config: Config,
    *inputs: str,
    world: World = SINGLE_PROCESS,
    has_checkpoints: bool = False,
) -> Iterator[StepContext]:
    """Open the step's work in progress, record and MLflow run; forget the work once the step has succeeded.

    Of several processes rank 0 holds the locks, writes the record and logs; the others have a record and a run that
    go nowhere.

    Args:
        step: the step's name.
        arguments: of its command line, with `out`, `record` and a path for each of `inputs`.
        config: the configuration.
        inputs: names of the arguments that the step reads; their content is part of what its work is keyed by.
        world: which of the processes that do the step together this is.
        has_checkpoints: whether its work is worth keeping in the store too, where there is one.

    Raises:
        AutoFormerError: another process does the same work, or is to publish to the same place.
        OSError: a place of work in progress, output or record cannot be written to.
    """
    workspace = Workspace(step, config, {name: getattr(arguments, name) for name in inputs})
    record = Record(arguments.record, step)
    record.values["ranks"] = world.size
    if not world.is_rank_zero:
        with tracking.step_run(step, config, record.values) as silent:
            yield StepContext(arguments, config, workspace, record, silent, world)
        return
    with hold_lock(workspace.folder, "work folder"), hold_lock(arguments.out, "output"):
        with (
            record,
            mirrored(step, workspace.folder) if has_checkpoints else contextlib.nullcontext(NOWHERE) as mirror,
            # whose run has ended before the last checkpoint is waited for: there may be no time for both
            tracking.step_run(step, config, record.values, workspace.provenance) as tracked,
        ):
            yield StepContext(arguments, config, workspace, record, tracked, world, mirror)
        workspace.clear()
        mirror.clear()

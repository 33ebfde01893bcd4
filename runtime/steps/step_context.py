"""Start and end of a step after its input checks: locks, work folder, record and MLflow run."""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from autoformer.distributed import SINGLE_PROCESS, World
from autoformer.files import check_no_file, check_replaceable, check_writable
from runtime import tracking
from runtime.common.config import Config
from runtime.common.console import check_apart
from runtime.common.locks import hold_lock
from runtime.common.workspace import Record, Workspace
from runtime.storage.mirror import Mirror, mirrored

NO_MIRROR = Mirror()


@dataclass(frozen=True)
class StepContext:
    """The arguments, work folder, record and MLflow run of a step."""

    arguments: argparse.Namespace
    config: Config
    workspace: Workspace
    record: Record
    tracked: tracking.StepLogger
    world: World = SINGLE_PROCESS
    mirror: Mirror = NO_MIRROR  # uploads checkpoints


@contextlib.contextmanager
def open_step(
    step: str,
    arguments: argparse.Namespace,
    config: Config,
    *inputs: str,
    world: World = SINGLE_PROCESS,
    has_checkpoints: bool = False,
    out_is_file: bool = False,
) -> Iterator[StepContext]:
    """Open a step's work folder, record and MLflow run; delete the work folder after success.

    Only rank 0 holds the locks, writes the record and logs.

    Args:
        arguments: the command line's, with `out`, `record` and a path for each of `inputs`.
        inputs: names of arguments whose files the step reads; their content is part of the work folder's key.
        has_checkpoints: mirror the work folder in the store, if there is one.
        out_is_file: the output is a file, not a folder.

    Raises:
        AutoFormerError: another process does the same work, or writes the same output.
        OSError: the work folder, the output or the record cannot be written.
    """
    read = {name: getattr(arguments, name) for name in inputs}
    check_replaceable(arguments.out)
    (check_writable if out_is_file else check_no_file)(arguments.out)
    check_apart([arguments.out, arguments.record], getattr(arguments, "data", None), *read.values())
    workspace = Workspace(step, config, read)
    record = Record(arguments.record, step)
    record.values["ranks"] = world.size
    if not world.is_rank_zero:
        with tracking.step_run(step, config, record.values) as silent:
            yield StepContext(arguments, config, workspace, record, silent, world)
        return
    with hold_lock(workspace.folder, "work folder"), hold_lock(arguments.out, "output"):
        with (
            record,
            mirrored(step, workspace.folder) if has_checkpoints else contextlib.nullcontext(NO_MIRROR) as mirror,
            # end the run before waiting for the last upload: a stopped step may not have time for both
            tracking.step_run(step, config, record.values, workspace.provenance) as tracked,
        ):
            yield StepContext(arguments, config, workspace, record, tracked, world, mirror)
        workspace.clear()
        mirror.clear()

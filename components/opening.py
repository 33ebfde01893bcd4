"""How a step that has checked its input begins and ends: its work in progress, its record and its MLflow run."""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from components import tracking
from components.config import Config
from components.locks import alone
from components.workspace import Record, Workspace


@dataclass(frozen=True)
class OpenStep:
    """What a step is given to work with, and what it says where its result came from."""

    arguments: argparse.Namespace
    config: Config
    workspace: Workspace
    record: Record
    tracked: tracking.StepRun


@contextlib.contextmanager
def open_step(step: str, arguments: argparse.Namespace, config: Config, *inputs: str) -> Iterator[OpenStep]:
    """Open the step's work in progress, record and MLflow run; forget the work once the step has succeeded.

    Args:
        step: the step's name.
        arguments: of its command line, with `out`, `record` and a path for each of `inputs`.
        config: the configuration.
        inputs: names of the arguments that the step reads; their content is part of what its work is keyed by.

    Raises:
        AutoFormerError: another process does the same work, or is to publish to the same place.
        OSError: a place of work in progress, output or record cannot be written to.
    """
    workspace = Workspace(step, config, {name: getattr(arguments, name) for name in inputs})
    with alone(workspace.folder, "work folder"), alone(arguments.out, "output"):
        with (
            Record(arguments.record, step) as record,
            tracking.step_run(step, config, record.values, workspace.provenance) as tracked,
        ):
            yield OpenStep(arguments, config, workspace, record, tracked)
        workspace.clear()

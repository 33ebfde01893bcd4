"""Check the weights that a configuration names, before any step runs: a supernet to adopt, and teachers.

    python -m commands.check_weights --config CONFIG

Steps check them, too, but only after earlier steps, which may take hours. Files that are not on this machine are left
to the steps: in S3, or at a path of a cluster's volume.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.common.config import ROOT, Config, load_config
from runtime.common.console import Parser, run_command
from runtime.common.sections import RetrainSubnet, TrainSupernet
from runtime.storage import is_uri


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.check_weights", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a preset, a params file, or the configuration as JSON")
    return run_command("settings", parser, lambda arguments: _check(load_config(arguments.config)), argv, after="")


def check_in_another_process(config: Config) -> int:
    """The exit code: 2 for weights of another model, with one line. No process, and 0, where there are none to check.

    Torch stays out of this process: it takes seconds and memory from the steps.
    """
    if not _named_here(config) or importlib.util.find_spec("torch") is None:
        return 0
    command = [sys.executable, "-m", "commands.check_weights", "--config", config.model_dump_json()]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _named_here(config: Config) -> list[str]:
    """The named files that are on this machine."""
    adopted = config.section(TrainSupernet).adopt
    named = [None if adopted is None else adopted.checkpoint]
    for section in (config.section(TrainSupernet), config.section(RetrainSubnet)):
        named.append(section.distillation.checkpoint if section.distillation else None)
    return [file for file in named if file is not None and not is_uri(file) and Path(file).is_file()]


def _check(config: Config) -> None:
    """Load the weights like the steps. Raises `AutoFormerError` for those of another space or model."""
    from autoformer.distillation import load_teacher
    from autoformer.official import load_any_supernet

    here, adopted = _named_here(config), config.section(TrainSupernet).adopt
    if adopted is not None and adopted.checkpoint in here:
        load_any_supernet(adopted.checkpoint, config.space)
    for section in (config.section(TrainSupernet), config.section(RetrainSubnet)):
        if section.distillation is not None and section.distillation.checkpoint in here:
            load_teacher(section.distillation, config.space.num_classes)


if __name__ == "__main__":
    raise SystemExit(main())

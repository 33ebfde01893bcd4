"""Run the pipeline on this machine: the same DAG through `kfp.local`, no server, no cluster.

Each step is a process of this environment or, with `--runner docker`, a container of the images that clusters run.
"""

import argparse
import contextlib
import json
import locale
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoformer.errors import AutoFormerError
from autoformer.reading import read_json_as
from commands.check_weights import check_in_another_process
from commands.own_images import DATASETS, describe_pack, propose_run, relative_path
from components.prepare_data.pack_card import read_pack
from components.register_model.gate import CLASSES, hash_classes
from components.resolve_config.step import resolve
from pipeline.containers import Containers, mounted_paths
from pipeline.kfp_output import KfpOutput
from pipeline.step_processes import StepProcesses
from pipeline.summary import summary
from runtime import tracking
from runtime.common.budgets import folder_of, label_of, model_of, read_chosen
from runtime.common.code import step_code
from runtime.common.config import ROOT, STEPS, Config
from runtime.common.console import Parser, repeat_failure, run_command
from runtime.common.locks import hold_lock
from runtime.common.overrides import add_option, join
from runtime.common.records import StepRecord
from runtime.common.redaction import hide_in_tracebacks
from runtime.common.sections import RegisterModel, SearchSubnet
from runtime.common.stopping import Stopped
from runtime.steps.kfp_edge import CODE
from runtime.storage import is_uri
from runtime.storage.data import hash_data

if TYPE_CHECKING:
    from kfp import local


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.local", description="Run the pipeline on this machine.")
    parser.add_argument("--preset", help="a preset's name or a params file (default: params.yaml; photos for --source)")
    add_option(parser)
    parser.add_argument(
        "--data", help="folder with the delivered archives, or s3://bucket/folder (default: data/<dataset>)"
    )
    parser.add_argument(
        "--source", type=Path, help="your own images: class folders, train/val/test folders of them, or a CSV"
    )
    parser.add_argument(
        "--runner",
        choices=("subprocess", "docker"),
        default="subprocess",
        help="what a step runs in (default: %(default)s)",
    )
    parser.add_argument("--adopt", metavar="FILE", help="search this supernet of the space, and train none")
    parser.add_argument("--space", help="a file of configs/spaces/ by name, or the path of one (default: the preset's)")
    parser.add_argument("--dry-run", action="store_true", help="print what the run would take, from measured steps")
    parser.add_argument("--fresh", action="store_true", help="run every step, also where its result is in the cache")
    steps = StepProcesses()
    hide_in_tracebacks()

    def work(arguments: argparse.Namespace) -> int:
        with hold_lock(ROOT / "runs" / "pipeline", "checkout"):
            return _run(arguments, steps)

    return run_command("pipeline", parser, work, argv, steps.signal)


def _run(arguments: argparse.Namespace, steps: StepProcesses) -> int:
    data, preset, overrides = arguments.data, arguments.preset, [*_adoption(arguments), *arguments.overrides]
    if arguments.source is not None:
        data, preset, overrides = propose_run(arguments.source.expanduser(), preset, overrides, DATASETS)
        print(describe_pack(data), flush=True)
    preset = preset or "params.yaml"
    if preset.endswith((".yaml", ".yml")):
        preset = os.path.realpath(preset)  # `Path.resolve` raises for a link to itself
    config = resolve(preset, overrides)
    data = _data_location(data or ROOT / "data" / config.dataset, config.dataset)
    code = check_in_another_process(config)
    if not code and (arguments.source is not None or arguments.dry_run):
        code = _print_plan(config, data)
    if code or arguments.dry_run:
        return code
    containers = Containers(steps) if arguments.runner == "docker" else None
    data_hash = hash_data(data)
    tags = {"data_hash": data_hash, "runner": "kfp.local, docker" if containers else "kfp.local"}
    if arguments.source is not None:
        for note in other_classes(config, read_pack(Path(data)).classes):
            print(note, flush=True)
    run_id = tracking.open_pipeline_run(config, tags)
    failure = ROOT / "runs" / f".failure-{os.getpid()}.json"
    _prepare_environment(run_id, failure)
    started = time.monotonic()
    status: tracking.Status = "FAILED"
    try:
        runner = containers.runner(mounted_paths(config, data, preset)) if containers else None
        parameters = {"preset": preset, "data": data, "data_hash": data_hash, "overrides": join(overrides)}
        try:
            results = _run_dag(parameters, arguments.fresh, runner, containers.images if containers else None)
        except RuntimeError:
            steps.stop_orphans()
            return repeat_failure("pipeline", failure)
        _show(config, results, time.monotonic() - started, run_id)
        status = "FINISHED"  # set last, so that a runner killed earlier resumes its run
    except Stopped:
        status = "KILLED"
        steps.stop()
        if failure.exists():
            repeat_failure("pipeline", failure)
        raise
    finally:
        failure.unlink(missing_ok=True)
        tracking.close_pipeline_run(run_id, status)
    return 0


def other_classes(config: Config, classes: Sequence[str]) -> list[str]:
    """A line for each registered model whose place this run's model will not take: one name for two data sets."""
    section, search = config.section(RegisterModel), config.section(SearchSubnet)
    notes = []
    for name in [model_of(section.model_name, label_of(each)) for each in search.budgets or ()] or [section.model_name]:
        champion = tracking.aliased_version(name, section.alias)
        if champion and champion.tags.get(CLASSES, hash_classes(classes)) != hash_classes(classes):
            notes.append(
                f"registry: {name}@{section.alias} has other classes, so this run's model will not take its place; "
                "give it a name of its own: register_model.model_name"
            )
    return notes


def _adoption(arguments: argparse.Namespace) -> list[str]:
    """`--space` and `--adopt` as overrides."""
    overrides = []
    if arguments.space:
        overrides.append(f"space={json.dumps(arguments.space)}")
    if arguments.adopt is not None:
        checkpoint = arguments.adopt if is_uri(arguments.adopt) else str(Path(arguments.adopt).expanduser().absolute())
        overrides.append(f"train_supernet.adopt.checkpoint={json.dumps(checkpoint)}")
    return overrides


def _data_location(data: str | Path, dataset: str) -> str:
    """The data argument of the steps: an absolute path, or an S3 URI."""
    if is_uri(data):
        return str(data)
    folder = Path(os.path.realpath(data))
    if not folder.is_dir():
        answer = (
            f"`make data DATASET={dataset} ARCHIVES=…` fills it, or `make data NAME={dataset} DATA=…` with your images"
        )
        if dataset == "fashion-mnist":
            answer = "`make data` fetches the images of 'fashion-mnist'"
        raise AutoFormerError(f"{folder}: no such folder; {answer}")
    return str(folder)


def _print_plan(config: Config, data: str) -> int:
    """Print the plan from another process, since steps are processes too; return its exit code."""
    command = [sys.executable, "-m", "commands.plan", "--config", config.model_dump_json(), "--data", data]
    code = subprocess.run(command, cwd=ROOT, env=os.environ | patient_threads(), check=False).returncode
    if code == -signal.SIGKILL:
        raise AutoFormerError(
            "the measurement for the plan was killed, as the kernel does where memory runs out; "
            "set a smaller train_supernet.batch_size or search_subnet.batch_size, or a smaller space"
        )
    return code


def _prepare_environment(run_id: str, failure: Path) -> None:
    """Set the environment of the steps' processes; no variable changes a result."""
    failure.parent.mkdir(exist_ok=True)
    os.environ |= {
        "AUTOFORMER_PARENT_RUN_ID": run_id,
        "AUTOFORMER_RUNNER_PID": str(os.getpid()),
        "AUTOFORMER_FAILURE": str(failure),
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(),
        "PYTHONIOENCODING": f"{locale.getpreferredencoding(False)}:replace",  # as kfp.local decodes the output
        "PYTHONUNBUFFERED": "1",
        **patient_threads(),
    }
    if sys.stderr.isatty():
        os.environ["AUTOFORMER_TTY"] = os.ttyname(sys.stderr.fileno())


def patient_threads() -> dict[str, str]:
    """Make torch's threads sleep while they wait for each other, unless OMP_WAIT_POLICY is set.

    By default they spin. On two cores that is up to a sixth faster on an idle machine, and thirteen times slower
    beside one other program (measured: 80 against 1,065 images a second).
    """
    return {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}


def _run_dag(
    parameters: Mapping[str, Any], fresh: bool, runner: "local.DockerRunner | None", images: Mapping[str, str] | None
) -> dict[str, Any]:
    """Run the DAG, in processes if `runner` is None; return its outputs by name.

    Raises:
        RuntimeError: a task failed.
    """
    from kfp import local

    from pipeline.dag import autoformer

    os.environ.pop(CODE, None)
    if images is None:
        os.environ[CODE] = json.dumps(name_sources(autoformer))
    else:
        name_images(autoformer, images)
    root = ROOT / "runs"
    local.init(
        runner=runner or local.SubprocessRunner(use_venv=False),
        pipeline_root=str(root),
        enable_caching=not fresh,
        cache_root=str(root / ".kfp_cache"),
    )
    log = root / "logs" / f"{time.strftime('%Y-%m-%d-%H-%M-%S')}.log"
    print(f"running the pipeline; KFP's own log is {relative_path(log)}", flush=True)
    with KfpOutput(log), quoted_executable():
        task = autoformer(**parameters)
    outputs: dict[str, Any] = task.outputs
    return outputs


@contextlib.contextmanager
def quoted_executable() -> Iterator[None]:
    """Quote `sys.executable` for any folder name: kfp.local inserts it unquoted into a shell command."""
    executable = sys.executable
    sys.executable = shlex.quote(executable)
    try:
        yield
    finally:
        sys.executable = executable


def name_images(pipeline: Any, images: Mapping[str, str]) -> None:
    """Set the image of each step: `launcher`, without torch, for resolve_config; `training` for the others."""
    for name, executor in pipeline.pipeline_spec.deployment_spec["executors"].items():
        kind = "launcher" if name == "exec-resolve-config" else "training"
        executor["container"]["image"] = images[kind]


def name_sources(pipeline: Any) -> dict[str, str]:
    """Set the image of each step to a name with its `step_code`: code and package versions enter the cache key.

    Returns:
        Step -> `step_code`.
    """
    executors = pipeline.pipeline_spec.deployment_spec["executors"]
    codes = {step: step_code(step) for step in ("resolve_config", *STEPS)}
    for step, code in codes.items():
        image = f"autoformer-python:source-{code}"  # kfp.local warns if "python" is not in the name
        executors[f"exec-{step.replace('_', '-')}"]["container"]["image"] = image
    return codes


def _show(config: Config, results: dict[str, Any], seconds: float, run_id: str) -> None:
    paths = {name: Path(artifact.path) for name, artifact in results.items()}
    records = {step: read_json_as(StepRecord, paths[f"{step}_record"]) for step in STEPS}
    labels = [*read_chosen(paths["search"])]
    more = [
        ("wall time", f"{seconds / 60:.1f} min in all"),
        ("report", f"{relative_path(paths['evaluation'] / 'report.html')}"),
        *(
            (f"model{label and f', {label}'}", f"{relative_path(folder_of(paths['retrain'], label) / 'model')}")
            for label in labels
        ),
        ("model card", f"{relative_path(paths['registration'].with_name('model_card'))}"),
        ("MLflow", f"`make ui`, run {run_id}"),
        ("try it", f"make predict MODEL={model_of(config.section(RegisterModel).model_name, labels[-1])} IMAGE=path"),
    ]
    print(summary(config, paths, records, more))


if __name__ == "__main__":
    raise SystemExit(main())

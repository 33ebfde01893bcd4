"""Start the ranks of a step, one per GPU, and end with the message and exit code of the first failure.

`run_step` starts as many processes as there are GPUs (or `AUTOFORMER_PROCESSES`), after it has checked arguments and
configuration. A process that torchrun has started joins the others instead (`runtime.steps.rendezvous`).

The process that started the ranks reports a failure in one line: a rank writes its message and exit code (see
`runtime.common.exit_codes`) to a file below `AUTOFORMER_RANKS`, and prints nothing. Torch's agent ends the other ranks.
With `AUTOFORMER_MAX_RESTARTS=n` all ranks restart, at most n times, from the last checkpoint, but not after bad input.
Each of several machines starts its own ranks, which meet at the first machine (`Machine`). After a failure all machines
must be restarted together. The work folder and the output are on rank 0's machine; the others receive copies of the
checkpoints.
"""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from autoformer.cores import cores
from autoformer.errors import AutoFormerError, quantity
from autoformer.reading import read_json_as
from runtime.common.config import Config
from runtime.common.exit_codes import BAD_INPUT, LOST, UNAVAILABLE, JobFailed
from runtime.common.processes import REPORT_FOLDER, gpus, is_rank, number_in_environment
from runtime.common.records import Failure
from runtime.common.sections import TrainingSection
from runtime.common.stopping import SIGNALS
from runtime.steps.rendezvous import is_lost

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

GRACE_SECONDS = 30  # for a checkpoint; then a stopped rank is killed
MEETING_SECONDS = 900  # a machine's wait for the others, which may still pull their image
_STOP_CODES = tuple(code for number in SIGNALS for code in (128 + number, -number))


def processes(config: Config) -> int:
    """The number of processes of a step: torchrun's, `AUTOFORMER_PROCESSES`, or one per GPU that `device` allows.

    Raises:
        AutoFormerError: not a number, or more processes than GPUs.
    """
    if is_rank():
        return number_in_environment("WORLD_SIZE", 1)
    wanted = number_in_environment("AUTOFORMER_PROCESSES", 0)
    if config.device == "cpu":
        return wanted or 1
    if config.device not in ("auto", "cuda"):
        if wanted > 1:
            raise AutoFormerError(
                f"AUTOFORMER_PROCESSES = {wanted}: device = {config.device} is one device; set device to cuda or cpu"
            )
        return 1
    available = 0 if wanted == 1 else gpus()
    if wanted > available > 0:
        raise AutoFormerError(
            f"AUTOFORMER_PROCESSES = {wanted}: this machine has {available} GPUs, one for each process"
        )
    return wanted or max(1, available)


def check_batch_split(step: str, config: Config, count: int) -> None:
    """Raise `AutoFormerError` unless `count` ranks can share an optimiser step equally."""
    section = getattr(config, step)
    if not isinstance(section, TrainingSection):
        return
    passes = section.accumulation if isinstance(section.accumulation, int) else 1
    micro_batches, even = passes * count, 2 if section.augmentation.mixes else 1
    if section.batch_size % (micro_batches * even):
        what = (
            f"{passes} forward passes of each of {quantity(count, 'process')}"
            if passes > 1
            else quantity(count, "process")
        )
        raise AutoFormerError(
            f"{step}.batch_size = {section.batch_size}: not a multiple of {micro_batches * even}, for {what}"
            f"{' and pairs of images to mix' if even == 2 else ''}; choose another, or set AUTOFORMER_PROCESSES"
        )


class Machine(NamedTuple):
    """One of several machines that run a step together: its number from 0, their count, and the meeting address.

    `processes`: per machine. `job`: a name that only the machines of one job share.
    """

    number: int
    machines: int
    processes: int
    address: str
    port: int
    job: str

    @classmethod
    def of_environment(cls, job: str) -> Self:
        """This machine, from the environment that Kubeflow Trainer sets for torchrun."""
        names = ("NODE_RANK", "NNODES", "NPROC_PER_NODE", "MASTER_PORT")
        number, machines, processes, port = (number_in_environment(f"PET_{name}", -1) for name in names)
        address = os.environ.get("PET_MASTER_ADDR")
        if not (0 <= number < machines and processes > 0 and port > 0 and address):
            raise AutoFormerError(
                "the environment does not name the machine of a job this is; Kubeflow's Trainer sets PET_MASTER_ADDR, "
                + ", ".join(f"PET_{name}" for name in names)
            )
        return cls(number, machines, processes, address, port, job)


def launch(step: str, argv: Sequence[str], count: int) -> None:
    """Run `python -m components.<step>` with these arguments in `count` processes of this machine, and wait for them.

    Signals are forwarded to them, and each has `GRACE_SECONDS` to end. They also end if this process ends.

    Raises:
        JobFailed: the message and exit code of the first failure.
    """
    restarts = number_in_environment("AUTOFORMER_MAX_RESTARTS", 0)
    for restart in range(1, restarts + 2):
        try:
            _launch_once(step, argv, count)
            return
        except JobFailed as failed:
            if restart > restarts or failed.exit_code in (BAD_INPUT, *(128 + number for number in SIGNALS)):
                raise
            print(f"{step}: {failed}; starting again, {restart} of {restarts}", file=sys.stderr, flush=True)


def launch_on(machine: Machine, step: str, argv: Sequence[str]) -> None:
    """`launch` for the processes of one of several machines, without restarts. Every machine calls it."""
    try:
        _launch_once(step, argv, machine.processes, machine)
    except RuntimeError as error:
        if not is_lost(error):
            raise
        reason = " ".join(str(error).split()[:20])
        where = f"machine {machine.number} of {machine.machines}"
        raise JobFailed(f"{where} does not find the others ({reason})", LOST) from None


def as_only_rank_of(machine: Machine) -> contextlib.AbstractContextManager[None]:
    """A context in which this process is the only rank of its machine."""
    return _environment(
        {
            "RANK": str(machine.number),
            "WORLD_SIZE": str(machine.machines),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": machine.address,
            "MASTER_PORT": str(machine.port),
        }
    )


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    former = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


def _launch_once(step: str, argv: Sequence[str], count: int, machine: Machine | None = None) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are reported in our own line
    with tempfile.TemporaryDirectory(prefix="autoformer-ranks-") as folder:
        settings = LaunchConfig(
            **_meeting(machine),
            nproc_per_node=count,
            max_restarts=0,  # `launch` decides which failures justify a restart
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            shutdown_timeout=GRACE_SECONDS,
        )
        reports = Path(folder) / "reports"
        reports.mkdir()
        variables = {
            "OMP_NUM_THREADS": str(max(1, cores() // count)),
            # a container's host name may not resolve
            **({"GLOO_SOCKET_IFNAME": "lo"} if machine is None and sys.platform == "linux" else {}),
            **os.environ,
            REPORT_FOLDER: str(reports),
            "AUTOFORMER_RUNNER_PID": str(os.getpid()),
        }
        try:
            with _environment(variables):
                elastic_launch(settings, sys.executable)("-m", f"components.{step}", *argv)
        except ChildFailedError as error:
            ranks = count * (machine.machines if machine else 1)
            raise _failure(error.failures, read_reports(reports), ranks) from None
        except SignalException as error:
            _wait_for_children()
            stopped = f"stopped by {error.sigval.name}; the same command resumes from the last checkpoint"
            raise _reported(read_reports(reports)) or JobFailed(stopped, 128 + error.sigval) from None


def _meeting(machine: Machine | None) -> dict[str, Any]:
    """The rendezvous of the ranks: on this machine, or at the first of several machines, with fixed numbers."""
    if machine is None:
        here = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
        return {"min_nodes": 1, "max_nodes": 1, "run_id": uuid.uuid4().hex, **here}
    return {
        "min_nodes": machine.machines,
        "max_nodes": machine.machines,
        "run_id": machine.job,
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{machine.address}:{machine.port}",
        "rdzv_configs": {"rank": machine.number, "timeout": MEETING_SECONDS},
    }


def _failure(failures: "Mapping[int, ProcessFailure]", reports: Sequence[Failure], count: int) -> JobFailed:
    """Why the job has ended: bad input reported by a rank, else the first rank that was killed, else one that failed.

    Ranks that were stopped because of another have reported that, or were killed later.
    """
    for code in (BAD_INPUT, UNAVAILABLE):
        if failed := _reported([report for report in reports if report.code == code]):
            return failed
    first = {rank: failure for rank, failure in failures.items() if failure.exitcode not in (LOST, *_STOP_CODES)}
    killed = sorted((failure.timestamp, rank) for rank, failure in first.items() if failure.exitcode < 0)
    if killed:
        rank = killed[0][1]
        number = -first[rank].exitcode
        by = signal.Signals(number).name
        why = ", as where memory runs out" if number == signal.SIGKILL else ""
        return JobFailed(
            f"rank {rank} of {count} was killed by {by}{why}; the same command resumes from the last checkpoint",
            128 + number,
        )
    if first:
        return JobFailed(f"rank {min(first)} of {count} failed; its traceback is above", 1)
    lost = f"the {count} ranks have lost their connections to each other; the same command resumes"
    return _reported(reports) or JobFailed(lost, LOST)


def _reported(reports: Sequence[Failure]) -> JobFailed | None:
    """The first report of a cause; a lost connection is a consequence."""
    causes = (report for report in reports if report.code != LOST)
    return next((JobFailed(report.message, report.code) for report in causes), None)


def _wait_for_children() -> None:
    """Finish the agent's wait after a second signal has interrupted it; ignore further signals."""
    import psutil

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _, alive = psutil.wait_procs(psutil.Process().children(), timeout=GRACE_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def read_reports(folder: Path) -> list[Failure]:
    """The reports that ranks have written, in rank order."""
    return [read_json_as(Failure, file) for file in sorted(folder.glob("*.json"), key=lambda file: int(file.stem))]

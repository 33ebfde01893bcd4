"""Start the ranks of a step, one a GPU, and end with the line and the exit code of what went wrong first.

`run_step` starts as many processes as there are GPUs (or as `AUTOFORMER_PROCESSES` says), after it has checked
arguments and configuration. A process that torchrun has started, on this machine or on several, joins the others
(`runtime.steps.rendezvous`).

What went wrong is told in one line, once, by the process that was started first, with an exit code of
`runtime.common.exit_codes`: a rank writes its own line to a file below `AUTOFORMER_RANKS`, and prints nothing.
A rank that was killed is named, and the others, which wait for it, are ended by torch's agent. With
`AUTOFORMER_MAX_RESTARTS=n` all are started again, n times at most, and resume from the last checkpoint; bad input is
not tried twice. Of several machines each starts its own ranks, which meet at the first one (`Machine`); who starts
the machines again has to do so with all of them. Rank 0's machine has the work folder and the output; the others are
handed the checkpoints that they shall resume from.
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

from autoformer.errors import AutoFormerError
from autoformer.files import read_json
from runtime.common.config import Config, TrainingSection
from runtime.common.exit_codes import BAD_INPUT, LOST, UNAVAILABLE, JobFailed
from runtime.common.processes import REPORT_FOLDER, cores, gpus, is_rank, number_in_environment
from runtime.common.stopping import SIGNALS
from runtime.steps.rendezvous import is_lost

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


GRACE_SECONDS = 30  # for a checkpoint, after which a rank that was told to end is killed
MEETING_SECONDS = 900  # that a machine waits for the others, which may still pull their image


def processes(config: Config) -> int:
    """How many processes a step is: those that torchrun has started, `AUTOFORMER_PROCESSES`, or one for each GPU
    that `device` lets it take.

    Raises:
        AutoFormerError: one line: not a number, or more processes than GPUs.
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
    """Raise `AutoFormerError` unless `count` ranks can take equal parts of an optimiser step."""
    section = getattr(config, step)
    if not isinstance(section, TrainingSection):
        return
    passes = section.accumulation if isinstance(section.accumulation, int) else 1
    parts, even = passes * count, 2 if section.augmentation.mixes else 1
    if section.batch_size % (parts * even):
        what = f"{passes} forward passes of each of {count} processes" if passes > 1 else f"{count} processes"
        raise AutoFormerError(
            f"{step}.batch_size = {section.batch_size}: not a multiple of {parts * even}, for {what}"
            f"{' and pairs of images to mix' if even == 2 else ''}; choose another, or set AUTOFORMER_PROCESSES"
        )


class Machine(NamedTuple):
    """One of several machines that do a step together: its number from 0, how many there are, and where they meet.

    `processes`: of each machine. `job`: the same word on all of them, and another one for each job.
    """

    number: int
    machines: int
    processes: int
    address: str
    port: int
    job: str

    @classmethod
    def of_environment(cls, job: str) -> Self:
        """This one, as Kubeflow's Trainer tells torchrun of it. Raises `AutoFormerError` where it does not."""
        names = ("NODE_RANK", "NNODES", "NPROC_PER_NODE", "MASTER_PORT")
        number, machines, processes, port = (number_in_environment(f"PET_{name}", -1) for name in names)
        address = os.environ.get("PET_MASTER_ADDR")
        if not (0 <= number < machines and processes > 0 and port > 0 and address):
            raise AutoFormerError(
                "the environment does not say which machine of a job this is; Kubeflow's Trainer sets PET_MASTER_ADDR, "
                + ", ".join(f"PET_{name}" for name in names)
            )
        return cls(number, machines, processes, address, port, job)


def launch(step: str, argv: Sequence[str], count: int) -> None:
    """Run `python -m components.<step>` with these arguments in `count` processes of this machine, and wait for them.

    Signals are passed on to them, and each has `GRACE_SECONDS` to end. They end when this process is gone, too.

    Raises:
        JobFailed: the line and the exit code of what went wrong first.
    """
    restarts = number_in_environment("AUTOFORMER_MAX_RESTARTS", 0)
    for again in range(restarts + 1):
        try:
            _launch_once(step, argv, count)
        except JobFailed as fallen:
            if again == restarts or fallen.exit_code in (BAD_INPUT, *(128 + number for number in SIGNALS)):
                raise
            print(f"{step}: {fallen}; starting again, {again + 1} of {restarts}", file=sys.stderr, flush=True)
        else:
            return


def launch_on(machine: Machine, step: str, argv: Sequence[str]) -> None:
    """The same for the processes of one of several machines; the others must do so too. Without restarts.

    Raises:
        JobFailed: the line and the exit code of what went wrong first on this machine.
    """
    try:
        _launch_once(step, argv, machine.processes, machine)
    except RuntimeError as error:
        if not is_lost(error):
            raise
        reason = " ".join(str(error).split()[:20])
        where = f"machine {machine.number} of {machine.machines}"
        raise JobFailed(f"{where} does not find the others ({reason})", LOST) from None


@contextlib.contextmanager
def as_only_rank_of(machine: Machine) -> Iterator[None]:
    """While entered, this process is the one rank of its machine, and needs nobody to start it."""
    told = {
        "RANK": machine.number,
        "WORLD_SIZE": machine.machines,
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": machine.address,
        "MASTER_PORT": machine.port,
    }
    former = dict(os.environ)
    os.environ |= {name: str(value) for name, value in told.items()}
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
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what they say, one line will say
    with tempfile.TemporaryDirectory(prefix="autoformer-ranks-") as folder:
        settings = LaunchConfig(
            **(_meeting_here() if machine is None else _meeting_at(machine)),
            nproc_per_node=count,
            max_restarts=0,  # restarts are counted by the caller, which knows what is worth one
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            shutdown_timeout=GRACE_SECONDS,
        )
        told = Path(folder) / "told"
        told.mkdir()
        try:
            with _environment(told, count, alone=machine is None):
                elastic_launch(settings, sys.executable)("-m", f"components.{step}", *argv)
        except ChildFailedError as error:
            raise _fallen(error.failures, _read(told), count * (machine.machines if machine else 1)) from None
        except SignalException as error:
            _wait_for_children()
            raise _stopped(error.sigval, _read(told)) from None


def _meeting_here() -> dict[str, Any]:
    """How ranks of one machine find each other."""
    return {
        "min_nodes": 1,
        "max_nodes": 1,
        "run_id": uuid.uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "local_addr": "localhost",
    }


def _meeting_at(machine: Machine) -> dict[str, Any]:
    """How those of several machines do: at the first of them, each with the number that it was given."""
    return {
        "min_nodes": machine.machines,
        "max_nodes": machine.machines,
        "run_id": machine.job,
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{machine.address}:{machine.port}",
        "rdzv_configs": {"rank": machine.number, "timeout": MEETING_SECONDS},
    }


@contextlib.contextmanager
def _environment(told: Path, count: int, alone: bool) -> Iterator[None]:
    """What the ranks inherit. `alone`: all of them are on this machine."""
    former = dict(os.environ)
    os.environ |= {REPORT_FOLDER: str(told), "AUTOFORMER_RUNNER_PID": str(os.getpid())}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    if alone and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a container's own name need not resolve
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


_ENDED = tuple(code for number in SIGNALS for code in (128 + number, -number))


def _fallen(failures: "Mapping[int, ProcessFailure]", told: Sequence[Mapping[str, Any]], count: int) -> JobFailed:
    """Why the job has ended: bad input that a rank names, else a rank that was killed, else one that failed.

    Those that are ended for the sake of another have told so, or were killed after it.
    """
    for word in told:
        if word["code"] == BAD_INPUT:
            return JobFailed(str(word["message"]), BAD_INPUT)
    for word in told:
        if word["code"] == UNAVAILABLE:
            return JobFailed(str(word["message"]), UNAVAILABLE)
    first = {rank: failure for rank, failure in failures.items() if failure.exitcode not in (LOST, *_ENDED)}
    killed = sorted((failure.timestamp, rank) for rank, failure in first.items() if failure.exitcode < 0)
    if killed:
        rank = killed[0][1]
        number = -first[rank].exitcode
        by = signal.Signals(number).name
        why = ", as where memory runs out" if number == signal.SIGKILL else ""
        return JobFailed(
            f"rank {rank} of {count} was killed by {by}{why}; the same command goes on from the last checkpoint",
            128 + number,
        )
    if first:
        return JobFailed(f"rank {min(first)} of {count} failed; its traceback stands above", 1)
    for word in told:
        if word["code"] != LOST:
            return JobFailed(str(word["message"]), int(word["code"]))
    return JobFailed(f"the {count} ranks have lost their connections to each other; the same command goes on", LOST)


def _stopped(number: signal.Signals, told: Sequence[Mapping[str, Any]]) -> JobFailed:
    """What rank 0 says of a signal, which it has had from here."""
    for word in told:
        if word["code"] != LOST:
            return JobFailed(str(word["message"]), int(word["code"]))
    return JobFailed(f"stopped by {number.name}; the same command goes on from the last checkpoint", 128 + number)


def _wait_for_children() -> None:
    """A second signal has perhaps cut short the agent's waiting; a further one must not."""
    import psutil

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _, alive = psutil.wait_procs(psutil.Process().children(), timeout=GRACE_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _read(folder: Path) -> list[dict[str, Any]]:
    """What the ranks have told of their ends, in their order."""
    return [read_json(file) for file in sorted(folder.glob("*.json"), key=lambda file: int(file.stem))]

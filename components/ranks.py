"""Several processes that do one step together, one a GPU: how they are started, find each other, and end.

A step that can be shared calls `run_step(..., shared=True)` and works inside of `joined`:

    def run(arguments: argparse.Namespace, config: Config) -> None:
        with joined(config) as ranks:                       # ALONE where the step is one process
            scores = score(ranks.share(candidates))         # every rank its own
            everything = ranks.gather(scores)               # in the order of the ranks
            with open_step(STEP, arguments, config, ..., ranks=ranks) as opened:
                if ranks.leads: ...                         # rank 0 alone writes, logs and decides

`run_step` then starts as many processes as there are GPUs (or as `AUTOFORMER_PROCESSES` says), after it has checked
arguments and configuration. A process that torchrun has started, on this machine or on several, joins the others.
Ranks other than 0 print nothing, hold no lock, write no record and log to no run.

What went wrong is told in one line, once, by the process that was started first, with the exit code of
`components.cli`: a rank writes its own line to a file (`AUTOFORMER_RANKS` names the folder), and says nothing.
A rank that was killed is named, and the others, which wait for it, are ended by torch's agent. With
`AUTOFORMER_MAX_RESTARTS=n` all are started again, n times at most, and go on from the last checkpoint; bad input is
not tried twice. Of several machines each starts its own ranks, which meet at the first one (`Machine`); who starts
the machines again has to do so with all of them. Rank 0's machine has the work folder and the output; the others are
handed the checkpoints that they shall go on from.
"""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from autoformer.errors import AutoFormerError
from autoformer.files import hash_file, read_json, replacing
from autoformer.ranks import ALONE, Ranks
from components.config import Config, TrainingSection
from components.stopping import SIGNALS, Stopped, heard

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

FOLDER = "AUTOFORMER_RANKS"
GRACE_SECONDS = 30  # for a checkpoint, after which a rank that was told to end is killed
TIMEOUT = timedelta(minutes=30)  # of a word between ranks: longer than rank 0 scores or writes while others wait
MEETING_SECONDS = 900  # that a machine waits for the others, which may still pull their image
BAD_INPUT = 2
AWAY = 69  # exit code of a step that a server was away from; another start may succeed
LOST = 75  # exit code of a rank whose connection to another is gone
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's, that of Windows' subsystem, AMD's
_CHUNK_BYTES = 2**26  # of a file that rank 0 hands out
_SAYS_LOST = ("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe")


class Fallen(SystemExit):
    """The ranks have ended before their work was done: why, and the code of the process that has started them."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message, self.exit_code = message, code

    def __str__(self) -> str:
        return self.message


class LostRank(SystemExit):
    """Another rank is gone, or the network between. Whoever started the ranks knows which, and says so."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(LOST)
        self.ranks = ranks

    def __str__(self) -> str:
        return f"rank {self.ranks.rank} of {self.ranks.count} has lost its connection to the others"


def is_rank() -> bool:
    """Whether torchrun has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def leads() -> bool:
    """Whether this process speaks: rank 0, or one that is alone."""
    return os.environ.get("RANK", "0") == "0"


def machine_share() -> int:
    """How many ranks share this machine's cores with this one, itself counted."""
    return _number("LOCAL_WORLD_SIZE", 1)


def processes(config: Config) -> int:
    """How many processes a step is: those that torchrun has started, `AUTOFORMER_PROCESSES`, or one for each GPU
    that `device` lets it take.

    Raises:
        AutoFormerError: one line: not a number, or more processes than GPUs.
    """
    if is_rank():
        return _number("WORLD_SIZE", 1)
    wanted = _number("AUTOFORMER_PROCESSES", 0)
    if config.device == "cpu":
        return wanted or 1
    if config.device not in ("auto", "cuda"):
        if wanted > 1:
            raise AutoFormerError(
                f"AUTOFORMER_PROCESSES = {wanted}: device = {config.device} is one device; set device to cuda or cpu"
            )
        return 1
    gpus = 0 if wanted == 1 else _gpus()
    if wanted > gpus > 0:
        raise AutoFormerError(f"AUTOFORMER_PROCESSES = {wanted}: this machine has {gpus} GPUs, one for each process")
    return wanted or max(1, gpus)


def _gpus() -> int:
    """GPUs of this machine. Where it has no driver, torch is not imported to hear so: bad input is told at once."""
    if not any(Path(driver).exists() for driver in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_parts(step: str, config: Config, count: int) -> None:
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


@contextlib.contextmanager
def joined(config: Config) -> Iterator[Ranks]:
    """The ranks of this job, once all have come: NCCL between GPUs, gloo between CPUs. ALONE without torchrun.

    Raises:
        AutoFormerError: one line: no GPU for this rank, or the others are not found.
        LostRank: a rank is gone; after a second, so that the one that was first is seen first.
    """
    if not is_rank():
        yield ALONE
        return
    ranks = Ranks(_number("RANK", 0), _number("WORLD_SIZE", 1))
    if ranks.count == 1:
        yield ranks
        return
    import torch
    from torch import distributed

    torch.set_num_threads(_threads())
    try:
        store, rank, count = next(distributed.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]
        # torchrun keeps its store when it starts ranks again, and with it the addresses of the former ones
        start = f"start {_number('TORCHELASTIC_RESTART_COUNT', 0)}"
        store = distributed.PrefixStore(start, store)  # type: ignore[attr-defined]
        distributed.init_process_group(_backend(config), store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    except AutoFormerError:
        raise
    except (ValueError, RuntimeError) as error:
        if _is_lost(error):  # a machine that was lost meanwhile is no fault of this one's input
            raise LostRank(ranks) from None
        reason = " ".join(str(error).split()[:20])
        raise AutoFormerError(f"rank {ranks.rank} of {ranks.count} does not find the others ({reason})") from None
    try:
        yield ranks
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        time.sleep(1)
        number = heard()
        raise (LostRank(ranks) if number is None else Stopped(number)) from None
    distributed.destroy_process_group()


def _backend(config: Config) -> str:
    """What ranks talk through. What is said in Python goes through gloo in either case: no GPU waits for it."""
    import torch

    place = _number("LOCAL_RANK", 0)
    gpus = _gpus()
    if config.device == "cpu" or (config.device == "auto" and not gpus):
        return "gloo"
    if config.device not in ("auto", "cuda") or place >= gpus:
        raise AutoFormerError(
            f"device = {config.device}: rank {place} of this machine, which has {gpus} GPUs, needs one of its own; "
            "set device to cuda or cpu, or start fewer processes"
        )
    torch.cuda.set_device(place)  # from here on "cuda" is this one
    return "cpu:gloo,cuda:nccl"


def _is_lost(error: BaseException) -> bool:
    from torch import distributed

    return isinstance(error, distributed.DistError) or any(words in str(error).lower() for words in _SAYS_LOST)


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
        number, machines, processes, port = (_number(f"PET_{name}", -1) for name in names)
        address = os.environ.get("PET_MASTER_ADDR")
        if not (0 <= number < machines and processes > 0 and port > 0 and address):
            raise AutoFormerError(
                "the environment does not say which machine of a job this is; Kubeflow's Trainer sets PET_MASTER_ADDR, "
                + ", ".join(f"PET_{name}" for name in names)
            )
        return cls(number, machines, processes, address, port, job)


def hand_out(ranks: Ranks, file: Path) -> Path:
    """Let every machine have the file that rank 0 has at this path; the path. Every rank calls it.

    Among ranks of one machine, and where machines share the folder, there is nothing to do.
    """
    if machine_share() == ranks.count:
        return file
    wanted = ranks.broadcast(hash_file(file) if ranks.leads else "")
    lacks = _number("LOCAL_RANK", 0) == 0 and not (file.is_file() and hash_file(file) == wanted)
    if any(ranks.gather(lacks)):
        with replacing(file) if lacks else contextlib.nullcontext() as temporary:
            for chunk in _chunks(ranks, file):
                if temporary is not None:
                    with temporary.open("ab") as copy:
                        copy.write(chunk)
    ranks.gather(None)  # all machines have it
    return file


def _chunks(ranks: Ranks, file: Path) -> Iterator[bytes]:
    """The content of rank 0's file, for every rank."""
    with file.open("rb") if ranks.leads else contextlib.nullcontext() as opened:
        while chunk := ranks.broadcast(opened.read(_CHUNK_BYTES) if opened is not None else b""):
            yield chunk


def launch(step: str, argv: Sequence[str], count: int) -> None:
    """Run `python -m components.<step>` with these arguments in `count` processes of this machine, and wait for them.

    Signals are passed on to them, and each has `GRACE_SECONDS` to end. They end when this process is gone, too.

    Raises:
        Fallen: the line and the exit code of what went wrong first.
    """
    restarts = _number("AUTOFORMER_MAX_RESTARTS", 0)
    for again in range(restarts + 1):
        try:
            _launch_once(step, argv, count)
        except Fallen as fallen:
            if again == restarts or fallen.exit_code in (BAD_INPUT, *(128 + number for number in SIGNALS)):
                raise
            print(f"{step}: {fallen}; starting again, {again + 1} of {restarts}", file=sys.stderr, flush=True)
        else:
            return


def launch_on(machine: Machine, step: str, argv: Sequence[str]) -> None:
    """The same for the processes of one of several machines; the others must do so too. Without restarts.

    Raises:
        Fallen: the line and the exit code of what went wrong first on this machine.
    """
    try:
        _launch_once(step, argv, machine.processes, machine)
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        reason = " ".join(str(error).split()[:20])
        where = f"machine {machine.number} of {machine.machines}"
        raise Fallen(f"{where} does not find the others ({reason})", LOST) from None


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
    os.environ |= {FOLDER: str(told), "AUTOFORMER_RUNNER_PID": str(os.getpid())}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    if alone and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a container's own name need not resolve
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


def _fallen(failures: "Mapping[int, ProcessFailure]", told: Sequence[Mapping[str, Any]], count: int) -> Fallen:
    """Why the job has ended: bad input that a rank names, else a rank that was killed, else one that failed.

    Those that are ended for the sake of another have told so, or were killed after it.
    """
    for word in told:
        if word["code"] == BAD_INPUT:
            return Fallen(str(word["message"]), BAD_INPUT)
    for word in told:
        if word["code"] == AWAY:
            return Fallen(str(word["message"]), AWAY)
    first = {rank: failure for rank, failure in failures.items() if failure.exitcode not in (LOST, *_ENDED)}
    killed = sorted((failure.timestamp, rank) for rank, failure in first.items() if failure.exitcode < 0)
    if killed:
        rank = killed[0][1]
        number = -first[rank].exitcode
        by = signal.Signals(number).name
        why = ", as where memory runs out" if number == signal.SIGKILL else ""
        return Fallen(
            f"rank {rank} of {count} was killed by {by}{why}; the same command goes on from the last checkpoint",
            128 + number,
        )
    if first:
        return Fallen(f"rank {min(first)} of {count} failed; its traceback stands above", 1)
    for word in told:
        if word["code"] != LOST:
            return Fallen(str(word["message"]), int(word["code"]))
    return Fallen(f"the {count} ranks have lost their connections to each other; the same command goes on", LOST)


_ENDED = tuple(code for number in SIGNALS for code in (128 + number, -number))


def _stopped(number: signal.Signals, told: Sequence[Mapping[str, Any]]) -> Fallen:
    """What rank 0 says of a signal, which it has had from here."""
    for word in told:
        if word["code"] != LOST:
            return Fallen(str(word["message"]), int(word["code"]))
    return Fallen(f"stopped by {number.name}; the same command goes on from the last checkpoint", 128 + number)


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


def _threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else max(1, cores() // machine_share())


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(name: str, otherwise: int) -> int:
    """A whole number of the environment."""
    text = os.environ.get(name)
    if text is None:
        return otherwise
    if not text.isdecimal():
        raise AutoFormerError(f"{name} = {text}: expected a whole number, 0 or more")
    return int(text)

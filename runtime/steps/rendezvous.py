"""The process group of a step's ranks.

A step that several ranks share calls `run_step(..., shared=True)` and works inside of `process_group`:

    def run(arguments: argparse.Namespace, config: Config) -> None:
        with process_group(config) as world:           # SINGLE_PROCESS without torchrun
            scores = score(world.shard(candidates))    # each rank its own
            everything = world.all_gather(scores)      # in the order of the ranks
            with open_step(STEP, arguments, config, ..., world=world) as opened:
                if world.is_rank_zero: ...             # only rank 0 writes, logs and decides

Other ranks print nothing, hold no lock, write no record and log to no run.
"""

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from autoformer.distributed import SINGLE_PROCESS, World
from autoformer.errors import AutoFormerError
from autoformer.files import hash_file, replacing
from runtime.common.config import Config
from runtime.common.exit_codes import LOST, JobFailed
from runtime.common.processes import (
    gpus,
    is_rank,
    number_in_environment,
    ranks_on_machine,
    set_threads,
    threads_of_rank,
)
from runtime.common.stopping import Stopped, received_signal

TIMEOUT = timedelta(minutes=30)  # of a collective: longer than rank 0 ever scores or writes
_CHUNK_BYTES = 2**26  # of a broadcast file
_LOST_MESSAGES = ("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe")


@contextlib.contextmanager
def process_group(config: Config) -> Iterator[World]:
    """Join the process group of this step: NCCL between GPUs, gloo between CPUs. `SINGLE_PROCESS` without torchrun.

    Raises:
        AutoFormerError: there is no GPU for this rank, or it does not find the others.
        JobFailed: another rank has ended, or the network failed. Raised after a second, so that the rank that failed
            first ends first, and is the one that is reported.
    """
    if not is_rank():
        yield SINGLE_PROCESS
        return
    world = World(number_in_environment("RANK", 0), number_in_environment("WORLD_SIZE", 1))
    if world.size == 1:
        yield world
        return
    from torch import distributed

    lost = JobFailed(f"rank {world.rank} of {world.size} has lost its connection to the others", LOST)
    set_threads(threads_of_rank())
    try:
        store, rank, count = next(distributed.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]
        # after a restart of the ranks, torchrun's store still has the addresses of the former ones
        start = f"start {number_in_environment('TORCHELASTIC_RESTART_COUNT', 0)}"
        store = distributed.PrefixStore(start, store)  # type: ignore[attr-defined]
        distributed.init_process_group(_backend(config), store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    except AutoFormerError:
        raise
    except (ValueError, RuntimeError) as error:
        if is_lost(error):  # caused by the loss of another machine, not by input
            raise lost from None
        reason = " ".join(str(error).split()[:20])
        raise AutoFormerError(f"rank {world.rank} of {world.size} does not find the others ({reason})") from None
    try:
        yield world
    except RuntimeError as error:
        if not is_lost(error):
            raise
        time.sleep(1)
        number = received_signal()
        raise (lost if number is None else Stopped(number)) from None
    distributed.destroy_process_group()


def _backend(config: Config) -> str:
    """The backend of collectives. Python objects always use gloo, for which no GPU waits."""
    import torch

    local_rank, available = number_in_environment("LOCAL_RANK", 0), gpus()
    if config.device == "cpu" or (config.device == "auto" and not available):
        return "gloo"
    if config.device not in ("auto", "cuda") or local_rank >= available:
        raise AutoFormerError(
            f"device = {config.device}: rank {local_rank} of this machine, which has {available} GPUs, needs one of "
            "its own; set device to cuda or cpu, or start fewer processes"
        )
    torch.cuda.set_device(local_rank)  # "cuda" now means this GPU
    return "cpu:gloo,cuda:nccl"


def is_lost(error: BaseException) -> bool:
    """Whether an error of a collective is a lost connection."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or any(words in str(error).lower() for words in _LOST_MESSAGES)


def copy_to_all_machines(world: World, file: Path) -> Path:
    """Copy rank 0's file to the same path on every machine that lacks it; return the path. Collective."""
    if ranks_on_machine() == world.size:
        return file
    wanted = world.broadcast(hash_file(file) if world.is_rank_zero else "")
    lacks = number_in_environment("LOCAL_RANK", 0) == 0 and not (file.is_file() and hash_file(file) == wanted)
    if any(world.all_gather(lacks)):
        with replacing(file) if lacks else contextlib.nullcontext() as temporary:
            for chunk in _broadcast_chunks(world, file):
                if temporary is not None:
                    with temporary.open("ab") as copy:
                        copy.write(chunk)
    world.all_gather(None)  # all machines have it
    return file


def _broadcast_chunks(world: World, file: Path) -> Iterator[bytes]:
    with file.open("rb") if world.is_rank_zero else contextlib.nullcontext() as opened:
        while chunk := world.broadcast(opened.read(_CHUNK_BYTES) if opened is not None else b""):
            yield chunk

"""Ranks that communicate through gloo, forked from a server that has imported torch, so that they start quickly."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import Event, ForkServerProcess, ended, fork_server, start


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def as_torchrun(rank: int, count: int, port: int) -> Iterator[None]:
    """The environment of a rank under torchrun."""
    given = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": 1,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, str(value))
        yield


def start_ranks(
    step: str, given: dict[str, str], log: Path, events: Mapping[int, Sequence[Event]] | None = None, count: int = 2
) -> list[ForkServerProcess]:
    """A step in so many ranks; what rank r prints is in `log` with its number. `events`: by rank."""
    port, started = free_port(), []
    for rank in range(count):
        with as_torchrun(rank, count, port):
            started.append(start(step, given, log.with_name(f"{log.name}{rank}"), *(events or {}).get(rank, ())))
    return started


def run_ranks(
    step: str, given: dict[str, str], log: Path, events: Mapping[int, Sequence[Event]] | None = None, count: int = 2
) -> list[int]:
    """The exit codes of the ranks."""
    return [ended(process) for process in start_ranks(step, given, log, events, count)]


def call_together(function: Callable[..., None], *arguments: object, count: int = 2) -> None:
    """Call a function of a test's module in so many ranks that have found each other."""
    port, started = free_port(), []
    for rank in range(count):
        process = fork_server().Process(target=_call, args=(rank, count, port, function, arguments))
        process.start()
        started.append(process)
    assert [ended(process) for process in started] == [0] * count


def _call(rank: int, count: int, port: int, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    from run_steps import config_of

    from runtime.common.config import load_config
    from runtime.steps.rendezvous import process_group

    with as_torchrun(rank, count, port), process_group(load_config(config_of("train_supernet"), steps=[])) as world:
        function(world, *arguments)
    os._exit(0)

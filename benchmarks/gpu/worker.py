"""The measuring process: it describes its device, runs the parts that it receives, and sends their results."""

import os
import time
from multiprocessing.connection import Connection
from pkgutil import resolve_name

import torch

from autoformer.devices import find_device

PARTS = {  # each takes a `Recorder`; imported when its turn comes
    "parity": "benchmarks.gpu.parity:parity",
    "speed": "benchmarks.gpu.speed:speed",
    "supernet": "benchmarks.gpu.speed:changing",
    "compile": "benchmarks.gpu.speed:compiling",
    "scoring": "benchmarks.gpu.throughput:scoring",
    "epoch": "benchmarks.gpu.throughput:epoch",
    "resume": "benchmarks.gpu.resume:resume",
}
THREADS = 2  # of a CPU that is itself measured


def work(connection: Connection, device_name: str, size_name: str) -> None:
    os.setsid()  # so that `Check` can kill all that this process starts
    os.dup2(2, 1)  # prints of libraries go to standard error
    device = find_device(device_name)
    from benchmarks.gpu.recorder import FULL, TINY, Recorder  # not before the device is found, for it takes seconds

    on_gpu = device.type == "cuda"
    size = size_name if size_name != "auto" else "full" if on_gpu else "tiny"
    described: dict[str, object] = {
        "device": str(device),
        "torch_cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }
    if on_gpu:
        if device.index is not None:
            torch.cuda.set_device(device)
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cudnn": torch.backends.cudnn.version(),
        }
    else:
        torch.set_num_threads(min(THREADS, torch.get_num_threads()))
        described["threads"] = torch.get_num_threads()

    def send(kind: str, content: object) -> None:
        connection.send((kind, content))

    send("ready", described | {"size": size})
    while True:
        try:
            part, seconds = connection.recv()
        except EOFError:  # the check has ended
            return
        recorder = Recorder(device, FULL if size == "full" else TINY, time.monotonic() + seconds, send)
        with recorder.attempt(part):
            resolve_name(PARTS[part])(recorder)
        send("done", not recorder.failed)

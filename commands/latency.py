"""Measure a latency table on this machine, which predicts the latency of any subnet of a space.

    python -m commands.latency --space fashion-mnist --out latency.json

`search_subnet.latency.table` names the file; the search then keeps to `limits.max_latency_ms`.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from autoformer.errors import AutoFormerError, quantity
from autoformer.files import check_writable, write_json
from autoformer.latency import AT_REST, Clock, LatencyTable
from autoformer.named import file_of_space, load_space
from autoformer.recipe import Dtype
from autoformer.space import SearchSpace
from autoformer.subnet_text import shape_text
from components.register_model.latency import cpu_name
from runtime.common.console import Parser, Progress, check_apart, positive, print_line, run_command
from runtime.common.processes import set_threads

if TYPE_CHECKING:
    import torch

    from autoformer.part_times import Timer, Work

COMMAND = "latency"
MOST_ERROR_PERCENT = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.latency", description="Measure a table of latencies on this machine.")
    parser.add_argument("--space", required=True, help="a file of configs/spaces/ by name, or the path of one")
    parser.add_argument("--classes", type=positive, help="of your data set (default: the space's)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    parser.add_argument("--batch", type=positive, default=1, help="images of a forward pass (%(default)s)")
    parser.add_argument("--threads", type=positive, help="of the CPU (default: torch's own number)")
    parser.add_argument("--precision", choices=get_args(Dtype), default="float32", help="(%(default)s)")
    parser.add_argument("--rounds", type=positive, default=20, help="measurements of each part (%(default)s)")
    parser.add_argument(
        "--check", type=int, default=20, help="whole random subnets to compare the predictions with (%(default)s)"
    )

    def work(arguments: argparse.Namespace) -> None:
        table = measure(arguments, _space(arguments))
        write_json(arguments.out, table.model_dump(mode="json"))
        for line in summary(table):
            print_line(line)
        print_line(f"{COMMAND}: wrote {arguments.out}; set search_subnet.latency.table to it")

    return run_command(COMMAND, parser, work, argv, after="")


def _space(arguments: argparse.Namespace) -> SearchSpace:
    if arguments.check < 0:
        raise AutoFormerError(f"--check {arguments.check}: expected a whole number, 0 or more")
    if arguments.out.is_dir() or not arguments.out.absolute().parent.is_dir():
        raise AutoFormerError(f"--out {arguments.out}: expected a file in a folder that exists")
    check_writable(arguments.out)
    space = load_space(arguments.space)
    check_apart([arguments.out], file_of_space(arguments.space))
    return space.model_copy(update={"num_classes": arguments.classes}) if arguments.classes else space


def measure(arguments: argparse.Namespace, space: SearchSpace) -> LatencyTable:
    import torch

    from autoformer.devices import find_device
    from autoformer.part_times import measure_table

    device = find_device(arguments.device)
    set_threads(arguments.threads)
    on_cpu = device.type == "cpu"
    threads = torch.get_num_threads() if on_cpu else None
    clock, timer = clock_of(device, threads)
    shape = (arguments.batch, space.in_channels, space.image_size, space.image_size)
    images = torch.zeros(shape, device=device, dtype=getattr(torch, arguments.precision))
    with Progress(f"{COMMAND}: rounds", arguments.rounds, "rounds") as bar:
        return measure_table(
            space, images, timer, arguments.rounds, arguments.check, watch=bar.update,
            device=_name(device), threads=threads, clock=clock, torch=torch.__version__,
        )  # fmt: skip


def _name(device: "torch.device") -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name() if device.type == "cpu" else f"MPS of {cpu_name()}"


def clock_of(device: "torch.device", threads: int | None) -> tuple[Clock, "Timer"]:
    """The clock for a device: on one CPU thread the process's CPU time, which other programs do not increase."""
    import torch

    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(device)

        def cuda_timer(work: "Work") -> float:
            torch.cuda.synchronize(device)
            start.record(stream)
            work()
            end.record(stream)
            end.synchronize()
            return float(start.elapsed_time(end))

        return "CUDA events", cuda_timer

    now = time.process_time if threads == 1 else time.perf_counter

    def timer(work: "Work") -> float:
        begin = now()
        work()
        if device.type == "mps":
            torch.mps.synchronize()
        return 1000 * (now() - begin)

    return "processor time" if threads == 1 else "wall time", timer


def summary(table: LatencyTable) -> list[str]:
    low, high = table.extremes(table.space)
    error = table.median_error_percent
    lines = [
        f"{COMMAND}: {table.conditions}; median of {quantity(table.rounds, 'round')}, {table.clock}",
        f"{COMMAND}: {quantity(len(table.blocks), 'block')}; subnets of '{table.space.name}' take {low:.3g} to "
        f"{high:.3g} ms",
    ]
    if table.check:
        lines += [f"{COMMAND}: {'whole subnet':<64}{'predicted':>12}{'measured':>12}{'error':>9}"]
        lines += [
            f"{COMMAND}: {shape_text(one.subnet):<64}{one.predicted_ms:>9.3f} ms{one.measured_ms:>9.3f} ms"
            f"{one.error_percent:>7.1f} %"
            for one in sorted(table.check, key=lambda one: one.measured_ms)
        ]
        worst = max(one.error_percent for one in table.check)
        lines += [f"{COMMAND}: median error {error:.1f} %, largest {worst:.1f} %"]
    if error is not None and error > MOST_ERROR_PERCENT:
        lines += [f"{COMMAND}: this is too much for a limit; {AT_REST}, or with more --rounds"]
    return lines


if __name__ == "__main__":
    raise SystemExit(main())

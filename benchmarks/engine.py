"""How fast the models run, as ratios in one process against things outside this project.

    python -m benchmarks.engine [--quick] [--profile] [--json FILE]

For the published subnets of the spaces T and S, forward passes and whole training steps (forward, loss, backward, fused
AdamW, zero_grad):

supernet    The subnet inside the supernet, against the same subnet extracted.
timm        The extracted subnet against a static timm `VisionTransformer` of the same shape. Its blocks are timm's own
            `Block` with timm's own `Attention`, made with this block's heads, head width and MLP ratio: the very same
            matrix products, less the relative position.
GEMM        The matrix products of that twin alone, by torch, into memory that is there already: the limit of any
            implementation that runs them one after the other. A step has three times those of a forward pass. What
            relative position costs is not part of the limit.
memory      The most memory of a training step, with activation checkpointing and without.

All runs of a comparison take turns within a round. A ratio is the median over rounds of the ratio within a round.
Here it runs on the CPU in float32; `benchmarks.gpu` runs the same on a GPU and in bfloat16 (`Setting`).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from autoformer.files import write_json
from autoformer.named import load_space, load_subnet
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet
from benchmarks.rows import Row, interleaved, measured, ratio, table

THREADS = 2
SUBNETS = {"T": "autoformer-tiny", "S": "autoformer-small"}
LEAST_GEMM_PERCENT = {"T": 50.0, "S": 75.0}
MOST = {("supernet", "forward"): 1.05, ("supernet", "step"): 1.10, ("timm", "forward"): 1.25, ("timm", "step"): 1.35}
Kind = Literal["forward", "step"]
KINDS: tuple[Kind, ...] = ("forward", "step")
Run = Callable[[], object]


class Setting(NamedTuple):
    """Where models run, and in which type: below float32 by autocast over float32 weights, as they are trained."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


CPU = Setting()


class Models(NamedTuple):
    """One subnet in three forms. Each is called with images (B, 3, S, S)."""

    space: SearchSpace
    spec: SubnetSpec
    supernet: Supernet
    extracted: nn.Module
    twin: nn.Module


def make_models(subnet: str) -> Models:
    named = load_subnet(subnet)
    return models_of(load_space(named.space), named.subnet)


def models_of(space: SearchSpace, spec: SubnetSpec, device: torch.device = CPU.device) -> Models:
    torch.manual_seed(0)
    supernet, twin = Supernet(space).to(device), make_twin(space, spec).to(device)
    return Models(space, spec, supernet, supernet.extract(spec), twin)


def make_twin(space: SearchSpace, spec: SubnetSpec) -> VisionTransformer:
    """timm's static vision transformer of the subnet's shape, without relative position."""
    numbers = iter(range(spec.depth))

    def block(dim: int, **_: Any) -> Block:
        number = next(numbers)
        made = Block(dim, num_heads=1, mlp_ratio=spec.hidden_dim(number) / dim, qkv_bias=True)
        made.attn = Attention(dim, spec.num_heads[number], qkv_bias=True, attn_head_dim=space.head_dim)
        return made

    return VisionTransformer(
        img_size=space.image_size, patch_size=space.patch_size, embed_dim=spec.embed_dim, depth=spec.depth,
        num_heads=1, num_classes=space.num_classes, global_pool="avg", fc_norm=False, block_fn=block,
    )  # fmt: skip


# --- runs ---


def runs(models: Models, batch: int, kind: Kind, setting: Setting = CPU) -> dict[str, Run]:
    """What is timed, by name: the three models, and the matrix products."""
    images, labels = random_batch(models.space, batch, setting.device)
    made: dict[str, Run] = {}
    for name, model, call in (
        ("supernet", models.supernet, lambda x: models.supernet(x, models.spec)),
        ("extracted", models.extracted, models.extracted),
        ("timm", models.twin, models.twin),
    ):
        if kind == "step":
            made[name] = training_step(model, call, images, labels, setting)
        else:
            made[name] = forward(model, call, images, setting)
    return made | {"GEMM": gemms(models.space, models.spec, batch, kind, setting)}


def random_batch(space: SearchSpace, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same images (B, C, S, S) and labels (B,) each time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, space.in_channels, space.image_size, space.image_size, generator=generator)
    return images.to(device), torch.randint(0, space.num_classes, (batch,), generator=generator).to(device)


def forward(model: nn.Module, call: Callable[[Tensor], Tensor], images: Tensor, setting: Setting = CPU) -> Run:
    def run() -> None:
        model.eval()
        with torch.inference_mode(), setting.autocast():
            call(images)

    return run


def training_step(
    model: nn.Module, call: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, setting: Setting = CPU
) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        model.train()
        with setting.autocast():
            loss = F.cross_entropy(call(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


class Product(NamedTuple):
    """`times` products of (m, k) and (k, n)."""

    times: int
    m: int
    k: int
    n: int

    @property
    def backward(self) -> tuple["Product", "Product"]:
        """The gradients of both factors."""
        return Product(self.times, self.m, self.n, self.k), Product(self.times, self.k, self.m, self.n)


def products(space: SearchSpace, spec: SubnetSpec, batch: int) -> Iterator[Product]:
    """Those of a forward pass of the subnet without relative position, in their order."""
    tokens, embed, dim = space.num_patches + 1, spec.embed_dim, space.head_dim
    yield Product(1, batch * space.num_patches, space.in_channels * space.patch_size**2, embed)
    for number, heads in enumerate(spec.num_heads):
        width, hidden = heads * dim, spec.hidden_dim(number)
        yield Product(1, batch * tokens, embed, 3 * width)
        yield Product(batch * heads, tokens, dim, tokens)
        yield Product(batch * heads, tokens, tokens, dim)
        yield Product(1, batch * tokens, width, embed)
        yield Product(1, batch * tokens, embed, hidden)
        yield Product(1, batch * tokens, hidden, embed)
    yield Product(1, batch, embed, space.num_classes)


def gemms(space: SearchSpace, spec: SubnetSpec, batch: int, kind: Kind, setting: Setting = CPU) -> Run:
    """The matrix products of a forward pass, or of a step, and nothing else, in the setting's type."""
    wanted = list(products(space, spec, batch))
    if kind == "step":
        wanted += [gradient for product in wanted for gradient in product.backward][1:]  # images need none
    places: dict[Product, tuple[Tensor, Tensor, Tensor]] = {}
    for product in wanted:
        if product not in places:
            times, m, k, n = product
            right = _normal(setting, times, n, k).transpose(1, 2)  # as `F.linear` has it
            places[product] = _normal(setting, times, m, k), right, _normal(setting, times, m, n)

    def run() -> None:
        with torch.inference_mode():
            for product in wanted:
                left, right, out = places[product]
                if product.times == 1:
                    torch.mm(left[0], right[0], out=out[0])
                else:
                    torch.bmm(left, right, out=out)

    return run


def _normal(setting: Setting, *shape: int) -> Tensor:
    return torch.randn(shape, device=setting.device, dtype=setting.dtype)


# --- figures ---


def measure(quick: bool = False, threads: int = THREADS) -> dict[str, Any]:
    """Rows, and the median seconds that they come from."""
    torch.set_num_threads(threads)
    batch, rounds = (1, 2) if quick else (16, 7)
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    for letter, subnet in SUBNETS.items():
        if quick and letter != "T":
            continue
        models = make_models(subnet)
        for kind in KINDS:
            taken = interleaved(runs(models, batch, kind), rounds, time.perf_counter)
            rows += _rows(letter, kind, taken)
            seconds |= {f"{letter} {kind} {name}": statistics.median(each) for name, each in taken.items()}
        rows += _memory_rows(letter, models, batch)
    return measured(rows, threads=threads, batch_size=batch, rounds=rounds, seconds=seconds)


def _rows(letter: str, kind: Kind, taken: dict[str, list[float]]) -> list[Row]:
    return [
        Row(
            f"{letter} {kind}: subnet in the supernet / extracted",
            ratio(taken["supernet"], taken["extracted"]), "x", MOST["supernet", kind],
        ),
        Row(
            f"{letter} {kind}: extracted / timm's static ViT",
            ratio(taken["extracted"], taken["timm"]), "x", MOST["timm", kind],
            note="timm has no relative position",
        ),
        Row(
            f"{letter} {kind}: share of the GEMM limit",
            100 * ratio(taken["GEMM"], taken["extracted"]), "%",
            LEAST_GEMM_PERCENT[letter] if kind == "forward" else None, "at least",
            note="products of the model without relative position",
        ),
        Row(f"{letter} {kind}: timm's share of it", 100 * ratio(taken["GEMM"], taken["timm"]), "%"),
    ]  # fmt: skip


def _memory_rows(letter: str, models: Models, batch: int) -> list[Row]:
    extracted = models.extracted
    assert isinstance(extracted, VisionTransformer)
    peaks = []
    for checkpointing in (False, True):
        extracted.set_grad_checkpointing(checkpointing)
        peaks.append(peak_bytes(runs(models, batch, "step")["extracted"]))
    extracted.set_grad_checkpointing(False)
    return [
        Row(f"{letter} step: most memory", peaks[0] / 2**20, "MiB", note="allocated within a step"),
        Row(f"{letter} step: with activation checkpointing", peaks[1] / peaks[0], "x", note="of that memory"),
    ]


def peak_bytes(run: Run, device: torch.device = CPU.device) -> int:
    """The most memory of the device that a run holds at a time beyond what was there before it."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def profile_table(letter: str, kind: Kind, batch: int = 16, rows: int = 20) -> str:
    """torch's own table of where the time of the extracted subnet goes."""
    run = runs(make_models(SUBNETS[letter]), batch, kind)["extracted"]
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    return str(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=50))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images, few rounds, T alone: to see that it runs")
    parser.add_argument("--profile", action="store_true", help="show where the time goes instead")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(argv)
    if arguments.profile:
        torch.set_num_threads(arguments.threads)
        for letter in ["T"] if arguments.quick else SUBNETS:
            for kind in KINDS:
                print(f"{letter} {kind}\n{profile_table(letter, kind, batch=2 if arguments.quick else 16)}")
        return 0
    result = measure(arguments.quick, arguments.threads)
    print(table(result["rows"]))
    if arguments.json:
        write_json(arguments.json, result)
    print(json.dumps({key: result[key] for key in ("threads", "batch_size", "rounds")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

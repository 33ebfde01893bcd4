"""Forward passes and training steps of the published subnets T and S, as ratios within one process.

A training step is forward, loss, backward, fused AdamW and zero_grad. The extracted subnet is compared with

supernet    itself inside the supernet.
timm        a static `VisionTransformer` of timm's own blocks with the same heads, head widths and MLP ratios. Its
            matrix products are the subnet's, less the relative position.
GEMM        those products alone, by torch, into allocated memory: the limit of any implementation that runs them one
            after the other. A step has three times those of a forward pass.

Here it runs on the CPU in float32; `benchmarks.gpu` runs the same on a GPU and in bfloat16.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from autoformer.named import load_space, load_subnet
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet
from autoformer.vit import AutoFormer
from benchmarks.rows import Row, interleaved, measured, ratio

THREADS = 2
SUBNETS = {"T": "autoformer-tiny", "S": "autoformer-small", "B": "autoformer-base"}
MIN_GEMM_PERCENT = {"T": 50.0, "S": 75.0}
MAX_TO_EXTRACTED, MAX_TO_TIMM = {"forward": 1.05, "step": 1.10}, {"forward": 1.25, "step": 1.35}
Kind = Literal["forward", "step"]
KINDS: tuple[Kind, ...] = ("forward", "step")
Run = Callable[[], object]


class Case(NamedTuple):
    """A search space, and a subnet of it."""

    space: SearchSpace
    spec: SubnetSpec


def published(letter: str) -> Case:
    named = load_subnet(SUBNETS[letter])
    return Case(load_space(named.space), named.subnet)


class Setting(NamedTuple):
    """Device and type. Types below float32 mean autocast over float32 weights, as in training."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


CPU = Setting()


class Models(NamedTuple):
    """One subnet in three forms. Each takes images (B, C, S, S)."""

    case: Case
    supernet: Supernet
    extracted: AutoFormer
    twin: VisionTransformer


def models_of(case: Case, device: torch.device = CPU.device) -> Models:
    torch.manual_seed(0)
    supernet, twin = Supernet(case.space).to(device), make_twin(*case).to(device)
    return Models(case, supernet, supernet.extract(case.spec), twin)


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
    """The runs that are compared, by name: the three models and the matrix products."""
    images, labels = random_batch(models.case.space, batch, setting.device)

    def run_of(model: nn.Module, call: Callable[[Tensor], Tensor] | None = None) -> Run:
        def forward() -> None:
            model.eval()
            with torch.inference_mode(), setting.autocast():
                (call or model)(images)

        return training_step(model, images, labels, setting, call) if kind == "step" else forward

    return {
        "supernet": run_of(models.supernet, lambda x: models.supernet(x, models.case.spec)),
        "extracted": run_of(models.extracted),
        "timm": run_of(models.twin),
        "GEMM": gemms(*models.case, batch, kind, setting),
    }


def random_batch(space: SearchSpace, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same images (B, C, S, S) and labels (B,) each time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, space.in_channels, space.image_size, space.image_size, generator=generator)
    return images.to(device), torch.randint(0, space.num_classes, (batch,), generator=generator).to(device)


def training_step(
    model: nn.Module, images: Tensor, labels: Tensor, setting: Setting, call: Callable[[Tensor], Tensor] | None = None
) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        model.train()
        with setting.autocast():
            loss = F.cross_entropy((call or model)(images).float(), labels)
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


def products(space: SearchSpace, spec: SubnetSpec, batch: int, kind: Kind) -> list[Product]:
    """The products of the subnet's forward pass without relative position; for a step also those of the gradients."""
    tokens, embed, dim = space.num_patches + 1, spec.embed_dim, space.head_dim
    every = [Product(1, batch * space.num_patches, space.in_channels * space.patch_size**2, embed)]
    for number, heads in enumerate(spec.num_heads):
        width, hidden = heads * dim, spec.hidden_dim(number)
        every += [
            Product(1, batch * tokens, embed, 3 * width),
            Product(batch * heads, tokens, dim, tokens),
            Product(batch * heads, tokens, tokens, dim),
            Product(1, batch * tokens, width, embed),
            Product(1, batch * tokens, embed, hidden),
            Product(1, batch * tokens, hidden, embed),
        ]
    every.append(Product(1, batch, embed, space.num_classes))
    if kind == "step":
        gradients = [each for t, m, k, n in every for each in (Product(t, m, n, k), Product(t, k, m, n))]
        every += gradients[1:]  # images need none
    return every


def gemms(space: SearchSpace, spec: SubnetSpec, batch: int, kind: Kind, setting: Setting = CPU) -> Run:
    """A run of only the matrix products of a forward pass or a step."""
    every, tensors = products(space, spec, batch, kind), {}
    random = partial(torch.randn, device=setting.device, dtype=setting.dtype)
    for times, m, k, n in dict.fromkeys(every):
        right = random(times, n, k).transpose(1, 2)  # as `F.linear` has it
        tensors[times, m, k, n] = random(times, m, k), right, random(times, m, n)

    def run() -> None:
        with torch.inference_mode():
            for product in every:
                left, right, out = tensors[product]
                if product.times == 1:
                    torch.mm(left[0], right[0], out=out[0])
                else:
                    torch.bmm(left, right, out=out)

    return run


# --- figures ---


def measure(quick: bool = False) -> dict[str, Any]:
    """The rows, and the measured seconds."""
    torch.set_num_threads(THREADS)
    batch, rounds = (1, 2) if quick else (16, 7)
    rows: list[Row] = []
    seconds: dict[str, dict[str, list[float]]] = {}
    for letter in "T" if quick else "TS":
        models = models_of(published(letter))
        for kind in KINDS:
            name = f"{letter} {kind}"
            seconds[name] = taken = interleaved(runs(models, batch, kind), rounds)
            ours, percent = taken["extracted"], MIN_GEMM_PERCENT[letter] if kind == "forward" else None
            in_supernet, to_timm = ratio(taken["supernet"], ours), ratio(ours, taken["timm"])
            rows += [
                Row(f"{name}: subnet in the supernet / extracted", in_supernet, "x", MAX_TO_EXTRACTED[kind]),
                Row(f"{name}: extracted / timm's static ViT", to_timm, "x", MAX_TO_TIMM[kind]),
                Row(f"{name}: share of the GEMM limit", 100 * ratio(taken["GEMM"], ours), "%", percent, "at least"),
                Row(f"{name}: timm's share of it", 100 * ratio(taken["GEMM"], taken["timm"]), "%"),
            ]
        peaks = []
        for checkpointing in (False, True):
            models.extracted.set_grad_checkpointing(checkpointing)
            peaks.append(peak_bytes(runs(models, batch, "step")["extracted"]))
        rows.append(Row(f"{letter} step: memory with activation checkpointing / without", peaks[1] / peaks[0], "x"))
    return measured(rows, threads=THREADS, batch_size=batch, seconds=seconds)


def peak_bytes(run: Run, device: torch.device = CPU.device) -> int:
    """The peak of device memory that a run allocates in addition to what was allocated before."""
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
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak

"""Times of the parts of subnets and of whole subnets, measured on a device.

All are measured in turn, in several rounds, so other work on the machine slows all parts alike. A block is measured in
a stack of equal blocks, each with its own weights. A stack of equal blocks is faster than the different blocks of a
subnet, so all parts are multiplied by one factor. The factor and the constant are fitted to whole subnets.

Letters in shapes: B images, C channels, S pixels on a side, N tokens, E embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoformer.errors import AutoFormerError, validated
from autoformer.latency import AT_REST, CheckedSubnet, LatencyTable
from autoformer.randomness import derived_rng
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.vit import AutoFormer

STACK = 4  # maximum number of blocks
FITTED = 9  # random subnets, besides the smallest, the middle and the largest
WARM_UP_PASSES, TIMED_PASSES = 2, 5  # per part and round
Work = Callable[[], object]
Timer = Callable[[Work], float]
"""Runs the work once, and returns its milliseconds."""


def measure_table(
    space: SearchSpace, images: Tensor, timer: Timer, rounds: int, check: int, seed: int = 0,
    watch: Callable[[int], None] = lambda round: None, **conditions: Any,
) -> LatencyTable:  # fmt: skip
    """Measure every part of a space's subnets, and compare predictions with whole subnets.

    Args:
        images: any images (B, C, S, S) with the batch size, type and device to measure.
        check: number of random subnets to compare with.
        watch: called with the number of rounds done.
        conditions: the other fields of `LatencyTable`.
    """
    anchors = list(dict.fromkeys([space.smallest, space.middle, space.largest]))
    drawn = _random_subnets(space, FITTED + check, seed, anchors)
    fitted, checked = [*anchors, *drawn[:FITTED]], drawn[FITTED:]
    ms = _measure(space, [*fitted, *checked], images, timer, rounds, seed, watch)

    def table(factor: float, constant: float) -> LatencyTable:
        fields = conditions | {
            "batch_size": len(images), "precision": str(images.dtype).removeprefix("torch."), "rounds": rounds,
            "space": space, "constant_ms": constant,
        }  # fmt: skip
        for part in ("embedding", "head"):
            fields[part] = [{"embed_dim": width, "ms": ms[part, width] * factor} for width in space.choices.embed_dim]
        fields["blocks"] = [
            {
                "embed_dim": width,
                "num_heads": heads,
                "mlp_ratio": ratio,
                "ms": ms["block", width, heads, ratio] * factor,
            }
            for width, heads, ratio in _blocks(space)
        ]
        return validated(LatencyTable, fields, "latency", AT_REST)

    sums = table(1.0, 0.0)
    fit = table(*_fit([(sums.predict(spec), ms[spec]) for spec in fitted]))
    compared = [CheckedSubnet(subnet=spec, predicted_ms=fit.predict(spec), measured_ms=ms[spec]) for spec in checked]
    return fit.model_copy(update={"check": tuple(compared)})


def _blocks(space: SearchSpace) -> list[tuple[int, int, float]]:
    """Width, heads and MLP ratio of every different block."""
    return [*product(space.choices.embed_dim, space.choices.num_heads, space.choices.mlp_ratio)]


def _fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Factor and constant from sums of parts to whole subnets, with the least relative squared error."""
    sums, measured = (np.array(values) for values in zip(*points, strict=True))
    if np.ptp(sums) < 1e-9 * sums.max():  # the space has one subnet
        return 1.0, float(np.median(measured - sums))
    factor, constant = np.polyfit(sums, measured, 1, w=1 / measured)
    if factor <= 0:
        raise AutoFormerError(f"latency: larger subnets took no longer than small ones; {AT_REST}")
    return float(factor), float(constant)


def _random_subnets(space: SearchSpace, count: int, seed: int, others: Sequence[SubnetSpec]) -> list[SubnetSpec]:
    """Up to `count` different random subnets that are not in `others`; fewer if the space has no more."""
    rng, drawn = derived_rng("latency check", seed), dict[SubnetSpec, None]()
    for _ in range(100 * count):
        if len(drawn) == count:
            break
        if (spec := space.sample(rng)) not in others:
            drawn[spec] = None
    return [*drawn]


@torch.inference_mode()
def _measure(
    space: SearchSpace, subnets: Sequence[SubnetSpec], images: Tensor, timer: Timer, rounds: int, seed: int,
    watch: Callable[[int], None],
) -> dict[Any, float]:  # fmt: skip
    """Milliseconds by `("embedding", width)`, `("head", width)`, `("block", width, heads, ratio)`, and subnet.

    `images`: (B, C, S, S).
    """
    depth = min(STACK, space.choices.depth[-1])
    work: dict[Any, Work] = {}
    for width in space.choices.embed_dim:
        base = replace(space.smallest, embed_dim=width)
        ends = _model(space, base, images)
        tokens = _embed(ends, images)
        work["embedding", width] = partial(_embed, ends, images)
        work["head", width] = partial(_classify, ends, tokens)
        for heads, ratio in product(space.choices.num_heads, space.choices.mlp_ratio):
            stack = _model(space, SubnetSpec(depth, width, (heads,) * depth, (ratio,) * depth), images).blocks
            work["block", width, heads, ratio] = partial(stack, tokens)
    for spec in subnets:
        work[spec] = partial(_model(space, spec, images), images)
    ms = _medians(work, timer, rounds, seed, watch)
    return ms | {("block", *block): ms["block", *block] / depth for block in _blocks(space)}


def _embed(model: Any, images: Tensor) -> Tensor:
    """(B, C, S, S) -> (B, N, E)."""
    return model._pos_embed(model.patch_embed(images))


def _classify(model: Any, tokens: Tensor) -> Tensor:
    return model.forward_head(model.norm(tokens))


def _model(space: SearchSpace, spec: SubnetSpec, images: Tensor) -> Any:
    return AutoFormer.from_spec(space, spec).eval().requires_grad_(False).to(images.device, images.dtype)


def _medians(
    work: dict[Any, Work], timer: Timer, rounds: int, seed: int, watch: Callable[[int], None]
) -> dict[Any, float]:
    """The median over the rounds of each part's fastest pass, which is the least disturbed by other programs.

    The order in a round is random.
    """
    samples: dict[Any, list[float]] = {key: [] for key in work}
    for round in range(rounds):
        keys = list(work)
        derived_rng("latency order", seed, round).shuffle(keys)
        for key in keys:
            for _ in range(WARM_UP_PASSES):
                work[key]()
            samples[key].append(min(timer(work[key]) for _ in range(TIMED_PASSES)))
        watch(round + 1)
    return {key: median(values) for key, values in samples.items()}

"""Rank correlations of cheap proxies with scores, over random subnets of one supernet.

    python -m benchmarks.proxies [--subnets N] [--set search_subnet.KEY=VALUE …]
    python -m benchmarks.proxies --supernet artifacts/supernet --card artifacts/splits/card.json
        --search-split artifacts/splits/search.parquet

A subnet's score is minus its loss with inherited weights on the search images, without the first 200. The proxies are
its parameters, its MACs, minus its loss on those 200, and three of a randomly initialised model of its shape, on one
batch: SNIP (Lee et al., 2019), the norm of the gradient (Abdelfattah et al., 2021) and the logarithm of SynFlow (Tanaka
et al., 2020) without norms. A positive correlation means that more of the proxy is better. Intervals are 95 % bootstrap
intervals over the subnets. One group is drawn within the limits of the search, one from the whole space.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from autoformer.complexity import count_macs, count_params
from autoformer.errors import quantity
from autoformer.layers import initialise
from autoformer.limits import Limits
from autoformer.racing import Floats
from autoformer.randomness import derived_rng
from autoformer.scoring import SubnetScorer
from autoformer.search import random_baseline
from autoformer.space import SubnetSpec
from autoformer.vit import AutoFormer
from benchmarks.rows import Row, measured
from benchmarks.searches import Score, command, shared_scores
from components.search_subnet.score_cache import ScoreCache
from runtime.common.config import Config
from runtime.common.sections import SearchSubnet, TrainSupernet

SUBNETS = 60
FEW = 200  # search images of the cheap score
BATCH = 64
RESAMPLES = 1000


def snip(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Sum of |weight x gradient|, and the norm of the gradient, both of the loss on a batch."""
    model.zero_grad()
    cross_entropy(model(images), labels).backward()
    pairs = [(weight.detach(), weight.grad) for weight in model.parameters() if weight.grad is not None]
    saliency = sum(float((weight * gradient).abs().sum()) for weight, gradient in pairs)
    return saliency, sum(float(gradient.square().sum()) for _, gradient in pairs) ** 0.5


def synflow(model: nn.Module, shape: Sequence[int]) -> float:
    """Logarithm of the sum of |weight x gradient| of the summed outputs: absolute weights, no norms, an image of ones.

    Changes the model.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, nn.Identity())
    model.double().zero_grad()
    with torch.no_grad():
        for weight in model.parameters():
            weight.abs_()
    with sdpa_kernel(SDPBackend.MATH):  # fused kernels return NaN for logits of 1e20
        model(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    flow = sum(float((w.detach() * w.grad).abs().sum()) for w in model.parameters() if w.grad is not None)
    return float(np.log(flow))


def correlations(
    proxies: Mapping[str, Sequence[float]], scores: Sequence[float], rng: np.random.Generator
) -> dict[str, dict[str, list[float]]]:
    """By proxy: Kendall's and Spearman's correlation with the scores, and Spearman's minus that of the parameters.

    Spearman's are value, low and high.
    """
    from scipy.stats import ConstantInputWarning, kendalltau, spearmanr

    table, target = {name: np.array(values) for name, values in proxies.items()}, np.array(scores)
    drawn = [np.arange(len(target)), *rng.integers(len(target), size=(RESAMPLES, len(target)))]

    def interval(sample: Floats) -> list[float]:
        return [float(sample[0]), *(float(end) for end in np.quantile(sample[1:], (0.025, 0.975)))]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)  # one subnet drawn each time; counts as 0
        spearman = {
            name: np.nan_to_num([spearmanr(values[index], target[index]).statistic for index in drawn])
            for name, values in table.items()
        }
    return {
        name: {
            "Spearman": interval(spearman[name]),
            "Spearman minus that of the parameters": interval(spearman[name] - spearman["parameters"]),
            "Kendall": [float(kendalltau(values, target).statistic)],
        }
        for name, values in table.items()
    }


def proxies_of(
    config: Config, scorer: SubnetScorer, cache: ScoreCache, specs: Sequence[SubnetSpec]
) -> dict[str, list[float]]:
    """By proxy: its values for the subnets."""
    space = config.space
    gain = config.section(TrainSupernet).init_gain
    few = cache.score(specs, np.arange(FEW), lambda: None)
    found: dict[str, list[float]] = {
        "parameters": [float(count_params(space, spec)) for spec in specs],
        "MACs": [float(count_macs(space, spec)) for spec in specs],
        f"score on {FEW} images": [-float(one.losses.mean()) for one in few],
        "SNIP": [],
        "gradient norm": [],
        "SynFlow": [],
    }
    images, labels = scorer.normalise(scorer.pixels[:BATCH]), scorer.labels[:BATCH]
    with torch.random.fork_rng():
        for number, spec in enumerate(specs):
            torch.manual_seed(number)
            model = AutoFormer.from_spec(space, spec)
            initialise(model, gain)
            saliency, norm = snip(model, images, labels)
            found["SNIP"].append(saliency)
            found["gradient norm"].append(norm)
            found["SynFlow"].append(synflow(model, images.shape[1:]))
    return found


def measured_proxies(config: Config, score: Score, images: int, subnets: int) -> dict[str, Any]:
    """`images`: of the search split."""
    assert isinstance(score, SubnetScorer)  # the proxies need its images
    section, space = config.section(SearchSubnet), config.space
    rows, everything = list[Row](), {}
    later = np.arange(FEW, min(section.images or images, images))
    with shared_scores(score, images) as cache:
        for group, limits in (("within the limits", section.limits), ("whole space", Limits())):
            drawn = random_baseline(space, limits, subnets, section.tries, derived_rng("explore", config.seed))
            specs = [one.spec for one in drawn]
            scores = [-float(one.losses.mean()) for one in cache.score(specs, later, lambda: None)]
            proxies = proxies_of(config, score, cache, specs)
            everything[group] = proxies | {"score": scores}
            for name, found in correlations(proxies, scores, np.random.default_rng(0)).items():
                for kind, values in found.items():
                    rows += [
                        Row(f"{group}, {quantity(len(specs), 'subnet')}, {name}, {kind}{part}", value, "")
                        for part, value in zip(("", ", from", ", to"), values, strict=False)
                    ]
    return measured(rows, values=everything)


def main(argv: Sequence[str] | None = None) -> int:
    counted = ("subnets", SUBNETS, "random subnets of each group")
    return command("proxies", __doc__ or "", measured_proxies, [], argv, counted)


if __name__ == "__main__":
    raise SystemExit(main())

"""Counts by formula: the official code's integers, the published figures, and what torch really executes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from small import SPACES, small_space, specs, variants
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autoformer.complexity import (
    RelativePosition,
    count_macs,
    count_params,
    position_width,
)
from autoformer.named import load_space, load_subnet
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet

DATA = Path(__file__).parent / "data"

T, S, B, WIDE = (load_space(f"autoformer-{name}") for name in ("tiny", "small", "base", "base-wide-heads"))


def full(space: SearchSpace) -> SubnetSpec:
    """The supernet itself as a subnet."""
    size = space.supernet
    return SubnetSpec(size.depth, size.embed_dim, (size.num_heads,) * size.depth, (size.mlp_ratio,) * size.depth)


def golden_space(file: str) -> SearchSpace:
    supernet = json.loads((DATA / file).read_text())["supernet"]
    size = {key: supernet[key] for key in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    same = ("image_size", "patch_size", "in_channels", "num_classes", "head_dim", "max_relative_position")
    return SearchSpace.model_validate(
        {key: supernet[key] for key in (*same, "relative_position")}
        | {"name": "golden", "supernet": size, "choices": {key: [value] for key, value in size.items()}}
    )


def golden_subnets(file: str) -> list[tuple[SubnetSpec, dict[str, Any]]]:
    rows = json.loads((DATA / file).read_text())["subnets"]
    names = ("depth", "embed_dim", "num_heads", "mlp_ratio")
    return [(SubnetSpec.from_dict({name: row[name] for name in names}), row) for row in rows]


def official_complexity(space: SearchSpace, spec: SubnetSpec) -> float:
    """The official `get_complexity`, errors included.

    It counts the class token twice in the blocks (T = N + 1), multiplies the head with all N tokens, leaves out the
    last norm, and has a relative-position term that nothing executes.
    """
    patches, tokens, embed = space.num_patches, space.num_patches + 1, spec.embed_dim
    t = tokens + 1
    total = embed + patches * space.in_channels * space.patch_size**2 * embed + tokens * embed / 2
    for block, heads in enumerate(spec.num_heads):
        width = heads * space.head_dim
        total += 2 * t * embed + 3 * t * embed * width + 2 * t * t * width + t * width * embed
        total += 2 * t * embed * spec.hidden_dim(block)
        if space.relative_position:
            total += 2 * space.max_relative_position * t * t + t * t / 2 + t * width / 2
    return total + tokens * embed * space.num_classes


def mmrazor_counts(space: SearchSpace, spec: SubnetSpec) -> tuple[int, int]:
    """Parameters and "FLOPs" as mmrazor's counters report them: Conv2d, Linear and LayerNorm only.

    Parameters leave out class token, positions and relative tables. "FLOPs" leave out the attention products, count two
    operations for each element of a LayerNorm, and the bias of the patch convolution, but not that of linear layers.
    """
    patches, tokens, embed = space.num_patches, space.num_patches + 1, spec.embed_dim
    norm = 2 * tokens * embed
    flops = patches * embed * (space.in_channels * space.patch_size**2 + 1) + norm
    flops += embed * space.num_classes
    for block, heads in enumerate(spec.num_heads):
        width, hidden = heads * space.head_dim, spec.hidden_dim(block)
        flops += tokens * (4 * width * embed + 2 * embed * hidden) + 2 * norm
    position = (tokens + 1) * embed
    tables = spec.depth * 4 * (2 * space.max_relative_position + 2) * space.head_dim
    return count_params(space, spec) - position - tables, flops


@pytest.mark.parametrize("file", ["official_small.json", "official_small_class_token.json", "tiny_space_200.json"])
def test_golden_integers(file: str) -> None:
    space = T if file == "tiny_space_200.json" else golden_space(file)
    rows = golden_subnets(file)
    assert len(rows) in (6, 200)
    for spec, row in rows:
        assert count_params(space, spec) == row["params"]
        assert official_complexity(space, spec) == row["official_complexity"]
        assert count_macs(space, spec, "none") == row["macs_without_relative_position"]


PUBLISHED = [
    # space, subnet, parameters, official "complexity", multiply-adds without relative position, with the official's
    (T, load_subnet("autoformer-tiny").subnet, 5_867_944, "1.344034", "1.2832", "1.4819"),
    (S, load_subnet("autoformer-small").subnet, 22_891_432, "4.892145", "4.7739", "5.1614"),
    (B, load_subnet("autoformer-base").subnet, 53_691_688, "11.236930", "11.0454", "11.6912"),
    (T, T.smallest, 5_366_056, "1.225422", "1.1665", "1.3454"),
    (T, T.largest, 10_517_272, "2.340357", "2.2632", "2.5414"),
    (T, SubnetSpec(12, 192, (3,) * 12, (3.0,) * 12), 4_922_536, "1.1378", "1.0794", "1.2582"),
    (S, S.smallest, 13_057_320, "2.860660", "2.7673", "3.0653"),
    (S, S.largest, 34_790_440, "7.342477", "7.1972", "7.6840"),
    (B, B.smallest, 41_687_896, "8.844104", "8.6744", "9.3003"),
    (B, B.largest, 76_882_264, "15.971697", "15.7430", "16.5378"),
    (WIDE, WIDE.smallest, 39_792_856, "8.3991", "8.2320", "8.7884"),
    (load_space("mmrazor-base"), load_subnet("mmrazor-base").subnet, 54_540_232, "11.399784", "11.2075", "11.8483"),
]


@pytest.mark.parametrize(("space", "spec", "params", "complexity", "without", "published"), PUBLISHED)
def test_published_figures(
    space: SearchSpace, spec: SubnetSpec, params: int, complexity: str, without: str, published: str
) -> None:
    assert count_params(space, spec) == params
    digits = len(complexity.partition(".")[2])
    assert f"{official_complexity(space, spec) / 1e9:.{digits}f}" == complexity
    assert f"{count_macs(space, spec, 'none') / 1e9:.4f}" == without
    assert f"{count_macs(space, spec, 'published') / 1e9:.4f}" == published


@pytest.mark.parametrize(
    ("space", "params", "complexity"),
    [(T, 11_669_224, "2.5674"), (S, 34_790_440, "7.3425"), (B, 80_160_360, "16.6197")],
)
def test_supernets(space: SearchSpace, params: int, complexity: str) -> None:
    assert count_params(space, full(space)) == params
    assert f"{official_complexity(space, full(space)) / 1e9:.4f}" == complexity
    with torch.device("meta"):
        assert sum(p.numel() for p in Supernet(space).parameters()) == params


@pytest.mark.parametrize(
    ("space", "spec", "params", "flops"),
    [
        ("mmrazor-base", load_subnet("mmrazor-base").subnet, 54_318_664, "10.5733"),
        ("autoformer-base", load_subnet("autoformer-base").subnet, 53_470_120, "10.4063"),
        # the one class of subnets that explains mmrazor's older figure, 52.472 M
        ("mmrazor-base", SubnetSpec(15, 528, (9,) * 13 + (8,) * 2, (4.0,) * 15), 52_472_248, "10.2185"),
    ],
)
def test_mmrazor_counters(space: str, spec: SubnetSpec, params: int, flops: str) -> None:
    counted = mmrazor_counts(load_space(space), spec)
    assert counted[0] == params
    assert f"{counted[1] / 1e9:.4f}" == flops


@pytest.mark.parametrize("name", SPACES)
def test_params_are_those_of_the_extracted_model(name: str) -> None:
    space = load_space(name)
    with torch.device("meta"):
        supernet = Supernet(space)
        for spec in (space.smallest, space.largest):
            model = supernet.extract(spec)
            assert sum(p.numel() for p in model.parameters()) == count_params(space, spec)


@pytest.mark.parametrize("space", variants().values(), ids=variants())
def test_params_of_drawn_subnets(space: SearchSpace) -> None:
    with torch.device("meta"):
        supernet = Supernet(space)

    @given(spec=specs(space))
    @settings(max_examples=8, deadline=None)
    def check(spec: SubnetSpec) -> None:
        with torch.device("meta"):
            assert sum(p.numel() for p in supernet.extract(spec).parameters()) == count_params(space, spec)

    check()


@pytest.mark.parametrize("space", variants().values(), ids=variants())
def test_macs_are_those_that_torch_executes(space: SearchSpace) -> None:
    """Half of the operations of all matrix products and the convolution, for the supernet and the extracted model.

    The counter does not know torch's fused CPU attention, so attention is run by its plain formula, whose two
    products are the same.
    """
    supernet = Supernet(space).eval()
    images = torch.randn(2, space.in_channels, space.image_size, space.image_size)
    for spec in (space.smallest, space.largest, SubnetSpec(3, 12, (2, 1, 3), (1.3, 2.0, 1.0))):
        model = supernet.extract(spec)
        assert macs_of_an_image(lambda x, spec=spec: supernet(x, spec), images) == count_macs(space, spec, "ours")
        assert macs_of_an_image(model, images) == count_macs(space, spec, "ours")


def test_figures_are_counted_as_papers_do_unless_another_definition_is_named() -> None:
    spec = load_subnet("autoformer-small").subnet
    assert count_macs(S, spec) == count_macs(S, spec, "none") < count_macs(S, spec, "ours")


def test_macs_without_relative_position_are_those_of_a_model_without() -> None:
    space, plain = small_space(), small_space(relative_position=False)
    image = torch.randn(1, 3, 8, 8)
    executed = executed_macs(lambda: Supernet(plain).eval()(image, plain.largest))
    kinds: list[RelativePosition] = ["none", "published", "ours"]
    assert executed == count_macs(space, space.largest, "none")
    assert all(executed == count_macs(plain, plain.largest, kind) for kind in kinds)


def macs_of_an_image(run: Any, images: torch.Tensor) -> float:
    """Of the second image: the tables of relative position are combined once a batch."""
    return executed_macs(lambda: run(images)) - executed_macs(lambda: run(images[:1]))


def executed_macs(run: Any) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops() / 2


def test_a_head_with_its_position_features_is_a_multiple_of_8() -> None:
    assert position_width(T.grid, T.head_dim) == 28 + 4
    assert position_width(small_space().grid, 4) == 8 + 4

"""Search spaces: exact counts, extremes, sampling, round trips, and clear errors."""

import dataclasses
import random
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from small import SPACES, small_space, specs

from autoformer.errors import AutoFormerError
from autoformer.named import CONFIGS, NamedSubnet, load_space, load_subnet
from autoformer.space import SearchSpace, SubnetSpec

TINY = yaml.safe_load((CONFIGS / "spaces" / "autoformer-tiny.yaml").read_text())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("autoformer-tiny", 1_056_964_608),
        ("autoformer-small", 77_103_263_459_313),
        ("autoformer-base", 10_108_977_168_384),
        ("autoformer-base-wide-heads", 6_245_364_340_204_353),
        ("mmrazor-base", 6_245_364_340_204_353),
    ],
)
def test_number_of_subnets(name: str, count: int) -> None:
    assert load_space(name).count() == count


def test_number_of_subnets_of_tiny_with_a_ratio_of_3() -> None:
    space = SearchSpace.model_validate(TINY | {"choices": TINY["choices"] | {"mlp_ratio": [3.0, 3.5, 4.0]}})
    assert space.count() == 280_804_921_344


def test_count_is_that_of_what_can_be_drawn() -> None:
    space = small_space()
    space = space.model_copy(update={"choices": space.choices.model_copy(update={"depth": (1, 2)})})
    rng = Random(0)
    assert space.count() == 3 * (9 + 9**2)
    assert len({space.sample(rng) for _ in range(6000)}) == space.count()


def test_smallest_and_largest() -> None:
    space = load_space("autoformer-tiny")
    assert space.smallest == SubnetSpec(12, 192, (3,) * 12, (3.5,) * 12)
    assert space.largest == SubnetSpec(14, 240, (4,) * 14, (4.0,) * 14)
    for name in SPACES:
        space = load_space(name)
        space.check(space.smallest)
        space.check(space.largest)


def test_sampling_is_uniform_in_every_choice() -> None:
    space = load_space("autoformer-tiny")
    rng = Random(0)
    drawn = [space.sample(rng) for _ in range(3000)]
    depths, widths = Counter(spec.depth for spec in drawn), Counter(spec.embed_dim for spec in drawn)
    assert set(depths) == {12, 13, 14}  # not in proportion to the subnets of a depth: 14 alone has 75 % of them
    assert all(900 < n < 1100 for n in [*depths.values(), *widths.values()])
    genes = sum(spec.depth for spec in drawn)
    assert sum(spec.num_heads.count(3) for spec in drawn) / genes == pytest.approx(0.5, abs=0.01)
    assert sum(spec.mlp_ratio.count(3.5) for spec in drawn) / genes == pytest.approx(0.5, abs=0.01)
    assert len({spec.num_heads for spec in drawn}) > 2500  # each block draws for itself


def test_sampling_is_a_function_of_the_rng() -> None:
    space = small_space()
    one, other = Random(7), Random(7)
    assert [space.sample(one) for _ in range(50)] == [space.sample(other) for _ in range(50)]
    state = random.getstate()
    space.sample(Random(7))
    assert random.getstate() == state


def test_spec_is_frozen_and_hashable() -> None:
    spec = SubnetSpec(2, 8, [1, 2], [1, 1.5])  # type: ignore[arg-type]
    assert spec == SubnetSpec(2, 8, (1, 2), (1.0, 1.5))
    assert len({spec, SubnetSpec(2, 8, (1, 2), (1.0, 1.5))}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.depth = 3  # type: ignore[misc]


@given(spec=specs(small_space()))
@settings(max_examples=50, deadline=None)
def test_spec_round_trips(spec: SubnetSpec) -> None:
    assert SubnetSpec.from_json(spec.to_json()) == spec
    assert SubnetSpec.from_dict(yaml.safe_load(yaml.safe_dump(spec.to_dict()))) == spec
    named = NamedSubnet(name="x", space="small", source="a test", subnet=spec)
    assert NamedSubnet.model_validate(yaml.safe_load(yaml.safe_dump(named.model_dump(mode="json")))) == named


@pytest.mark.parametrize("name", SPACES)
def test_space_round_trips(name: str, tmp_path: Path) -> None:
    space = load_space(name)
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(space.model_dump(mode="json")))
    assert SearchSpace.from_yaml(file) == space


def test_hidden_width_is_truncated() -> None:
    assert SubnetSpec(1, 12, (1,), (1.3,)).hidden_dim(0) == 15  # 15.6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embed_dim": 200}, ("embed_dim = 200", "192, 216, 240")),
        ({"num_heads": (3,) * 11 + (5,)}, ("num_heads = 5", "3, 4")),
        ({"mlp_ratio": (3.5,) * 11 + (3.0,)}, ("mlp_ratio = 3 ", "3.5, 4")),
        ({"depth": 2, "num_heads": (3, 3), "mlp_ratio": (4, 4)}, ("depth = 2", "12, 13, 14")),
    ],
)
def test_subnet_outside_its_space(change: dict[str, Any], words: tuple[str, ...]) -> None:
    space = load_space("autoformer-tiny")
    spec = dataclasses.replace(space.smallest, **change)
    with pytest.raises(AutoFormerError) as error:
        space.check(spec)
    assert all(word in str(error.value) for word in (*words, "autoformer-tiny"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((2, 8, (1,), (1.0, 1.0)), "num_heads has 1 entry for depth 2"),
        ((2, 8, (1, 1), (1.0,)), "mlp_ratio has 1 entry for depth 2"),
        ((2, 8, (1, 0), (1.0, 1.0)), "num_heads = 0"),
        ((2, 8, (1, 1.5), (1.0, 1.0)), "num_heads = 1.5: expected a positive integer"),
        ((2, 8, "12", (1.0, 1.0)), "num_heads = '12': expected a list"),
        ((True, 8, (1,), (1.0,)), "depth = True"),
        ((1, 8, (1,), (float("inf"),)), "mlp_ratio = inf"),
        ((1, float("nan"), (1,), (1.0,)), "embed_dim = nan"),
        ((1, -8, (1,), (1.0,)), "embed_dim = -8"),
        ((1, 8, (1,), (10**400,)), "mlp_ratio = 1000"),
        ((1, 10**400, (1,), (1.0,)), "embed_dim = 1000"),
        ((1, 8, (10**5000,), (1.0,)), "num_heads = a value that is too long to show: expected a positive integer"),
        ((1, 8, (1,), (0.1,)), "mlp_ratio = 0.1 of embed_dim 8 is an MLP without channels"),
    ],
)
def test_malformed_spec(fields: tuple[Any, ...], words: str) -> None:
    with pytest.raises(AutoFormerError) as error:
        SubnetSpec(*fields)
    assert words in str(error.value)


@pytest.mark.parametrize("integer", [np.int64, np.uint8, np.float32])
@pytest.mark.parametrize("number", [np.float64, np.float32, np.int32])
def test_numbers_of_numpy_are_numbers(integer: Any, number: Any) -> None:
    """A row of a data frame holds them."""
    spec = SubnetSpec(integer(2), integer(8), (integer(1), integer(2)), (number(1), number(2)))
    assert spec == SubnetSpec(2, 8, (1, 2), (1.0, 2.0))
    assert SubnetSpec.from_json(spec.to_json()) == spec


def test_a_named_file_may_be_a_path() -> None:
    assert load_space(CONFIGS / "spaces" / "photos-32.yaml") == load_space("photos-32")
    assert load_subnet(CONFIGS / "subnets" / "autoformer-tiny.yaml") == load_subnet("autoformer-tiny")


def test_spec_with_a_wrong_key() -> None:
    with pytest.raises(AutoFormerError, match=r"has the keys depth, embed_dim, .*; found depth, width"):
        SubnetSpec.from_dict({"depth": 1, "width": 8})
    with pytest.raises(AutoFormerError, match="not readable as JSON"):
        SubnetSpec.from_json("{")


def test_published_tiny_is_outside_its_space_and_fits() -> None:
    named, space = load_subnet("autoformer-tiny"), load_space("autoformer-tiny")
    space.check_fits(named.subnet)
    with pytest.raises(AutoFormerError, match="mlp_ratio = 3 is not in the search space"):
        space.check(named.subnet)
    assert named.outside_space
    with pytest.raises(AutoFormerError, match="mlp_ratio = 3"):
        named.model_copy(update={"outside_space": None}).check(space)


@pytest.mark.parametrize("name", ["autoformer-small", "autoformer-base", "mmrazor-base"])
def test_other_published_subnets_are_in_their_spaces(name: str) -> None:
    named = load_subnet(name)
    load_space(named.space).check(named.subnet)


def test_subnet_larger_than_the_supernet() -> None:
    space = small_space()
    with pytest.raises(AutoFormerError, match="embed_dim = 24 is larger than the supernet of 'small', which has 20"):
        space.check_fits(SubnetSpec(1, 24, (1,), (1.0,)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"choices": TINY["choices"] | {"embed_dim": [192, 320]}}, ("embed_dim has 320", "supernet.embed_dim is 256")),
        ({"image_sise": 224}, ("unknown key 'image_sise'", "did you mean 'image_size'?")),
        ({"supernet": TINY["supernet"] | {"heads": 4}}, ("unknown key 'supernet.heads'", "did you mean 'num_heads'?")),
        ({"patch_size": 15}, ("patch_size 15 does not divide image_size 224",)),
        ({"choices": TINY["choices"] | {"depth": [14, 12]}}, ("choices.depth", "ascending order")),
        ({"choices": TINY["choices"] | {"depth": []}}, ("choices.depth", "expected positive choices")),
        ({"pooling": "max"}, ("pooling = 'max'", "'mean' or 'class_token'")),
        ({"head_dim": 0}, ("head_dim = 0", "greater than 0")),
        ({"choices": TINY["choices"] | {"mlp_ratio": [0.005, 4]}}, ("0.005", "embed_dim 192", "MLP without channels")),
    ],
)  # fmt: skip
def test_faulty_space_file(change: dict[str, Any], words: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(TINY | change))
    with pytest.raises(AutoFormerError) as error:
        SearchSpace.from_yaml(file)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_missing_key_and_missing_file(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in TINY.items() if key != "head_dim"}))
    with pytest.raises(AutoFormerError, match="'head_dim' is missing"):
        SearchSpace.from_yaml(file)
    with pytest.raises(AutoFormerError, match="no such file"):
        SearchSpace.from_yaml(tmp_path / "none.yaml")
    file.write_text("name: [")
    with pytest.raises(AutoFormerError, match="not readable as YAML"):
        SearchSpace.from_yaml(file)


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AutoFormerError, match="did you mean 'autoformer-tiny'"):
        load_space("autoformer-tyni")

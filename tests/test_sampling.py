"""Sampling of the subnets of a step: frequencies, in-place distillation, and stability."""

from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from run_steps import SPACE as FORTY
from scipy.stats import chi2
from small import small_space
from torch.nn.functional import cross_entropy

from autoformer.complexity import count_params
from autoformer.images.batches import normalise
from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import training_loader
from autoformer.named import load_space
from autoformer.recipe import Recipe
from autoformer.sampling import (
    PARAM_BINS,
    TEACHER_WEIGHT,
    SubnetPass,
    SubnetSampler,
    make_sampler,
    sandwich,
    subnet_within,
    uniform,
    uniform_params,
)
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from runtime.common.config import load_config
from runtime.common.sections import TrainSupernet

SPACES = {name: load_space(name) for name in ("fashion-mnist", "autoformer-tiny", "autoformer-small")}


def drawn(sampler: SubnetSampler, steps: int) -> list[SubnetSpec]:
    return [subnet for step in range(steps) for subnet, _ in sampler(step) if subnet is not None]


def shares(space: SearchSpace, subnets: list[SubnetSpec], bins: int) -> np.ndarray:
    """Number of subnets in each bin of the range of parameters."""
    ends = [count_params(space, space.smallest), count_params(space, space.largest)]
    return np.histogram([count_params(space, subnet) for subnet in subnets], bins, ends)[0]


@pytest.mark.parametrize("name", SPACES)
def test_uniform_params_is_flat_in_parameters_and_uniform_is_not(name: str) -> None:
    """Chi-square against 16 flat bins: below the 99.9 % point for uniform_params, far above it for uniform."""
    space, bins, steps = SPACES[name], 16, 20 * PARAM_BINS
    limit, wanted = chi2.ppf(0.999, bins - 1), steps / bins

    def distance(sampler: SubnetSampler) -> float:
        return float(((shares(space, drawn(sampler, steps), bins) - wanted) ** 2 / wanted).sum())

    assert distance(uniform_params(space, 0)) < limit
    assert distance(uniform(space, 0)) > 3 * limit


def test_uniform_params_visits_every_bin_once_in_as_many_steps() -> None:
    space = SPACES["autoformer-tiny"]
    sampler = uniform_params(space, 3)
    subnets = drawn(sampler, 3 * PARAM_BINS)
    for cycle in range(3):
        found = shares(space, subnets[cycle * PARAM_BINS : (cycle + 1) * PARAM_BINS], PARAM_BINS)
        assert max(found) <= 2 and sum(found == 1) > 0.9 * PARAM_BINS  # a whole block may be too large a move
    assert sampler(17) == sampler(17) == uniform_params(space, 3)(17) != uniform_params(space, 4)(17)


def test_every_choice_and_every_subnet_occurs() -> None:
    space = SPACES["autoformer-tiny"]
    subnets = drawn(uniform_params(space, 0), 10 * PARAM_BINS)
    for subnet in subnets:
        space.check(subnet)
    assert {subnet.depth for subnet in subnets} == set(space.choices.depth)
    assert {subnet.embed_dim for subnet in subnets} == set(space.choices.embed_dim)
    for block in range(min(space.choices.depth)):
        for field in ("num_heads", "mlp_ratio"):
            assert {getattr(subnet, field)[block] for subnet in subnets} == set(getattr(space.choices, field))
    forty = SearchSpace.model_validate(FORTY)
    assert len(Counter(drawn(uniform_params(forty, 0), 2000))) == forty.count() == 40


def test_a_range_that_no_subnet_has_gives_the_nearest() -> None:
    space = small_space()
    high = count_params(space, space.largest)
    assert subnet_within(space, high + 10, high + 20, Random(0)) == space.largest


def test_a_sandwich_is_the_largest_the_smallest_and_random_ones() -> None:
    space = SPACES["fashion-mnist"]
    sampler = sandwich(space, 0, random=3)
    largest, smallest, *others = sampler(5)
    assert (largest, smallest) == (SubnetPass(space.largest), SubnetPass(space.smallest, TEACHER_WEIGHT))
    assert len(others) == 3 and all(weight == TEACHER_WEIGHT for _, weight in others)
    assert [weight for _, weight in sandwich(space, 0, 1, teacher_weight=1)(5)] == [0, 1, 1]
    assert sampler(5) == sandwich(space, 0, random=3)(5) != sampler(6)


def test_samplers_by_their_names_in_the_configuration() -> None:
    space = SPACES["fashion-mnist"]
    for kind, made in (
        ("uniform", uniform(space, 1)),
        ("sandwich", sandwich(space, 1, 4)),
        ("uniform_params", uniform_params(space, 1)),
    ):
        assert make_sampler(kind, space, 1, 4)(7) == made(7)  # type: ignore[arg-type]
    configured = load_config("demo", ["train_supernet.sampling=sandwich", "train_supernet.sandwich_teacher_weight=0.9"])
    drawn = configured.section(TrainSupernet).sampler(space, 1)(0)
    assert [weight for _, weight in drawn] == [0, 0.9, 0.9, 0.9]


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.2])
def test_the_gradient_of_a_sandwich_is_the_mean_of_its_passes(weight: float) -> None:
    """Against a plain loop: labels for the largest; its probabilities by their weight and labels for the others."""
    space = SearchSpace.model_validate(FORTY)
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "label_smoothing": 0.1}
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8, generator=generator)
    split = DecodedSplit(pixels.numpy(), np.arange(8), [])
    recipe = Recipe.model_validate(settings)
    images = training_loader(split, recipe, 0, 28, (0.3,))
    torch.manual_seed(0)
    model = Supernet(space, drop_path=0.0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = Trainer(model, sandwich(space, 0, 2, weight), images, 10, (0.3,), (0.3,), recipe, 0)
    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer.scheduler.step_update = lambda step: None
    loss = trainer.advance(1)

    twin = Supernet(space)
    twin.load_state_dict(before)
    batch, labels = images.batch(0)
    inputs = normalise(batch, (0.3,), (0.3,))
    answers = twin(inputs, space.largest)
    losses = [cross_entropy(answers, labels, label_smoothing=0.1)]
    for subnet, _ in sandwich(space, 0)(0)[1:]:
        logits = twin(inputs, subnet)
        from_largest = -(answers.detach().softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
        from_labels = cross_entropy(logits, labels, label_smoothing=0.1)
        losses.append(weight * from_largest + (1 - weight) * from_labels)
    mean = torch.stack(losses).mean()
    mean.backward()
    assert loss == pytest.approx(mean.item(), abs=1e-6)
    for name, weight in twin.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(model.get_parameter(name), before[name] - weight.grad, rtol=1e-5, atol=1e-6)


def test_stochastic_depth_is_for_the_largest_alone() -> None:
    """With a rate that drops nearly every deep block, the other passes still use all blocks."""
    space = SearchSpace.model_validate(FORTY)
    modes: list[tuple[SubnetSpec, bool]] = []

    class Seen(Supernet):
        def forward(self, images: torch.Tensor, spec: SubnetSpec) -> torch.Tensor:
            modes.append((spec, self.training))
            return super().forward(images, spec)

    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.1, drop_path=0.9)
    split = DecodedSplit(np.zeros((8, 1, 28, 28), dtype=np.uint8), np.arange(8), [])
    images = training_loader(split, recipe, 0, 28, (0.3,))
    trainer = Trainer(Seen(space, 0.9), sandwich(space, 0), images, 10, (0.3,), (0.3,), recipe, 0)
    trainer.advance(2)
    assert [training for _, training in modes] == [True, False, False, False] * 2


def test_the_old_name_of_uniform_params_is_read_with_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    configs = [load_config("demo", [f"train_supernet.sampling={name}"]) for name in ("fair", "fair", "uniform_params")]
    assert configs[0] == configs[1] == configs[2]
    assert capsys.readouterr().err == (
        "train_supernet.sampling = fair is now called uniform_params; change your configuration\n"
    )

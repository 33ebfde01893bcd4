"""The training loop: what AdamW does beyond the slice, accumulation, resume, schedule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import training_loader
from autoformer.layers import initialise
from autoformer.named import load_space
from autoformer.recipe import Recipe
from autoformer.sampling import SubnetPass, SubnetSampler, sampled_subnet, uniform, whole_model
from autoformer.space import SubnetSpec
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from runtime.steps.training_setup import draws_by_micro_batch

SPACE = load_space("fashion-mnist")
RECIPE: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_epochs": 0.5,
    "label_smoothing": 0.1,
    "clip_grad": 1.0,
    "ema_decay": 0.9,
    "drop_path": 0.2,
    "augmentation": {"crop_padding": 2, "flip": True, "erase_probability": 0.5},
}
PLAIN = {"drop_path": 0.0, "augmentation": {}, "clip_grad": None}


def images(count: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, 10, (count,), generator=generator)


def supernet_trainer(forward: Any = None, seed: int = 0, **changes: Any) -> Trainer:
    torch.manual_seed(1)
    recipe = Recipe.model_validate(RECIPE | changes)
    model = Supernet(SPACE, recipe.drop_path)
    return make_trainer(model, forward or uniform(SPACE, seed), images(), recipe, seed)


def make_trainer(model: Any, forward: Any, data: tuple[Tensor, Tensor], recipe: Recipe, seed: int = 0) -> Trainer:
    split = DecodedSplit(data[0].numpy(), data[1].numpy(), [])
    return Trainer(model, forward, training_loader(split, recipe, seed, 28, (0.3,)), 10, (0.3,), (0.3,), recipe, seed)


def always(spec: SubnetSpec) -> SubnetSampler:
    return lambda step: (SubnetPass(spec),)


def test_the_subnet_of_a_step_is_a_function_of_seed_and_step() -> None:
    drawn = [sampled_subnet(SPACE, 5, step) for step in range(300)]
    assert drawn == [sampled_subnet(SPACE, 5, step) for step in range(300)]
    assert drawn != [sampled_subnet(SPACE, 6, step) for step in range(300)]
    depths = [spec.depth for spec in drawn]
    assert all(depths.count(depth) > 60 for depth in SPACE.choices.depth)  # each about 100


def test_weights_beyond_the_slice_get_zero_gradient_and_move_by_momentum_and_decay_alone() -> None:
    largest, smallest = SPACE.largest, SPACE.smallest
    steps = [largest, smallest]
    trainer = supernet_trainer(lambda step: (SubnetPass(steps[step]),), **PLAIN, ema_decay=None)
    weight = trainer.model.get_parameter("blocks.0.attn.proj.weight")
    beyond = weight[smallest.embed_dim :, :]
    trainer.advance(1)  # the whole tensor has a gradient once, hence momentum
    state = trainer.optimizer.state[weight]
    before = beyond.detach().clone()
    first, second = (state[name][smallest.embed_dim :].clone() for name in ("exp_avg", "exp_avg_sq"))
    trainer.advance(1)
    rate, decay = trainer.learning_rate, trainer.recipe.weight_decay
    first, second = 0.9 * first, 0.999 * second  # a zero gradient
    update = (first / (1 - 0.9**2)) / ((second / (1 - 0.999**2)).sqrt() + 1e-8)
    torch.testing.assert_close(beyond.detach(), before * (1 - rate * decay) - rate * update, rtol=1e-4, atol=1e-7)
    assert not torch.equal(beyond.detach(), before)


def test_blocks_beyond_the_depth_keep_weights_and_moments() -> None:
    largest, smallest = SPACE.largest, SPACE.smallest
    steps = [largest, smallest, smallest]
    trainer = supernet_trainer(lambda step: (SubnetPass(steps[step]),), **PLAIN)
    trainer.advance(1)
    last = SPACE.supernet.depth - 1
    names = [name for name, _ in trainer.model.named_parameters() if name.startswith(f"blocks.{last}.")]
    assert names
    parameters = [trainer.model.get_parameter(name) for name in names]
    before = [parameter.detach().clone() for parameter in parameters]
    moments = [trainer.optimizer.state[parameter]["exp_avg"].clone() for parameter in parameters]
    trainer.advance(2)
    for parameter, old, moment in zip(parameters, before, moments, strict=True):
        assert torch.equal(parameter.detach(), old)
        assert torch.equal(trainer.optimizer.state[parameter]["exp_avg"], moment)
        assert trainer.optimizer.state[parameter]["step"] == 1
    assert trainer.optimizer.state[trainer.model.get_parameter("blocks.0.attn.qkv.weight")]["step"] == 3


def test_accumulation_gives_the_step_of_the_whole_batch() -> None:
    def train(**changes: Any) -> tuple[Trainer, float]:
        trainer = supernet_trainer(**PLAIN | changes)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)  # AdamW amplifies rounding
        trainer.scheduler.step_update = lambda step: None
        return trainer, trainer.advance(3)

    whole, loss = train(batch_size=16, accumulation=1)
    parts, loss_of_parts = train(batch_size=16, accumulation=4)
    assert loss == pytest.approx(loss_of_parts, abs=1e-5)
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("stop", [1, 7, 11])  # in warm-up, in the middle of an epoch, in the second epoch
def test_a_resumed_training_ends_in_the_very_same_weights(stop: int, tmp_path: Path) -> None:
    through = supernet_trainer()
    through.advance(14)
    killed = supernet_trainer()
    killed.advance(stop)
    torch.save(killed.state_dict(), tmp_path / "checkpoint.pt")
    resumed = supernet_trainer()
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    torch.rand(1000)  # the state of the global generator must not matter
    resumed.advance(14 - stop)
    assert resumed.step == through.step == 14
    for model, other in ((resumed.model, through.model), (resumed.averaged, through.averaged)):
        for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(one, two), name


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    """So a checkpoint holds no scheduler: a fresh one gives the same rate."""
    used, rates = supernet_trainer(), []
    for step in range(used.total_steps):
        used.scheduler.step_update(step)
        rates.append(used.learning_rate)
    for step in (0, 3, 8, used.total_steps - 1):
        fresh = supernet_trainer()
        fresh.scheduler.step_update(step)
        assert fresh.learning_rate == rates[step]
    assert len(set(rates)) > used.total_steps / 2


def test_the_extracted_subnet_trains_like_the_supernet_with_that_subnet_alone() -> None:
    """With one subnet only, both do the same arithmetic: the entangled weights beyond it are never read."""
    spec = SubnetSpec(4, 96, (2, 3, 4, 2), (2.0, 3.0, 4.0, 2.0))
    changes = {**PLAIN, "ema_decay": None, "weight_decay": 0.0}
    entangled = supernet_trainer(always(spec), **changes)
    alone = entangled.model.extract(spec)
    recipe = entangled.recipe
    separate = make_trainer(alone, whole_model, images(), recipe)
    for trainer in (entangled, separate):
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.05)
        trainer.scheduler.step_update = lambda step: None
    assert entangled.advance(6) == pytest.approx(separate.advance(6), abs=1e-6)
    cut = entangled.model.extract(spec).state_dict()
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(tensor, cut[name], rtol=1e-4, atol=1e-6, msg=name)


def test_schedule_is_linear_warmup_then_cosine_by_step() -> None:
    trainer = supernet_trainer(epochs=4, warmup_epochs=1, warmup_learning_rate=1e-6, min_learning_rate=1e-5)
    rates = []
    while trainer.step < trainer.total_steps:
        trainer.advance(1)
        rates.append(trainer.learning_rate)
    total, warm = 32, 8
    wanted = [1e-6 + (1e-3 - 1e-6) * step / warm for step in range(warm)]
    wanted += [1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + np.cos(np.pi * step / total)) for step in range(warm, total)]
    assert rates == pytest.approx(wanted, rel=1e-6)


def test_biases_norms_tokens_and_relative_tables_are_not_decayed() -> None:
    trainer = supernet_trainer()
    named = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decayed = {
        named[id(p)] for group in trainer.optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    assert decayed == {
        name for name in named.values() if name.endswith("weight") and "norm" not in name
    }  # fmt: skip


def test_new_linear_weights_have_the_stated_deviation() -> None:
    model = Supernet(SPACE)
    hidden = model.get_submodule("blocks.0.mlp.fc2")  # its inputs are 512, the others' 128
    narrow = model.get_submodule("blocks.0.mlp.fc1")
    for gain, deviations in ((None, (0.02, 0.02)), (0.7, (0.7 / 512**0.5, 0.7 / 128**0.5))):
        initialise(model, gain)
        for layer, deviation in zip((hidden, narrow), deviations, strict=True):
            assert layer.weight.std().item() == pytest.approx(deviation, rel=0.02)
            assert not layer.bias.any()


def test_the_loss_falls() -> None:
    """The loss on easy images falls far below that of guessing, ln 10 = 2.3."""
    labels = torch.arange(64) % 10
    pixels = (labels.view(-1, 1, 1, 1) * 25).expand(-1, 1, 28, 28).to(torch.uint8)
    recipe = Recipe(epochs=25, batch_size=16, learning_rate=2e-3, warmup_epochs=2)
    torch.manual_seed(0)
    trainer = make_trainer(Supernet(SPACE), uniform(SPACE, 0), (pixels, labels), recipe)
    first = trainer.advance(5)
    trainer.advance(90)
    assert first > 2.0
    assert trainer.advance(5) < 1.0


def test_autocast_rounds_the_forward_pass_and_leaves_weights_in_float32() -> None:
    exact, rounded = (supernet_trainer(**PLAIN, precision=kind) for kind in ("float32", "bfloat16"))
    losses = exact.advance(4), rounded.advance(4)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    assert {tensor.dtype for tensor in rounded.model.state_dict().values()} == {torch.float32}


def test_averaged_weights_are_the_running_mean_of_the_raw_ones() -> None:
    """timm's warm-up: no average in the first two steps, then decay 1 - t^(-2/3) of step t, at most `ema_decay`."""
    trainer = supernet_trainer(ema_decay=0.6)
    weight = trainer.model.get_parameter("head.weight")
    expected = weight.detach().clone()
    for step in range(6):
        trainer.advance(1)
        decay = min(0.6, 1 - step ** (-2 / 3)) if step > 1 else 0.0
        expected = decay * expected + (1 - decay) * weight.detach()
    averaged = trainer.averaged.get_parameter("head.weight")
    torch.testing.assert_close(averaged.detach(), expected, rtol=1e-5, atol=1e-7)
    assert trainer.averaged is not trainer.model


@pytest.mark.parametrize("decay", [0.6, 0.95])
def test_the_decay_of_averaged_weights_that_a_short_training_ends_with_is_known_before(decay: float) -> None:
    trainer = supernet_trainer(ema_decay=decay)
    steps = trainer.total_steps
    assert trainer.final_ema_decay == pytest.approx(min(decay, 1 - (steps - 1) ** (-2 / 3)))
    before = trainer.averaged.get_parameter("head.weight").detach().clone()
    trainer.step = steps - 1
    trainer.advance(1)
    moved = (trainer.averaged.get_parameter("head.weight") - before).norm()
    apart = (trainer.model.get_parameter("head.weight") - before).norm()
    assert (moved / apart).item() == pytest.approx(1 - trainer.final_ema_decay, rel=1e-3)
    assert supernet_trainer(ema_decay=None).final_ema_decay is None


def test_draws_of_mixing_erasing_and_depth_are_named_where_more_micro_batches_change_them() -> None:
    """Without them another number of micro-batches is the same training; with any of them it is another."""

    def weights(accumulation: int, **changes: Any) -> Tensor:
        trainer = supernet_trainer(**PLAIN | changes, batch_size=16, accumulation=accumulation)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
        trainer.scheduler.step_update = lambda step: None
        trainer.advance(1)
        assert draws_by_micro_batch(trainer.recipe) == bool(changes)
        return trainer.model.get_parameter("head.weight").detach()

    torch.testing.assert_close(weights(1), weights(4), rtol=1e-4, atol=1e-6)
    augmentations = ({"mixup": 0.8}, {"cutmix": 1.0}, {"erase_probability": 0.9})
    for changes in ({"drop_path": 0.5}, *({"augmentation": one} for one in augmentations)):
        assert (weights(1, **changes) - weights(4, **changes)).abs().max() > 1e-4, changes


def test_too_few_images_for_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match="64 training images are fewer than the 128 of one step"):
        supernet_trainer(batch_size=128)

"""Several ranks train what one does: gradients, weights, and unused blocks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_steps import SPACE as FORTY
from together import call_together

from autoformer.distributed import SINGLE_PROCESS, World
from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import training_loader
from autoformer.recipe import Recipe
from autoformer.sampling import SubnetPass, SubnetSampler, sandwich, uniform
from autoformer.space import SearchSpace
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from runtime.steps.training_setup import _trial

SPACE = SearchSpace.model_validate(FORTY)
PLAIN: dict[str, Any] = {"epochs": 4, "batch_size": 16, "learning_rate": 0.1}
EVERYTHING: dict[str, Any] = PLAIN | {
    "label_smoothing": 0.1, "drop_path": 0.3, "clip_grad": 1.0, "ema_decay": 0.9,
    "augmentation": {
        "crop_padding": 2, "flip": True, "erase_probability": 0.5, "mixup": 0.8, "cutmix": 1.0, "repeats": 2,
    },
}  # fmt: skip
STEPS = 6
SHALLOW = uniform(SPACE.model_copy(update={"choices": SPACE.choices.model_copy(update={"depth": (1,)})}), 0)


class Watched(torch.optim.SGD):
    """Stores the gradients of its last step. AdamW would amplify the rounding of key biases."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
        super().step()


def make_trainer(
    world: World, settings: dict[str, Any], parts: int, sampler: SubnetSampler, sgd: bool = True
) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (96, 1, 28, 28), dtype=torch.uint8, generator=generator)
    split = DecodedSplit(pixels.numpy(), torch.randint(0, 10, (96,), generator=generator).numpy(), [])
    recipe = Recipe.model_validate(settings)
    torch.manual_seed(1 + world.rank)  # rank 0's weights are those that count
    model = Supernet(SPACE, recipe.drop_path)
    images = training_loader(split, recipe, 0, 28, (0.3,), parts, world=world)
    trainer = Trainer(model, sampler, images, 10, (0.3,), (0.3,), recipe, 0)
    if sgd:
        trainer.optimizer = Watched(model.parameters(), lr=0.05, momentum=0.9)  # type: ignore[assignment]
        trainer.scheduler.step_update = lambda step: None
    return trainer


def trained(world: World, settings: dict[str, Any], parts: int, sampler: SubnetSampler) -> dict[str, Any]:
    """Gradients of the first step, weights after some more, the average of these, and the mean loss."""
    trainer = make_trainer(world, settings, parts, sampler)
    first = trainer.advance(1)
    gradients = trainer.optimizer.gradients  # type: ignore[attr-defined]
    loss = (first + trainer.advance(STEPS - 1) * (STEPS - 1)) / STEPS
    weights = [weight.detach() for weight in trainer.model.parameters()]
    averages = [weight.detach() for weight in trainer.averaged.parameters()]
    return {"loss": loss, "gradients": gradients, "weights": weights, "averages": averages}


CASES: dict[str, tuple[dict[str, Any], SubnetSampler]] = {
    "plain": (PLAIN, uniform(SPACE, 0)),
    "everything": (EVERYTHING, uniform(SPACE, 0)),
    "sandwich": (EVERYTHING, sandwich(SPACE, 0)),
    "deep, then shallow": (PLAIN, lambda step: (SubnetPass(SPACE.largest), SubnetPass(SPACE.smallest))),
}


def train_together(world: World, folder: Path) -> None:
    """In each rank: every case, and unused blocks."""
    result = {name: trained(world, settings, 2, sampler) for name, (settings, sampler) in CASES.items()}
    result["muon"] = trained_by_muon(world)
    result["unused"] = unused_blocks(world)
    result["trial"] = trial_of_one_rank(world)
    torch.save(result, folder / f"{world.rank}.pt")


def trained_by_muon(world: World) -> dict[str, torch.Tensor]:
    settings = PLAIN | {"optimizer": "muon", "learning_rate": 1e-3, "clip_grad": 1.0}
    trainer = make_trainer(world, settings, 2, uniform(SPACE, 0), sgd=False)
    trainer.advance(3)
    return trainer.model.state_dict()


def unused_blocks(world: World) -> bool:
    """AdamW: a block that no rank uses keeps its weights and moments, and has no gradient to clip."""
    deep_once: SubnetSampler = lambda step: (SubnetPass(SPACE.largest),) if step == 0 else SHALLOW(step)  # noqa: E731
    trainer = make_trainer(world, PLAIN | {"clip_grad": 1.0}, 2, deep_once, sgd=False)
    trainer.advance(1)
    block = list(trainer.model.get_submodule("blocks.1").parameters())
    before = [parameter.detach().clone() for parameter in block]
    trainer.advance(3)
    state = trainer.optimizer.state
    return all(torch.equal(p, old) and state[p]["step"] == 1 for p, old in zip(block, before, strict=True))


def trial_of_one_rank(world: World) -> list[int]:
    """Rank 0 is out of memory in a backward pass, and tries smaller ones by itself; collectives still match."""
    trainer = make_trainer(world, PLAIN, 2, uniform(SPACE, 0))
    assert trainer.ddp is not None
    trainer.ddp(torch.zeros(2, 1, 28, 28), SPACE.largest)
    training = SimpleNamespace(
        device=trainer.device, space=SPACE, section=trainer.recipe, model=trainer.model,
        largest=lambda images: trainer.model(images, SPACE.largest),
    )  # fmt: skip
    if world.is_rank_zero:
        _trial(training, None)(2)  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    return world.all_gather(world.rank)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("together")
    call_together(train_together, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def same(ours: list[Any], theirs: list[Any], tolerance: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_two_ranks_are_one_with_twice_the_batch(together: list[dict[str, Any]]) -> None:
    """Nothing random but the subnets: one pass over the whole batch gives the same."""
    one, two = trained(SINGLE_PROCESS, PLAIN, 1, CASES["plain"][1]), together[0]["plain"]
    same(two["gradients"], one["gradients"], 1e-5)
    same(two["weights"], one["weights"], 1e-5)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)


@pytest.mark.parametrize("case", ["everything", "sandwich"])
def test_two_ranks_are_one_with_two_accumulation_steps(together: list[dict[str, Any]], case: str) -> None:
    one, two = trained(SINGLE_PROCESS, CASES[case][0], 2, CASES[case][1]), together[0][case]
    for what in ("gradients", "weights", "averages"):
        same(two[what], one[what], 1e-5)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    other = trained(SINGLE_PROCESS, CASES[case][0], 1, CASES[case][1])  # one micro-batch: other augmentation
    assert abs(other["loss"] - one["loss"]) > 1e-4


def test_all_ranks_hold_the_same_weights_to_the_bit(together: list[dict[str, Any]]) -> None:
    for case in CASES:
        for what in ("weights", "averages"):
            assert all(map(torch.equal, together[0][case][what], together[1][case][what]))


def test_two_ranks_are_one_by_muon_too(together: list[dict[str, Any]]) -> None:
    one, (first, second) = trained_by_muon(SINGLE_PROCESS), (rank["muon"] for rank in together)
    for name, weight in one.items():
        assert torch.equal(first[name], second[name]), name
        if not name.endswith("qkv.bias"):  # a key's bias has no gradient but rounding
            torch.testing.assert_close(first[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_blocks_that_only_an_earlier_pass_uses_are_summed_too(together: list[dict[str, Any]]) -> None:
    """The last pass of a step, in which gradients are summed, does not use the deep block."""
    settings, sampler = CASES["deep, then shallow"]
    one = trained(SINGLE_PROCESS, settings, 2, sampler)
    assert all(gradient is not None for gradient in one["gradients"])
    for rank in together:
        same(rank["deep, then shallow"]["gradients"], one["gradients"], 1e-5)


def test_blocks_that_no_rank_uses_stay_as_they_are(together: list[dict[str, Any]]) -> None:
    assert [rank["unused"] for rank in together] == [True, True]


def test_a_trial_of_one_rank_starts_no_collective(together: list[dict[str, Any]]) -> None:
    assert [rank["trial"] for rank in together] == [[0, 1], [0, 1]]


def test_micro_batches_that_ranks_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="3 micro-batches of a step cannot be shared by 2 ranks"):
        make_trainer(World(0, 2), PLAIN | {"batch_size": 24}, 3, uniform(SPACE, 0))

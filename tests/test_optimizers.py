"""Optimisers: AdamW unchanged, Muon on the slices that a step uses, resume and accumulation for all of them."""

import io
from typing import Any, get_args

import pytest
import torch
from small import small_space
from test_training import PLAIN, SPACE, always, images, make_trainer, supernet_trainer
from timm.optim import param_groups_weight_decay
from timm.optim.muon import Muon as TimmMuon
from torch import Tensor

from autoformer.recipe import OptimizerName
from autoformer.sampling import SubnetPass, whole_model
from autoformer.space import SubnetSpec
from autoformer.supernet import Supernet
from autoformer.training import Trainer

OPTIMIZERS = get_args(OptimizerName)
MUON: dict[str, Any] = {**PLAIN, "ema_decay": None, "optimizer": "muon"}
FC2 = "blocks.0.mlp.fc2.weight"


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def test_the_default_is_the_adamw_of_torch_to_the_bit() -> None:
    ours, plain = supernet_trainer(), supernet_trainer()
    groups = param_groups_weight_decay(plain.model, 0.05, no_weight_decay_list=plain.model.no_weight_decay())
    plain.optimizer = plain.scheduler.optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    for group in groups:
        group["initial_lr"] = 1e-3
    for trainer in (ours, plain):
        trainer.advance(5)
    expected = weights(plain)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(ours).items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_with_any_optimizer_is_resumed_to_the_bit(optimizer: str) -> None:
    through, killed, resumed = (supernet_trainer(optimizer=optimizer) for _ in range(3))
    through.advance(9)
    killed.advance(4)
    file = io.BytesIO()
    torch.save(killed.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.advance(5)
    expected = weights(through)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_blocks_beyond_the_depth_keep_their_weights_with_any_optimizer(optimizer: str) -> None:
    trainer = supernet_trainer(lambda step: (SubnetPass(SPACE.smallest if step else SPACE.largest),),
                               **PLAIN, optimizer=optimizer)  # fmt: skip
    trainer.advance(1)
    before = weights(trainer)
    trainer.advance(2)
    last = f"blocks.{SPACE.supernet.depth - 1}."
    moved = {name for name, tensor in weights(trainer).items() if not torch.equal(tensor, before[name])}
    assert FC2 in moved and not [name for name in moved if name.startswith(last)]


def test_a_step_of_muon_is_that_of_a_matrix_that_is_the_slice() -> None:
    """The extracted subnet has the slice for a whole matrix, and takes the same step; beyond the slice all stays."""
    spec = SubnetSpec(3, 96, (2, 3, 4), (1.0, 2.0, 3.0))
    trainer = supernet_trainer(always(spec), **MUON)
    before = weights(trainer)
    alone = trainer.model.extract(spec)
    separate = make_trainer(alone, whole_model, images(), trainer.recipe)
    for one in (trainer, separate):
        one.advance(1)
    after = weights(trainer)
    slices = trainer.model.matrix_slices([spec])
    assert len(slices) == 12
    for name, (rows, columns) in slices.items():
        moved = alone.state_dict()[name]
        assert moved.shape == (rows, columns)
        torch.testing.assert_close(after[name][:rows, :columns], moved, rtol=1e-3, atol=1e-5, msg=name)
        beyond = torch.ones_like(after[name], dtype=torch.bool)
        beyond[:rows, :columns] = False
        assert torch.equal(after[name][beyond], before[name][beyond]), name
        momentum = trainer.optimizer.state[trainer.model.get_parameter(name)]["momentum_buffer"]
        assert momentum[:rows, :columns].any() and not momentum[beyond].any()


def test_the_step_of_muon_has_singular_values_of_about_one_times_its_scale() -> None:
    trainer = supernet_trainer(always(SPACE.smallest), **MUON, weight_decay=0.0)
    trainer.advance(1)
    before = weights(trainer)[FC2]
    trainer.advance(1)
    rows, columns = trainer.model.matrix_slices([SPACE.smallest])[FC2]
    step = (weights(trainer)[FC2] - before)[:rows, :columns]
    values = torch.linalg.svdvals(step) / (trainer.learning_rate * 0.2 * max(rows, columns) ** 0.5)
    assert values[:10].tolist() == pytest.approx([1] * 10, abs=0.25)  # the gradient's rank is small


def test_muon_whole_is_the_muon_of_timm() -> None:
    """timm rounds to bfloat16, ours on a CPU to float32."""
    ours, plain = (supernet_trainer(**MUON | {"optimizer": "muon_whole"}) for _ in range(2))
    plain.optimizer = TimmMuon(plain.optimizer.param_groups, lr=1e-3, nesterov=True)
    start = weights(ours)
    for trainer in (ours, plain):
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in trainer.model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            trainer.optimizer.step()
    expected = weights(plain)
    for name, tensor in weights(ours).items():
        step = expected[name] - start[name]
        assert (tensor - expected[name]).norm() <= 0.02 * step.norm(), name


def test_muon_whole_moves_what_no_subnet_used() -> None:
    trainer = supernet_trainer(always(SPACE.smallest), **MUON | {"optimizer": "muon_whole"})
    trainer.model.get_parameter(FC2).data[SPACE.smallest.embed_dim :] = 1.0
    trainer.advance(1)
    assert (weights(trainer)[FC2][SPACE.smallest.embed_dim :] < 1).all()  # by the decay


def test_muon_takes_the_matrices_of_blocks_and_adamw_all_else() -> None:
    trainer = supernet_trainer(**MUON)
    trainer.advance(1)
    of = {id(weight): name for name, weight in trainer.model.named_parameters()}
    state = {of[id(weight)]: set(values) for weight, values in trainer.optimizer.state.items()}
    by_muon = {name for name, keys in state.items() if "momentum_buffer" in keys}
    assert by_muon and all("exp_avg" in keys for name, keys in state.items() if name not in by_muon)
    ends = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert by_muon == {name for name in state if name.endswith(ends)}


def test_the_slice_of_several_subnets_holds_each_of_them() -> None:
    space = small_space()
    wide, tall = SubnetSpec(1, 16, (1,), (1.0,)), SubnetSpec(2, 8, (3, 2), (2.0, 1.0))
    slices = Supernet(space).matrix_slices([wide, tall])
    assert slices["blocks.0.attn.qkv.weight"] == (3 * 3 * space.head_dim, 16)
    assert slices["blocks.0.mlp.fc2.weight"] == (16, 16)
    assert slices["blocks.1.mlp.fc1.weight"] == (8, 8)
    assert len(slices) == 8


@pytest.mark.parametrize("optimizer", ["nadamw", "muon", "muon_whole"])
def test_accumulation_gives_the_step_of_the_whole_batch_with_any_optimizer(optimizer: str) -> None:
    changes = MUON | {"optimizer": optimizer, "batch_size": 16}
    whole, parts = (supernet_trainer(**changes, accumulation=count) for count in (1, 4))
    for trainer in (whole, parts):
        trainer.advance(2)
    for name, tensor in weights(whole).items():
        if not name.endswith("qkv.bias"):  # keys' biases have no gradient but rounding
            torch.testing.assert_close(tensor, weights(parts)[name], rtol=1e-3, atol=1e-4, msg=name)

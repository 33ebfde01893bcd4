"""Checkpointing, compilation and asynchronous execution, none of which changes a result."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import perturb, small_space
from test_training import supernet_trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autoformer.errors import AutoFormerError
from autoformer.space import SubnetSpec
from autoformer.supernet import Supernet
from runtime.steps.compiler import require_compiler

SPACE = small_space()
SPEC = SubnetSpec(3, 12, (2, 1, 3), (1.3, 2.0, 1.0))


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, call: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model.zero_grad()
    call(images()).square().sum().backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


# --- activation checkpointing ---


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_checkpointing_gives_the_same_gradients_to_the_bit_with_stochastic_depth_too(precision: torch.dtype) -> None:
    supernet = perturb(Supernet(SPACE, drop_path=0.5)).float().train()
    model = supernet.extract(SPEC)

    def in_supernet(x: Tensor) -> Tensor:
        return supernet(x, SPEC)

    for one, call in ((supernet, in_supernet), (model, model)):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            expected = gradients(one, call)
            passes: list[int] = []
            hook = one.blocks[1].attn.proj.register_forward_hook(lambda *_, passes=passes: passes.append(1))
            one.set_grad_checkpointing(True)
            found = gradients(one, call)
            hook.remove()
        assert len(passes) == 2  # forward, and once more for the backward pass
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.equal(found[name], gradient), name


def test_checkpointing_stores_less_for_the_backward_pass() -> None:
    supernet = perturb(Supernet(SPACE)).float()

    def kept() -> int:
        held: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            supernet(images(), SPEC)
        return sum(held.values())

    whole = kept()
    supernet.set_grad_checkpointing(True)
    assert kept() < whole / 2


# --- no waiting for the device ---


class NoSync(TorchDispatchMode):
    """Fails on synchronisation with the device: a value read back, or a shape that depends on values."""

    REFUSED = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.REFUSED or (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_synchronisation_is_detected() -> None:
    x = torch.ones(3)
    for wait in (lambda: x.sum().item(), lambda: bool(x[0] > 0), lambda: x.nonzero(), lambda: x[x > 0]):
        with pytest.raises(AssertionError, match="waits for the device"), NoSync():
            wait()


def test_a_training_step_does_not_synchronise() -> None:
    """Supernet, accumulation, clipping, EMA, stochastic depth and mixup."""
    mixed = {"crop_padding": 2, "flip": True, "mixup": 0.8, "cutmix": 1.0}
    trainer = supernet_trainer(accumulation=2, clip_grad=1.0, augmentation=mixed)
    trainer.take_step()
    batches = [trainer.images.batch(number) for number in (2, 3)]  # made on the host, before they go to the device
    trainer.images.batch = lambda number: batches[number - 2]  # type: ignore[method-assign]
    with NoSync():
        loss = trainer.take_step()
    assert loss.isfinite()


# --- torch.compile ---


def test_compiling_changes_neither_logits_nor_names() -> None:
    model = perturb(Supernet(SPACE)).float().extract(SubnetSpec(1, 12, (2,), (2.0,)))
    names, expected, answer = list(model.state_dict()), gradients(model, model), model(images())
    model.compile(backend="eager")  # what reads the model; the compilers behind it take minutes
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(images()), answer)
    for name, gradient in gradients(model, model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(model)  # as the average of the weights is made
    assert twin._compiled_call_impl is None
    torch.testing.assert_close(twin(images()), answer)


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(AutoFormerError, match=r"needs a C\+\+ compiler, .* no g\+\+ or clang") as error:
        require_compiler()
    assert "\n" not in str(error.value)
    compiler = tmp_path / "my-compiler"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    require_compiler()

"""The published checkpoints' layout: logits and gradients of the official code, and files that must not be trusted."""

import argparse
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from official_layout import write_checkpoint
from safetensors.torch import save_file
from small import small_space
from torch import Tensor

import autoformer.timm_models  # noqa: F401
from autoformer import checkpoint
from autoformer.cards import Preprocessing, SubnetCard
from autoformer.errors import AutoFormerError
from autoformer.named import load_space
from autoformer.official import from_official, load_any_supernet, load_official, read_checkpoint
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet

DATA = Path(__file__).parent / "data"
FILES = ("official_small", "official_small_class_token")


def golden_space(name: str) -> SearchSpace:
    supernet = json.loads((DATA / f"{name}.json").read_text())["supernet"]
    size = {key: supernet.pop(key) for key in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    pooling = "mean" if supernet.pop("global_pool") else "class_token"
    choices = {key: [value] for key, value in size.items()}
    return SearchSpace.model_validate(
        supernet | {"name": name, "pooling": pooling, "supernet": size, "choices": choices}
    )


def golden_specs(name: str) -> list[SubnetSpec]:
    keys = ("depth", "embed_dim", "num_heads", "mlp_ratio")
    rows = json.loads((DATA / f"{name}.json").read_text())["subnets"]
    return [SubnetSpec.from_dict({key: row[key] for key in keys}) for row in rows]


def golden_tensors(name: str, prefix: str) -> dict[str, Tensor]:
    with np.load(DATA / f"{name}.npz") as file:
        return {key.removeprefix(prefix): torch.from_numpy(file[key]) for key in file.files if key.startswith(prefix)}


@pytest.mark.parametrize("name", FILES)
def test_logits_of_every_subnet(name: str) -> None:
    supernet = load_official(golden_tensors(name, "state_dict/"), golden_space(name)).eval()
    images = golden_tensors(name, "images")[""]
    logits = golden_tensors(name, "logits_")
    specs = golden_specs(name)
    assert len(specs) == len(logits) == 6
    for index, spec in enumerate(specs):
        expected = logits[str(index)]
        assert expected.std() > 0.01
        with torch.no_grad():
            assert (supernet(images, spec) - expected).abs().max() < 1e-5
            assert (supernet.extract(spec)(images) - expected).abs().max() < 1e-5


def test_gradients() -> None:
    name = FILES[0]
    space = golden_space(name)
    supernet = load_official(golden_tensors(name, "state_dict/"), space)
    logits = supernet(golden_tensors(name, "images")[""], golden_specs(name)[2])
    F.cross_entropy(logits, torch.arange(4)).backward()
    ours = {key: parameter.grad for key, parameter in supernet.named_parameters() if parameter.grad is not None}
    expected = from_official(golden_tensors(name, "grad/"), space)
    assert len(expected) == 24
    assert max(gradient.abs().max().item() for gradient in expected.values()) > 0.01
    for key, gradient in expected.items():
        assert (ours[key] - gradient).abs().max() < 1e-5, key


@pytest.mark.parametrize("name", FILES)
def test_aligned_bias_gives_other_logits(name: str) -> None:
    """Only the official rule gives the golden logits, not a bias ordered like the weight."""
    space, images = golden_space(name), golden_tensors(name, "images")[""]
    official = load_official(golden_tensors(name, "state_dict/"), space).eval()
    aligned = Supernet(space, bias_rule="aligned").eval()
    state = official.state_dict()
    for key in state:
        if key.endswith("qkv.bias"):
            state[key] = state[key].view(-1, space.head_dim, 3).transpose(1, 2).reshape(-1)
    aligned.load_state_dict(state)
    for spec in golden_specs(name):
        assert (official(images, spec) - aligned(images, spec)).abs().max() > 1e-3


def test_qkv_rows_are_regrouped_and_the_bias_is_not() -> None:
    name = FILES[0]
    official = golden_tensors(name, "state_dict/")
    ours = from_official(official, golden_space(name))
    weight, regrouped = official["blocks.0.attn.qkv.weight"], ours["blocks.0.attn.qkv.weight"].view(2, 3, 64, 128)
    for component in range(3):
        for head in range(2):
            assert torch.equal(regrouped[head, component], weight[component::3][64 * head : 64 * (head + 1)])
    assert torch.equal(ours["blocks.0.attn.qkv.bias"], official["blocks.0.attn.qkv.bias"])


def test_file_with_the_training_arguments_loads(tmp_path: Path) -> None:
    state = golden_tensors(FILES[0], "state_dict/")
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": state, "epoch": 499, "args": argparse.Namespace(lr=5e-4, gp=True)}, file)
    read = read_checkpoint(file)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)
    load_official(read, golden_space(FILES[0]))


class Hostile:
    """Unpickled as usual, it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


def test_file_that_carries_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "hostile.pth"
    torch.save({"model": {}, "args": Hostile(trace)}, file)
    with pytest.raises(AutoFormerError, match="not a readable checkpoint") as error:
        read_checkpoint(file)
    assert "\n" not in str(error.value)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # proves that the file would have done it
    assert trace.exists()


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(AutoFormerError, match="no such file"):
        read_checkpoint(tmp_path / "none.pth")
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"not a checkpoint")
    with pytest.raises(AutoFormerError, match="not a readable checkpoint"):
        read_checkpoint(damaged)
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps(["no", "weights"], protocol=2))
    with pytest.raises(AutoFormerError):
        read_checkpoint(plain)
    other = tmp_path / "other.pth"
    torch.save({"model": {"epoch": 3}}, other)
    with pytest.raises(AutoFormerError, match="holds no weights under 'model'"):
        read_checkpoint(other)


def test_wrong_space_is_named() -> None:
    state = golden_tensors(FILES[0], "state_dict/")
    space = golden_space(FILES[0])
    wider = space.model_copy(update={"name": "wider", "supernet": space.supernet.model_copy(update={"embed_dim": 256})})
    with pytest.raises(AutoFormerError, match=r"has shape .*'wider' needs .*; is it a checkpoint of another space\?"):
        load_official(state, wider)
    deeper = space.model_copy(update={"name": "deeper", "supernet": space.supernet.model_copy(update={"depth": 4})})
    with pytest.raises(AutoFormerError, match=r"no tensor for 'blocks\.3\..*is it a checkpoint of 'deeper'"):
        load_official(state, deeper)
    with pytest.raises(AutoFormerError, match="unexpected tensor 'blocks"):
        load_official(state, space.model_copy(update={"relative_position": False}))
    with pytest.raises(AutoFormerError, match="checkpoint: "):
        load_official(state, small_space())
    with pytest.raises(AutoFormerError, match="checkpoint: "):
        load_official({}, space)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool])
def test_weights_of_integers_are_refused_by_every_reader(dtype: torch.dtype, tmp_path: Path) -> None:
    space = small_space()
    state = Supernet(space).state_dict() | {"norm.weight": torch.ones(20, dtype=dtype)}
    words = rf"'norm.weight' holds {str(dtype)[6:]}, not floating point; save the weights before quantisation"
    save_file(state, tmp_path / "supernet.safetensors")
    with pytest.raises(AutoFormerError, match=rf"supernet.safetensors: {words}"):
        load_any_supernet(tmp_path / "supernet.safetensors", space)
    spec = space.largest
    model = Supernet(space).extract(spec)
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, classes=tuple("abcde"))
    card = SubnetCard(space=space, subnet=spec, provenance={}, preprocessing=preprocessing)
    checkpoint.save_subnet(tmp_path / "model", model, card)
    save_file(model.state_dict() | {"norm.weight": torch.ones(16, dtype=dtype)}, tmp_path / "model/model.safetensors")
    with pytest.raises(AutoFormerError, match=words):
        checkpoint.load_subnet(tmp_path / "model")
    tiny = timm.create_model("autoformer_tiny")
    save_file(tiny.state_dict() | {"norm.weight": torch.ones(192, dtype=dtype)}, tmp_path / "tiny.safetensors")
    with pytest.raises(AutoFormerError, match=words):
        timm.create_model(
            "autoformer_tiny",
            pretrained=True,
            pretrained_cfg_overlay={"file": str(tmp_path / "tiny.safetensors")},
        )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("official", [True, False])
def test_weights_that_are_not_finite_name_their_file(value: float, official: bool, tmp_path: Path) -> None:
    space, file = small_space(), tmp_path / "supernet.pth"
    state = read_checkpoint(write_checkpoint(file, space)) if official else Supernet(space).state_dict()
    state["norm.weight"][3] = value
    torch.save(state, file)
    with pytest.raises(AutoFormerError, match=r"supernet\.pth: 'norm.weight' holds NaN or infinity; its training"):
        load_any_supernet(file, space)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(()), torch.zeros(7), torch.zeros(7, 20), torch.zeros(2, 20), torch.zeros(12, 5, 4)]
)
def test_qkv_weights_of_any_other_shape_are_named(tensor: torch.Tensor, tmp_path: Path) -> None:
    space, file = small_space(), tmp_path / "supernet.pth"
    state = read_checkpoint(write_checkpoint(file, space)) | {"blocks.1.attn.qkv.weight": tensor}
    with pytest.raises(AutoFormerError, match=r"'blocks.1.attn.qkv.weight' has shape .*another space\?"):
        load_official(state, space)


@pytest.mark.parametrize(("name", "tensors"), [("tiny", 232), ("small", 232), ("base", 264)])
def test_every_published_space_has_the_published_tensors(name: str, tensors: int) -> None:
    with torch.device("meta"):
        assert len(Supernet(load_space(f"autoformer-{name}")).state_dict()) == tensors

"""Weights in everyday wrappings: one rule for official checkpoints, timm's path and teachers, and no code is run."""

import argparse
import datetime
import gzip
import os
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import autoformer.timm_models  # noqa: F401
from autoformer.distillation import load_teacher
from autoformer.errors import AutoFormerError
from autoformer.official import load_any_supernet, load_official, read_checkpoint
from autoformer.recipe import Distillation
from autoformer.weights import read_weights

STATE: dict[str, Tensor] = {"head.weight": torch.ones(2, 3), "head.bias": torch.zeros(2), "cls_token": torch.ones(1)}
ZEROS = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED: dict[str, Any] = {
    "bare": STATE,
    "module.": {"model": prefixed("module.")},
    "_orig_mod.": prefixed("_orig_mod."),
    "module._orig_mod.": prefixed("module._orig_mod."),
    "_orig_mod.module.": prefixed("_orig_mod.module."),
    "a compiled part": {name.replace("head.", "head._orig_mod."): tensor for name, tensor in STATE.items()},
    "parts sharded and recomputed": {
        "model_state_dict": {
            f"_fsdp_wrapped_module.{name}".replace("head.", "head._checkpoint_wrapped_module."): tensor
            for name, tensor in STATE.items()
        },
        "optimizer_state_dict": {},
    },
    "DeepSpeed": {"module": prefixed("module."), "dp_world_size": 1},
    "AveragedModel": {"n_averaged": torch.tensor(3), **prefixed("module.")},
    "state_dict": {"state_dict": STATE, "epoch": 3, "arch": "x"},
    "model, state_dict": {"model": {"state_dict": STATE}},
    "averaged weights before raw ones": {"model": ZEROS, "model_ema": STATE},
    "averaged weights before raw ones, in timm": {"state_dict": ZEROS, "state_dict_ema": STATE},
    **{
        f"averaged weights before raw ones, as {key}": {"model": ZEROS, key: STATE}
        for key in ("ema", "ema_state_dict", "model_ema_state_dict", "params_ema", "averaged_model")
    },
    "averaged weights in a wrapping": {"model": ZEROS, "ema": {"module": prefixed("module."), "decay": 0.99}},
    "settings of averaging": {"model": STATE, "ema": {"decay": 0.99, "updates": torch.tensor(3)}},
    "dates and ranges": {"model": STATE, "made": datetime.datetime(2026, 1, 1), "seen": [range(3), frozenset([1])]},
    "no averaged weights": {"model": STATE, "model_ema": None},
    "parameters": {"model": {name: nn.Parameter(tensor) for name, tensor in STATE.items()}},
    "numpy scalars": {"model": STATE, "epoch": np.int64(3), "best": np.float64(74.7), "fp32": np.float32(1)},
    "numpy arrays": {"model": STATE, "classes": np.arange(3), "done": np.bool_(True)},
    "defaultdict": {"model": OrderedDict(STATE), "meta": defaultdict(list, a=[1]), "counts": Counter("ab")},
    "arguments": {"model": STATE, "args": argparse.Namespace(output=PosixPath("/x"), device=torch.device("cuda"))},
    "namespace": {"model": STATE, "config": types.SimpleNamespace(lr=0.1, folders={PosixPath("a")})},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", WRAPPED.values(), ids=WRAPPED)
def test_weights_load_out_of_the_dictionaries_that_training_scripts_save(
    content: Any, zipped: bool, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    read = read_weights(tmp_path / "x.pth")
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("name", ["x.pth", "x.bin", "x", "x.safetensors"])
def test_the_kind_of_a_file_of_weights_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    for save in (lambda file: save_file(STATE, file), lambda file: torch.save(STATE, file)):
        save(tmp_path / name)
        read = read_weights(tmp_path / name)
        assert all(torch.equal(read[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("size", [0x80, 0x180, 0x4B50, 0x5B20, 0x7B20])
def test_a_safetensors_file_is_known_by_a_header_of_any_size(size: int, tmp_path: Path) -> None:
    """The first bytes are the size: those of a pickle, of a zip file, and of a text in JSON."""
    file, tensor = tmp_path / "x.safetensors", torch.ones(2)
    save_file({"w": tensor}, file, {"note": ""})
    short = int.from_bytes(file.read_bytes()[:8], "little")
    for extra in range(size - short, size - short - 8, -1):
        save_file({"w": tensor}, file, {"note": "x" * extra})
        if int.from_bytes(file.read_bytes()[:8], "little") == size:
            break
    assert int.from_bytes(file.read_bytes()[:8], "little") == size
    assert torch.equal(read_weights(file)["w"], tensor)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(b"weights", mtime=0), "a gzip file: unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS: .*git lfs pull"),
        (b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning", "a web page, as of a download that asks"),
        (b'{"metadata": {}, "weight_map": {}}', "a text in JSON, not the weights"),
        (b"", "an empty file: download it again"),
    ],
)
def test_what_stands_in_place_of_weights_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(AutoFormerError, match=rf"x\.pth: not a checkpoint but {says}"):
        read_weights(tmp_path / "x.pth")


class Config:
    """A class of the user's own."""


class Hostile:
    """Unpickled as usual, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


class Indirect(Hostile):
    """The same, as the factory of a defaultdict: called when a key is missing."""

    def __reduce__(self) -> Any:
        return defaultdict, (os.getcwd,)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "class": (
        lambda trace: {"model": STATE, "config": Config()},
        r"it holds \S*test_weights.Config, which could be code",
    ),
    "code": (
        lambda trace: {"model": STATE, "x": Hostile(trace)},
        r"it holds \S*mkdir, which could be code and is not run",
    ),
    "code in a factory": (lambda trace: {"model": STATE, "x": Indirect(trace)}, r"it holds \S*getcwd, which could be"),
    "key": (
        lambda trace: {"weights": STATE},
        "holds no weights: found the keys 'weights'; expected a state dict, bare or",
    ),
    "value": (lambda trace: {"model": {"epoch": 3}}, "holds no weights under 'model': 'epoch' is a int, not a tensor"),
    "prefix": (lambda trace: {"state_dict": prefixed("net.")}, r"every name begins with 'net\.', a prefix of another"),
    "twice": (lambda trace: STATE | prefixed("module."), "is there twice, once as 'module"),
    "list": (lambda trace: [1, 2], "holds no weights: found list"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("content", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_named_in_one_line_and_no_code_is_run(
    content: Callable[[Path], Any], says: str, zipped: bool, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    torch.save(content(trace), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(AutoFormerError, match=says) as caught:
        read_weights(tmp_path / "x.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'x.pth'}: ")
    assert str(caught.value).isprintable()
    assert not trace.exists()


def test_a_missing_weight_that_is_there_under_a_prefix_names_the_prefix(tmp_path: Path) -> None:
    """As of a Lightning module, which has other parts beside its model."""
    from test_official import FILES, golden_space, golden_tensors

    state, space = golden_tensors(FILES[0], "state_dict/"), golden_space(FILES[0])
    plain = load_official(state, space).state_dict()
    torch.save({"state_dict": prefixed("net.", plain) | {"loss.weight": torch.ones(2)}}, tmp_path / "x.ckpt")
    with pytest.raises(AutoFormerError, match=r"no tensor for '(\S+)'; it is there as 'net\.\1': keep the names that"):
        load_any_supernet(tmp_path / "x.ckpt", space)


def test_one_rule_for_official_checkpoints_timm_and_teachers(tmp_path: Path) -> None:
    model = timm.create_model("autoformer_tiny", img_size=64).eval()
    file = tmp_path / "x.pth"
    around = {"best": np.float64(1), "args": argparse.Namespace(out=PosixPath("/x")), "meta": defaultdict(list)}
    torch.save({"model_ema": prefixed("_orig_mod.module.", model.state_dict()), **around}, file)
    assert read_checkpoint(file).keys() == model.state_dict().keys()
    for features in (False, True):
        made: Any = timm.create_model(
            "autoformer_tiny",
            img_size=64,
            pretrained=True,
            pretrained_cfg_overlay={"file": file},
            features_only=features,
        )
        inner = made.model if features else made
        assert torch.equal(inner.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)
        assert "state_dict" not in inner.pretrained_cfg
    teacher = timm.create_model("resnet18", num_classes=4)
    torch.save({"state_dict": prefixed("module.", teacher.state_dict()), **around}, file)
    loaded: Any = load_teacher(Distillation(teacher="resnet18", checkpoint=str(file)), 4)
    assert torch.equal(loaded.fc.weight, teacher.fc.weight)


def test_weights_in_memory_are_unwrapped_too() -> None:
    from test_official import FILES, golden_space, golden_tensors

    state, space = golden_tensors(FILES[0], "state_dict/"), golden_space(FILES[0])
    expected = load_official(state, space).state_dict()
    wrapped = load_official({"model": prefixed("module.", state)}, space).state_dict()  # type: ignore[dict-item]
    assert all(torch.equal(wrapped[name], expected[name]) for name in expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(2, 3, device="meta"), torch.ones(2, 3).to_sparse(), torch.ones(2, 3).to_sparse_csr(),
        torch.ones(2, 3, dtype=torch.complex64), torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.ones(2, 3)]),
    ],
    ids=["meta", "sparse", "compressed rows", "complex", "quantised", "nested"],
)  # fmt: skip
def test_tensors_that_are_no_plain_numbers_are_named(tensor: Tensor, tmp_path: Path) -> None:
    """torch refuses some of them with a traceback, and drops half of a complex number."""
    torch.save({"model": STATE | {"head.weight": tensor}}, tmp_path / "a.pth")
    with pytest.raises(AutoFormerError, match=r"'head.weight' is sparse, quantised, complex or without content"):
        read_weights(tmp_path / "a.pth")

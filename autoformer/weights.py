"""Read the weights that training scripts save: one rule for official checkpoints, timm models and teachers.

No code in a file is run: besides tensors, only a few classes that hold plain values are allowed.
"""

import contextlib
import datetime
import decimal
import io
import pickle
import re
import types
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import check_regular

# The first one that is there: timm's order; then the tutorials of PyTorch, and DeepSpeed.
WRAPPINGS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "module")
# Other keys of averaged weights, beside raw ones under one of those.
_AVERAGED = (
    "ema", "ema_state_dict", "model_ema_state_dict", "state_dict_model_ema", "ema_model", "ema_weights", "ema_params",
    "params_ema", "net_ema", "averaged_model", "swa_model", "swa_state_dict",
)  # fmt: skip
_AS_WEIGHTS = "save its state dict as safetensors"
_NESTED = 8  # levels of wrapping
_PREFIX = "module."  # of DistributedDataParallel, DataParallel and averaged models
_INNER = re.compile(
    r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)  # torch.compile, FSDP: around parts, too
_NOT_WEIGHTS = (
    (rb"\x1f\x8b", "a gzip file: unpack it first"),
    (rb"version https://git-lfs", "a pointer of Git LFS: fetch the file with `git lfs pull`"),
    (rb"\s*(<!doctype|<html)", "a web page, as of a download that asks first: download the file with a browser"),
    (rb"\s*[{\[]", "a text in JSON, not the weights that it may name"),
    (rb"\Z", "an empty file: download it again"),
)


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """Replaces `defaultdict`, which torch's reader cannot fill."""
    return {}


_HARMLESS: list[Any] = [
    (_plain_dict, "collections.defaultdict"),
    *(Namespace, types.SimpleNamespace, list, dict, set, int, float, str, bool, tuple),
    *(
        (PurePosixPath, f"pathlib{module}.{name}")
        for module in ("", "._local")
        for name in ("PosixPath", "PurePosixPath")
    ),
    *((PureWindowsPath, f"pathlib{m}.{name}") for m in ("", "._local") for name in ("WindowsPath", "PureWindowsPath")),
    *(frozenset, range, slice, datetime.date, datetime.datetime, datetime.timedelta, decimal.Decimal),
    *(np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdFDSU")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((np.zeros(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights of a .safetensors file or of one that `torch.save` wrote, on the CPU.

    Raises `AutoFormerError` naming the class, key or prefix that is not supported.
    """
    path = Path(path)
    if _are_safetensors(path):
        return unwrapped(read_safetensors(path, _AS_WEIGHTS), path)
    with torch.serialization.safe_globals(_HARMLESS):
        return unwrapped(read_torch(path, _AS_WEIGHTS), path)


def _are_safetensors(path: Path) -> bool:
    """By content: files get other names. Raises `AutoFormerError` for what holds no weights, but stands for them."""
    with _one_line(path, _AS_WEIGHTS):
        check_regular(path)
        with path.open("rb") as file:
            start = file.read(64)
    if start[7:9] == b"\0{":  # the size of the header, whose first bytes may be any, then the header
        return True
    for form, what in _NOT_WEIGHTS:
        if re.match(form, start, re.IGNORECASE):
            raise AutoFormerError(f"{path}: not a checkpoint but {what}")
    return path.suffix == ".safetensors" and not start.startswith((b"PK", b"\x80"))  # torch's files


def read_safetensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU. Raises `AutoFormerError` naming the file."""
    with _one_line(path, remedy):
        check_regular(path)
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > BOUNDS.header_bytes:
            raise ValueError(f"a header of {quantity(header, 'byte')}")
        return load_file(path)


def read_torch(path: Path, remedy: str) -> Any:
    """The content of a file that `torch.save` wrote, on the CPU. No code in it is run.

    Raises `AutoFormerError` naming the file.
    """
    with _one_line(path, remedy):
        check_regular(path)
        if zipfile.is_zipfile(path):
            _check_members(path)
        try:
            with _Pickled(path) as file:  # a path that ends in .safetensors would be read as such
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if names := _refused_classes(path, error):
                raise AutoFormerError(
                    f"{path}: not a readable checkpoint: it holds {names}, which could be code and is not run; {remedy}"
                ) from None
            raise


def _check_members(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(info.compress_type != zipfile.ZIP_STORED for info in members):
        raise ValueError("it is compressed, which torch never does")
    if sum(info.file_size for info in members) > path.stat().st_size:
        raise ValueError("its parts are larger than the file")  # several names may stand for the same bytes
    if any(info.filename.endswith(".pkl") and info.file_size > BOUNDS.pickle_bytes for info in members):
        raise ValueError(f"its values beside tensors take more than {BOUNDS.pickle_bytes >> 20} MB")


class _Pickled(io.BufferedReader):
    """A checkpoint that ends an endless pickle: torch reads each of its operations by itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > BOUNDS.pickle_bytes:
            raise ValueError(f"more than {BOUNDS.pickle_bytes} values beside tensors")
        return super().read(size)


@contextlib.contextmanager
def _one_line(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except AutoFormerError:
        raise
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such file") from None
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or a hostile file
        reason = " ".join(_plain(error).split()[:20]) or type(error).__name__
        raise AutoFormerError(f"{path}: not a readable checkpoint ({reason}); {remedy}") from None


def unwrapped(content: Any, where: str | Path = "checkpoint") -> dict[str, Tensor]:
    """The weights in a training script's dictionary, with the parameter names of the plain model.

    The first key of `_AVERAGED` and `WRAPPINGS` that exists is used: averaged weights before raw ones. The prefixes
    `module.`, `_orig_mod.` and those of FSDP are removed.
    """
    keys: list[str] = []
    while isinstance(content, Mapping) and len(keys) < _NESTED:  # a pickle may contain itself
        key = next((key for key in _AVERAGED if _holds_weights(content.get(key))), None)
        key = key or next((key for key in WRAPPINGS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        keys, content = [*keys, key], content[key]
    under = f" under '{'.'.join(keys)}'" if keys else ""
    if not isinstance(content, Mapping) or (not keys and not any(isinstance(v, Tensor) for v in content.values())):
        found = type(content).__name__
        if isinstance(content, Mapping):
            found = f"the keys {', '.join(map(repr, list(content)[:5]))}" if content else "no key"
        raise AutoFormerError(
            f"{where}: holds no weights{under}: found {found}; expected a state dict, bare or under one of "
            f"{', '.join(WRAPPINGS)}"
        )
    weights: dict[str, Tensor] = {}
    for name, tensor in content.items():
        _check_weight(name, tensor, f"{where}: holds no weights{under}", str(where))
        bare = _bare(name)
        if bare in weights:
            raise AutoFormerError(f"{where}: '{bare}' is there twice, once as '{name}'")
        weights[bare] = tensor
    weights.pop("n_averaged", None)  # of torch's AveragedModel
    first = {name.partition(".")[0] for name in weights}
    if len(first) == 1 and len(weights) > 2:
        raise AutoFormerError(f"{where}: every name begins with '{first.pop()}.', a prefix of another model; remove it")
    return weights


def _holds_weights(value: Any) -> bool:
    """Whether it is a state dict, bare or under one of `WRAPPINGS`."""
    if not isinstance(value, Mapping):
        return False
    inner = next((value[key] for key in WRAPPINGS if isinstance(value.get(key), Mapping)), value)
    return any(isinstance(tensor, Tensor) and tensor.ndim for tensor in inner.values())


def prefix_hint(name: str, weights: Mapping[str, Tensor]) -> str:
    """A hint at the prefix under which a missing weight is there, as of a Lightning module; "" for none."""
    found = next((other for other in weights if other.endswith(f".{name}")), None)
    return f" it is there as '{found}': keep the names that begin so, without that prefix;" if found else ""


def _check_weight(name: Any, tensor: Any, none: str, where: str) -> None:
    shown = repr(name)[:80]
    if not isinstance(name, str):
        raise AutoFormerError(f"{none}: {shown} is no name")
    if not isinstance(tensor, Tensor):
        raise AutoFormerError(f"{none}: {shown} is a {type(tensor).__name__}, not a tensor")
    if not _has_plain_numbers(tensor):
        raise AutoFormerError(f"{where}: '{name}' is sparse, quantised, complex or without content; {_AS_WEIGHTS}")
    if tensor.numel() > tensor.untyped_storage().nbytes() // tensor.element_size():  # by a stride of 0
        raise AutoFormerError(f"{where}: '{name}' has more numbers than the file holds of it; {_AS_WEIGHTS}")


def check_same_kind(weights: Mapping[str, Tensor], like: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise `AutoFormerError` if a weight holds integers or truth values where `like` has floats, as if quantised."""
    for name, tensor in weights.items():
        if name in like and like[name].is_floating_point() and not tensor.is_floating_point():
            raise AutoFormerError(
                f"{where}: '{name}' holds {str(tensor.dtype).removeprefix('torch.')}, not floating point; "
                "save the weights before quantisation"
            )


def _has_plain_numbers(tensor: Tensor) -> bool:
    if tensor.is_nested or tensor.is_quantized or tensor.is_complex():
        return False
    return tensor.layout is torch.strided and tensor.device.type != "meta"


def _bare(name: str) -> str:
    name = _INNER.sub("", name)
    while name.startswith(_PREFIX):
        name = name.removeprefix(_PREFIX)
    return name


def _refused_classes(path: str | Path, error: Exception) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # torch lists globals only in its newer file format
        names = re.findall(r"(?:GLOBAL|class) ([\w.]+)", _plain(error))
    return ", ".join(sorted(set(names))[:5])


def _plain(error: Exception) -> str:
    """The printable part of a message, without terminal escapes."""
    return "".join(c for c in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)) if c.isprintable() or c.isspace())

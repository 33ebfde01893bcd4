"""The published AutoFormer checkpoints, loaded exactly.

Official layout (microsoft/Cream, AutoFormer): row r of a qkv weight is component r mod 3 (q, k, v) of channel r div
3. The bias is not interleaved: a subnet of attention width D reads its first 3D entries as [q | k | v]. One bias
entry therefore serves different channels in different subnets. No reordering reproduces that;
`Supernet(bias_rule="official")` does.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from autoformer.cards import read_supernet_card
from autoformer.checkpoint import first_not_finite
from autoformer.errors import AutoFormerError
from autoformer.space import SearchSpace
from autoformer.supernet import Supernet
from autoformer.weights import check_same_kind, prefix_hint, read_weights, unwrapped

_RENAMED = (
    ("patch_embed_super.", "patch_embed."),
    ("attn_layer_norm.", "norm1."),
    ("ffn_layer_norm.", "norm2."),
    ("fc1.", "mlp.fc1."),
    ("fc2.", "mlp.fc2."),
    ("rel_pos_embed_k.embeddings_", "rel_pos_k."),
    ("rel_pos_embed_v.embeddings_", "rel_pos_v."),
)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights of an official checkpoint file (`autoformer.weights.read_weights`). No code in it is run."""
    return read_weights(path)


def load_official(state_dict: Mapping[str, Tensor], space: SearchSpace, where: str | Path = "checkpoint") -> Supernet:
    """A supernet with the weights of an official checkpoint: the official logits for every subnet.

    `where`: the source of the weights, for the message. Raises `AutoFormerError` naming the first tensor that is
    missing, unknown, of another shape, not floating point or not finite.
    """
    supernet = Supernet(space, bias_rule="official")
    _fill(supernet, from_official(unwrapped(state_dict, where) if state_dict else {}, space), where)
    return supernet


def load_any_supernet(path: str | Path, space: SearchSpace) -> Supernet:
    """A supernet from a file in the official layout or in this project's layout.

    A `supernet.json` beside the file names the bias rule; the default is this project's rule.

    Raises like `load_official`.
    """
    path = Path(path)
    weights = read_weights(path)
    if any(name.startswith("patch_embed_super.") for name in weights):
        return load_official(weights, space, path)
    rule = read_supernet_card(path.parent).bias_rule if (path.parent / "supernet.json").is_file() else "aligned"
    supernet = Supernet(space, bias_rule=rule)
    _fill(supernet, weights, path)
    return supernet


def _fill(supernet: Supernet, weights: Mapping[str, Tensor], where: str | Path) -> None:
    expected, space = supernet.state_dict(), supernet.space
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            hint = prefix_hint(name, weights)
            raise AutoFormerError(f"{where}: no tensor for '{name}';{hint} is it a checkpoint of '{space.name}'?")
        if name not in expected:
            raise AutoFormerError(f"{where}: unexpected tensor '{name}'; is it a checkpoint of '{space.name}'?")
        if weights[name].shape != expected[name].shape:
            raise AutoFormerError(
                f"{where}: '{name}' has shape {tuple(weights[name].shape)}, '{space.name}' needs "
                f"{tuple(expected[name].shape)}; is it a checkpoint of another space?"
            )
    check_same_kind(weights, expected, where)
    supernet.load_state_dict(weights)
    if bad := first_not_finite(supernet.state_dict()):
        raise AutoFormerError(
            f"{where}: '{bad}' holds NaN or infinity; its training diverged, use an earlier checkpoint"
        )


def from_official(tensors: Mapping[str, Tensor], space: SearchSpace) -> dict[str, Tensor]:
    """Rename official tensors, weights or gradients, and reorder qkv rows to [head][q, k, v][channel]."""
    ours = {}
    for name, tensor in tensors.items():
        for official, own in _RENAMED:
            name = name.replace(official, own)
        if name.endswith("attn.qkv.weight") and tensor.ndim == 2 and tensor.shape[0] % (3 * space.head_dim) == 0:
            heads = tensor.shape[0] // (3 * space.head_dim)  # of another space: left as it is, for `_fill` to name
            tensor = tensor.view(heads, space.head_dim, 3, -1).transpose(1, 2).reshape(tensor.shape)  # (3D, E)
        ours[name] = tensor
    return ours

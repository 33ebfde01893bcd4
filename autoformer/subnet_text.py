"""Subnets as exact table cells, and as rounded text for people. Torch-free."""

from collections.abc import Mapping
from typing import TypeVar

from autoformer.space import SubnetSpec

CELLS = ("depth", "embed_dim", "num_heads", "mlp_ratio")
_BLOCK_SEPARATOR = ";"
Number = TypeVar("Number", int, float)


def to_cells(spec: SubnetSpec) -> dict[str, int | str]:
    """Column of `CELLS` -> cell: heads and MLP ratios as "4;8" and "2;3.5", one value per block."""
    return {
        "depth": spec.depth,
        "embed_dim": spec.embed_dim,
        "num_heads": _BLOCK_SEPARATOR.join(map(str, spec.num_heads)),
        "mlp_ratio": _BLOCK_SEPARATOR.join(map(exact_text, spec.mlp_ratio)),
    }


def from_cells(cells: Mapping[str, str]) -> SubnetSpec:
    """The inverse of `to_cells`. Raises `ValueError` for cells of no subnet."""
    depth, embed_dim = (_numbers(cells, name, int, "a whole number") for name in ("depth", "embed_dim"))
    heads = _numbers(cells, "num_heads", int, "whole numbers, one a block, such as 4;2")
    ratios = _numbers(cells, "mlp_ratio", float, "numbers, one a block, such as 2;3.5")
    if len(depth) + len(embed_dim) > 2:
        raise ValueError(f"depth = {cells['depth']}, embed_dim = {cells['embed_dim']}: expected one number each")
    return SubnetSpec(depth[0], embed_dim[0], tuple(heads), tuple(ratios))


def _numbers(cells: Mapping[str, str], name: str, kind: type[Number], expected: str) -> list[Number]:
    try:
        return [kind(text) for text in by_block(cells[name])]
    except ValueError:
        raise ValueError(f"{name} = {cells[name]!r}: expected {expected}") from None


def by_block(cell: str) -> list[str]:
    return cell.split(_BLOCK_SEPARATOR)


def exact_text(number: float) -> str:
    """A number with at most six digits if these are exact ("4", "3.5"), otherwise with all digits."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def size_text(spec: SubnetSpec) -> str:
    """For example "depth 2, width 64"."""
    return f"depth {spec.depth}, width {spec.embed_dim}"


def heads_text(spec: SubnetSpec) -> str:
    """For example "4 8"."""
    return " ".join(map(str, spec.num_heads))


def ratios_text(spec: SubnetSpec) -> str:
    """For example "2 3.5"."""
    return " ".join(map(ratio_text, spec.mlp_ratio))


def ratio_text(ratio: float) -> str:
    return f"{ratio:g}"


def shape_text(spec: SubnetSpec) -> str:
    """For example "depth 2, width 64, heads 4 8, ratios 2 3.5"."""
    return f"{size_text(spec)}, heads {heads_text(spec)}, ratios {ratios_text(spec)}"

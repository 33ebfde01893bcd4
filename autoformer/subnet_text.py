"""Subnets as exact table cells, and as rounded text for people. Torch-free."""

from collections.abc import Mapping

from autoformer.space import SubnetSpec

CELLS = ("depth", "embed_dim", "num_heads", "mlp_ratio")
_BLOCK_SEPARATOR = ";"


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
    return SubnetSpec(
        depth=int(cells["depth"]),
        embed_dim=int(cells["embed_dim"]),
        num_heads=tuple(int(heads) for heads in by_block(cells["num_heads"])),
        mlp_ratio=tuple(float(ratio) for ratio in by_block(cells["mlp_ratio"])),
    )


def by_block(cell: str) -> list[str]:
    return cell.split(_BLOCK_SEPARATOR)


def exact_text(number: float) -> str:
    """The number with six digits if these are exact ("4", "3.5"), otherwise with all."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def size_text(spec: SubnetSpec) -> str:
    """Such as "depth 2, width 64"."""
    return f"depth {spec.depth}, width {spec.embed_dim}"


def heads_text(spec: SubnetSpec) -> str:
    """Such as "4 8"."""
    return " ".join(map(str, spec.num_heads))


def ratios_text(spec: SubnetSpec) -> str:
    """Such as "2 3.5"."""
    return " ".join(map(ratio_text, spec.mlp_ratio))


def ratio_text(ratio: float) -> str:
    return f"{ratio:g}"


def shape_text(spec: SubnetSpec) -> str:
    """Such as "depth 2, width 64, heads 4 8, ratios 2 3.5"."""
    return f"{size_text(spec)}, heads {heads_text(spec)}, ratios {ratios_text(spec)}"

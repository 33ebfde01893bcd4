"""A subnet as text: cells for tables, which read back equal, and words for people, rounded. Torch-free.

As data, in JSON and YAML, a subnet is `SubnetSpec.to_dict`.
"""

from collections.abc import Mapping

from autoformer.space import SubnetSpec

CELLS = ("depth", "embed_dim", "num_heads", "mlp_ratio")
_BETWEEN_BLOCKS = ";"


def to_cells(spec: SubnetSpec) -> dict[str, int | str]:
    """Column of `CELLS` -> cell: heads and MLP ratios are "4;8" and "2;3.5", one value for each block."""
    return {
        "depth": spec.depth,
        "embed_dim": spec.embed_dim,
        "num_heads": _BETWEEN_BLOCKS.join(map(str, spec.num_heads)),
        "mlp_ratio": _BETWEEN_BLOCKS.join(map(exact_text, spec.mlp_ratio)),
    }


def from_cells(cells: Mapping[str, str]) -> SubnetSpec:
    """The subnet that `to_cells` has written. Raises `ValueError` where the cells hold none."""
    return SubnetSpec(
        depth=int(cells["depth"]),
        embed_dim=int(cells["embed_dim"]),
        num_heads=tuple(int(heads) for heads in by_block(cells["num_heads"])),
        mlp_ratio=tuple(float(ratio) for ratio in by_block(cells["mlp_ratio"])),
    )


def by_block(cell: str) -> list[str]:
    """The values of a cell that has one for each block."""
    return cell.split(_BETWEEN_BLOCKS)


def exact_text(number: float) -> str:
    """A number that reads back equal: six digits where these are enough ("4", "3.5"), else as many as it takes."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def size_text(spec: SubnetSpec) -> str:
    """Such as "depth 2, width 64"."""
    return f"depth {spec.depth}, width {spec.embed_dim}"


def heads_text(spec: SubnetSpec) -> str:
    """Heads of each block, such as "4 8"."""
    return " ".join(map(str, spec.num_heads))


def ratios_text(spec: SubnetSpec) -> str:
    """MLP ratio of each block, such as "2 3.5"."""
    return " ".join(map(ratio_text, spec.mlp_ratio))


def ratio_text(ratio: float) -> str:
    """An MLP ratio in at most six digits."""
    return f"{ratio:g}"


def shape_text(spec: SubnetSpec) -> str:
    """The whole subnet in one line: "depth 2, width 64, heads 4 8, ratios 2 3.5"."""
    return f"{size_text(spec)}, heads {heads_text(spec)}, ratios {ratios_text(spec)}"

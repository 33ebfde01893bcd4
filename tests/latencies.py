"""Tables of latencies that can be added up by hand."""

from itertools import product
from pathlib import Path
from typing import Any

from autoformer.files import write_json
from autoformer.latency import BlockTime, CheckedSubnet, LatencyTable, WidthTime
from autoformer.space import SearchSpace


def table_of(space: SearchSpace, **changes: Any) -> LatencyTable:
    """0.25 ms; width / 100 before the blocks and width / 1000 after; heads + ratio / 10 + width / 10,000 a block."""
    choices = space.choices
    fields: dict[str, Any] = {
        "device": "a processor, 2 cores", "threads": 1, "batch_size": 1, "precision": "float32",
        "clock": "processor time", "torch": "2.0", "rounds": 3, "space": space, "constant_ms": 0.25,
        "embedding": [WidthTime(embed_dim=width, ms=width / 100) for width in choices.embed_dim],
        "blocks": [
            BlockTime(embed_dim=width, num_heads=heads, mlp_ratio=ratio, ms=heads + ratio / 10 + width / 10_000)
            for width, heads, ratio in product(choices.embed_dim, choices.num_heads, choices.mlp_ratio)
        ],
        "head": [WidthTime(embed_dim=width, ms=width / 1000) for width in choices.embed_dim],
        "check": [
            CheckedSubnet(subnet=space.smallest, predicted_ms=1.1, measured_ms=1.0),
            CheckedSubnet(subnet=space.middle, predicted_ms=1.96, measured_ms=2.0),
            CheckedSubnet(subnet=space.largest, predicted_ms=3.0, measured_ms=4.0),
        ],
    }  # fmt: skip
    return LatencyTable(**fields | changes)


def write_latencies(file: Path, space: SearchSpace, **changes: Any) -> Path:
    write_json(file, table_of(space, **changes).model_dump(mode="json"))
    return file

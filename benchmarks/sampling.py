"""Compare the kinds of sampling on the demo, at one budget of images through a forward pass.

The recipe is the demo's, with its schedule stretched over the steps of the budget: a sandwich of four subnets has a
quarter of the steps. The result is top-1 on the search split, with averaged weights and one seed, so differences of
some tenths of a point are noise.
"""

import tempfile
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import numpy as np

from autoformer.racing import ScoringTask
from autoformer.randomness import derived_rng
from autoformer.sampling import Sampling, make_sampler, uniform_params
from benchmarks.demo import make_scorer, prepare, search_images, train
from benchmarks.rows import Row, measured
from runtime.common.config import load_config
from runtime.common.sections import TrainSupernet
from runtime.common.tables import read_table

KINDS: tuple[Sampling, ...] = get_args(Sampling)


def measure(quick: bool = False) -> dict[str, Any]:
    epochs, subnets, limit = (0.1, 4, 2000) if quick else (8.0, 20, None)  # epochs of the train split
    config = load_config("demo")
    space, section = config.space, config.section(TrainSupernet)
    rng, even = derived_rng("benchmark subnets"), uniform_params(space, 1, bins=subnets)
    groups = {name: [getattr(space, name)] for name in ("smallest", "middle", "largest")}
    groups[f"mean of {subnets} random subnets"] = [space.sample(rng) for _ in range(subnets)]
    groups[f"mean of {subnets} even in parameters"] = [even(step)[0].subnet or space.middle for step in range(subnets)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        images = search_images(folder, limit)
        every = np.arange(len(images.labels))
        for kind in KINDS:
            own = epochs / len(make_sampler(kind, space, 0, section.sandwich_random)(0))
            warmup = section.warmup_epochs / section.epochs * own
            supernet = train(folder, kind, sampling=kind, epochs=own, warmup_epochs=warmup)
            rows.append(Row(f"{kind}: steps", float(read_table(supernet / "history.csv")[-1]["step"]), ""))
            scorer = make_scorer(supernet, images)
            for group, specs in groups.items():
                answers = scorer(ScoringTask(spec, every) for spec in specs)
                rows.append(Row(f"{kind}: {group}", 100 * mean(float(each.correct.mean()) for each in answers), "%"))
    return measured(rows, epochs=epochs)
